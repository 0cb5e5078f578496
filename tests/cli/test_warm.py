"""`warm`, as it is typed."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from llama_edge.bundle.folder import Bundle
from llama_edge.bundle.prompt_state import STATE_FILE
from tests.cli.conftest import Program

pytestmark = [pytest.mark.executorch, pytest.mark.onnx]


@pytest.fixture
def folder(debug_bundles: Mapping[str, Bundle], tmp_path: Path) -> Path:
    return Path(shutil.copytree(debug_bundles["onnx"].root, tmp_path / "bundle"))


@pytest.fixture
def system(tmp_path: Path) -> Path:
    path = tmp_path / "the system.txt"
    path.write_bytes(b"Be brief,\r\nand on the day.\r\n\r\n")
    return path


def test_store_use_and_remove(program: Program, folder: Path, system: Path) -> None:
    result = program("warm", folder, "--system", system)
    assert result.code == 0
    assert "tokens" in result.out
    assert "bit for bit" in result.out.replace("\n", " ")
    assert f"run {folder} QUESTION --system" in result.err + result.out
    text = "Be brief,\nand on the day."
    run = ("run", folder, "the rain", "--max-new-tokens", "4", "--json")
    warm = program(*run, "--system", text).json
    other = program(*run, "--system", "Be long.").json
    assert warm["read_tokens"] < 0.6 * warm["prompt_tokens"]
    assert other["read_tokens"] == other["prompt_tokens"]
    assert program("doctor", folder).code == 0
    shown = program("warm", folder, "--system", system, "--json")
    assert shown.code == 0
    assert shown.json["tokens"] == warm["prompt_tokens"] - warm["read_tokens"]
    assert shown.json["size_bytes"] == (folder / STATE_FILE).stat().st_size
    assert shown.json["check"]["same_logits"] is True
    assert program("warm", folder, "--remove").code == 0
    assert not (folder / STATE_FILE).exists()
    cold = program(*run, "--system", text).json
    assert cold == {**warm, "read_tokens": cold["prompt_tokens"]}
    assert program("warm", folder, "--remove").code == 2


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "give either --system FILE or --remove"),
        (("--system", "x", "--remove"), 2, "give either --system FILE or --remove"),
        (("--system", "nowhere"), 3, "nowhere: the file is missing"),
        (("--system", "empty"), 2, "the system prompt is empty"),
        (("--system", "latin"), 3, "is not UTF-8"),
        (("--system", "empty", "--date", "tomorrow"), 2, "tomorrow"),
        (("--system", "good", "--runtime", "coreml"), 2, "the artifact's backend is onnx"),
        (("--remove", "--key", "nowhere"), 2, "has no prompt state"),
    ],
)
def test_what_cannot_be_done(
    program: Program,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").write_text("\n\n")
    Path("good").write_text("Be brief.")
    Path("latin").write_bytes("caf\u00e9".encode("latin-1"))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    result = program("warm", folder, *arguments)
    assert result.code == code
    assert message in result.err.replace("\n", " ")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_state_of_another_runtime_is_left_alone(
    program: Program, folder: Path, system: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert program("warm", folder, "--system", system).code == 0
    monkeypatch.setattr("llama_edge.bundle.prompt_state.runtime_version", lambda _: "onnx 99")
    result = program("run", folder, "the", "--max-new-tokens", "2", "--json")
    assert result.code == 0
    assert "note: the bundle's prompt state is not used: it was made with onnx" in result.err
    assert result.json["read_tokens"] == result.json["prompt_tokens"]
