import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from llama_edge import __version__
from llama_edge.quantize.recipe_file import SCHEMA_FILE
from tests.cli.conftest import Program


@pytest.mark.parametrize(
    ("command", "key", "name"),
    [
        ("models", "models", "smollm2-135m"),
        ("targets", "targets", "android"),
        ("recipes", "recipes", "w4a8-rtn"),
    ],
)
def test_lists_for_people_and_for_programs(
    program: Program, command: str, key: str, name: str
) -> None:
    assert name in program(command).out
    result = program(command, "--json")
    assert result.code == 0
    assert name in [entry["name"] for entry in result.json[key]]


def test_one_model(program: Program) -> None:
    result = program("models", "llama-3.2-1b-instruct")
    for said in ("Built with Llama", "<|eot_id|>", "the weights themselves were not here"):
        assert said in " ".join(result.out.replace("│", " ").split())
    row = program("models", "meta-llama/Llama-3.2-1B-Instruct", "--json").json
    assert row["licence"]["name_prefix"] == "Llama"
    assert program("models", "smollm2-135m", "--json").json["name"] == "smollm2-135m-instruct"
    assert program("models", "llama-9").code == 2


def test_one_recipe(program: Program, tmp_path: Path) -> None:
    shown = program("recipes", "w4a8-mixed").out
    assert "extra_bytes" in shown
    value = program("recipes", "w4a8-mixed", "--json").json
    jsonschema.validate(value, program("recipes", "--schema").json)
    own = tmp_path / "own.json"
    own.write_text(json.dumps({**value, "name": "mine", "extra_bytes": 0.2}))
    assert program("recipes", own, "--json").json == {**value, "name": "mine", "extra_bytes": 0.2}
    assert program("recipes", "w5").code == 2
    assert program("recipes", "w4a8-mixed", "--schema").code == 2
    assert program("recipes", "w4a8-meta-qat").code == 0
    assert program("recipes", "w4a8-meta-qat", "--json").code == 2


def test_the_published_schema_is_what_is_printed(program: Program) -> None:
    published = Path(__file__).parents[2] / "docs" / SCHEMA_FILE
    assert program("recipes", "--schema").out == published.read_text("utf-8")


def test_what_is_not_verified_is_said(program: Program) -> None:
    assert all(entry["not_verified"] for entry in program("targets", "--json").json["targets"])


def test_a_recipe_that_nobody_measured_says_so(program: Program) -> None:
    entries = {entry["name"]: entry for entry in program("recipes", "--json").json["recipes"]}
    assert entries["w4a8-distilled"]["measured"] is None
    assert "on neither of which anybody has measured it" in entries["w4a8-distilled"]["summary"]
    assert entries["w4a8-mixed"]["measured"] is not None
    assert "not measured" in " ".join(program("recipes").out.replace("│", " ").split())


def test_version(program: Program) -> None:
    assert program("--version").out == f"llama-edge {__version__}\n"


@pytest.mark.parametrize("command", ["--help", "models", "targets", "recipes"])
def test_what_needs_no_model_imports_no_torch(command: str) -> None:
    code = (
        "import sys\n"
        "from llama_edge.cli.app import run_program\n"
        f"code = run_program([{command!r}])\n"
        "heavy = {'torch', 'torchao', 'executorch', 'onnx', 'onnxruntime'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else code)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
