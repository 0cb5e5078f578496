"""What the documents show is what the programs do."""

import json
import os
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml

from llama_edge.bundle.manifest import MANIFEST_VERSION

DOCS = Path(__file__).parents[1] / "docs"
LLAMA_EDGE = "from llama_edge.cli import main; main()"


def code_block(page: str, language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    assert found is not None
    return found[1]


def test_the_published_schema_is_the_one_that_is_applied() -> None:
    applied = (
        resources.files("llama_edge.bundle").joinpath("manifest.schema.json").read_text("utf-8")
    )
    published = DOCS / f"manifest-v{MANIFEST_VERSION}.schema.json"
    assert published.read_text("utf-8") == applied
    assert json.loads(applied)["properties"]["format_version"] == {"const": MANIFEST_VERSION}


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    """The programs that the workflow installs, taken from this checkout."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, arguments in (
        ("llama-edge", f"-c '{LLAMA_EDGE}'"),
        ("pytest", "-m pytest -p llama_edge.testing.plugin -p no:cacheprovider"),
    ):
        script = programs / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n')
        script.chmod(0o755)
    root = str(DOCS.parent)
    return {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": root}


@pytest.mark.slow
def test_the_workflows_commands_run(
    shell: dict[str, str], debug_folder: Path, tmp_path: Path
) -> None:
    workflow: dict[Any, Any] = yaml.safe_load(code_block("ci.md", "yaml"))
    job = workflow["jobs"]["bundle"]
    place = tmp_path / "repository"
    (place / "tests").mkdir(parents=True)
    (place / job["env"]["MODEL"]).parent.mkdir()
    (place / job["env"]["MODEL"]).symlink_to(debug_folder)
    (place / "tests" / "test_bundle.py").write_text(code_block("ci.md", "python"))
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands[0].startswith("pip install")
    assert len(commands) == 5
    for command in commands[1:]:
        done = subprocess.run(
            ["bash", "-e", "-c", command],
            cwd=place,
            env={**shell, **job["env"]},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    (upload,) = (step for step in job["steps"] if "upload-artifact" in step.get("uses", ""))
    for path in upload["with"]["path"].split():
        assert (place / path).is_file(), path
    assert json.loads((place / "doctor.json").read_text())["passed"] is True


def test_the_projects_own_workflow_calls_what_the_makefile_has() -> None:
    root = DOCS.parent
    jobs = yaml.safe_load((root / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    targets = set(re.findall(r"^([a-z-]+):", (root / "Makefile").read_text(), re.MULTILINE))
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert commands
    for command in commands:
        make, python, *called = command.split()
        assert (make, python) == ("make", "PYTHON=python")
        assert set(called) <= targets


def test_the_actions_commands_run(
    shell: dict[str, str], debug_folder: Path, tmp_path: Path
) -> None:
    action = yaml.safe_load((DOCS.parent / "action.yml").read_text())
    bundle = tmp_path / "bundle"
    export = f"llama-edge export {debug_folder} --target onnx --recipe w4a8-rtn --out {bundle}"
    checks = [step["run"] for step in action["runs"]["steps"] if "pip install" not in step["run"]]
    assert len(checks) == 2
    given = {"BUNDLE": str(bundle), "AGAINST": str(debug_folder), "KEY": ""}
    for command in (export, *checks):
        done = subprocess.run(
            ["bash", "-e", "-c", command],
            env={**shell, **given},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    (bundle / "tokenizer.json").write_text("{}")
    damaged = subprocess.run(
        ["bash", "-e", "-c", checks[0]], env={**shell, **given}, capture_output=True, check=False
    )
    assert damaged.returncode == 1


def test_every_field_case_has_its_test() -> None:
    root = Path(__file__).parents[1]
    text = (root / "docs/field-cases.md").read_text("utf-8")
    rows = [line for line in text.splitlines() if line.startswith("|") and "::" in line]
    named = re.findall(r"`([a-z/]+)/([a-z0-9_]+)::(test_[a-z0-9_]+)` \|$", text, re.MULTILINE)
    assert len(named) == len(rows) > 40
    for folder, module, name in named:
        source = (root / "tests" / folder / f"test_{module}.py").read_text("utf-8")
        assert f"def {name}(" in source, name
