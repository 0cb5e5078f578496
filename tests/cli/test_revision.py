"""`--revision` on every command that takes a MODEL."""

from pathlib import Path
from typing import NoReturn

import pytest

from llama_edge.core.errors import CheckpointError
from llama_edge.pipeline.quantize import short_name
from tests.cli.conftest import Program

REVISION = ("--revision", "v1")


@pytest.mark.executorch
@pytest.mark.parametrize(
    "command",
    [
        ["export", "a/b", "--target", "android", *REVISION],
        ["quantize", "a/b", *REVISION],
        ["plan", "a/b", *REVISION],
        ["eval", "a/b", "--text", "text.txt", *REVISION],
        ["diff", "a/b", "smollm2-135m", *REVISION],
        ["diff", "a/b@v1", "a/b"],
    ],
    ids=lambda command: command[0],
)
def test_the_revision_is_downloaded(
    program: Program, command: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(model: str, **_: object) -> NoReturn:
        raise CheckpointError(f"asked for {model}")

    monkeypatch.setattr("llama_edge.checkpoints.hub.download", refuse)
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("some words " * 1000)
    result = program(*command)
    assert result.code == 3
    assert "asked for a/b@v1" in result.err


@pytest.mark.parametrize(
    ("command", "called"),
    [
        ("parity", "llama_edge.gate.check_bundle.check_bundle"),
        ("bisect", "llama_edge.debug.bisect.bisect"),
    ],
)
def test_the_model_that_a_bundle_is_compared_with(
    program: Program, command: str, called: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(_: Path, against: str | None, *__: object) -> NoReturn:
        raise CheckpointError(f"asked for {against}")

    monkeypatch.setattr(called, refuse)
    monkeypatch.chdir(tmp_path)
    result = program(command, "bundle", "--against", "a/b", *REVISION)
    assert (result.code, "asked for a/b@v1" in result.err) == (3, True)
    result = program(command, "bundle", "--against", "smollm2-135m", *REVISION)
    assert (result.code, "no MODEL here is a Hugging Face id" in result.err) == (2, True)


@pytest.mark.parametrize("command", [["quantize"], ["plan"], ["export", "--target", "android"]])
def test_what_is_here_has_no_revision(program: Program, command: list[str]) -> None:
    result = program(*command, "smollm2-135m", *REVISION)
    assert result.code == 2
    assert "smollm2-135m is no Hugging Face id; leave it out" in " ".join(result.err.split())


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("owner/name", "name"),
        ("owner/name:Q4_K_M@v1", "name-Q4_K_M-v1"),
        ("owner/name:folder/model.gguf", "name-model"),
        ("owner/name@refs/pr/1", "name-refs-pr-1"),
        ("smollm2-135m", "smollm2-135m"),
    ],
)
def test_the_name_of_a_folder(model: str, name: str) -> None:
    assert short_name(model) == name


def test_the_name_of_a_file_here(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    assert short_name(str(tmp_path / "model.gguf")) == "model"
