"""`guard`, and `chat --guard`."""

import io
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from llama_edge.bundle.folder import Bundle
from tests.cli.conftest import Program

pytestmark = pytest.mark.onnx


@pytest.fixture
def folder(guard_bundle: Bundle) -> Path:
    return guard_bundle.root


def test_a_prompt(program: Program, folder: Path) -> None:
    result = program("guard", folder, "Where does the lighthouse stand?")
    assert result.code == 1
    assert result.out.startswith(
        "unsafe: S1 Violent Crimes, S9 Indiscriminate Weapons (probability of unsafe 0.7"
    )
    result = program("guard", folder, "Where?", "--threshold", "0.9", "--json")
    assert result.code == 0
    (verdict,) = result.json["verdicts"]
    assert verdict["safe"]
    assert verdict["categories"] == []
    assert verdict["side"] == "User"
    assert verdict["dropped_messages"] == 0
    assert 0.6 < verdict["unsafe_probability"] < 0.8


def test_a_dialog(program: Program, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "dialog.json"
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    file.write_text(json.dumps({"messages": messages}))
    result = program("guard", folder, "--dialog", file, "--json", "--categories", "S1")
    assert result.code == 1
    (verdict,) = result.json["verdicts"]
    assert verdict["side"] == "Agent"
    assert verdict["categories"] == [{"code": "S1", "name": "Violent Crimes"}]


def test_lines(program: Program, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n\ntwo\n"))
    result = program("guard", folder, "--threshold", "1")
    assert result.code == 0
    assert [line.split()[0] for line in result.out.splitlines()] == ["safe", "safe"]


def test_categories_of_ones_own(program: Program, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"S1": "Spoilers."}))
    result = program("guard", folder, "a", "--categories", file)
    assert "unsafe: S1 Spoilers (" in result.out
    assert "note:" not in result.err


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["a", "--categories", "S1,S99"], 2, "category 'S99' is unknown"),
        (["a", "--categories", "gone.json"], 2, "gone.json"),
        (["a", "--threshold", "2"], 2, "threshold is 2.0"),
        (["a", "--dialog", "gone.json"], 2, "not both"),
        (["--dialog", "gone.json"], 2, "gone.json"),
    ],
)
def test_bad_usage(
    program: Program, folder: Path, options: list[str], code: int, said: str
) -> None:
    result = program("guard", folder, *options)
    assert result.code == code
    assert said in result.err


@pytest.mark.parametrize("text", ["[]", "{}", '{"messages": [1]}', '{"messages": []}'])
def test_files_that_are_no_dialog(
    program: Program, folder: Path, tmp_path: Path, text: str
) -> None:
    file = tmp_path / "dialog.json"
    file.write_text(text)
    result = program("guard", folder, "--dialog", file)
    assert result.code == 2
    assert "error: " in result.err


def test_what_is_no_guard(program: Program, debug_bundles: Mapping[str, Bundle]) -> None:
    result = program("guard", debug_bundles["onnx"].root, "a")
    assert result.code == 3
    assert "the bundle is no guard" in result.err


def test_a_guarded_chat(
    program: Program,
    folder: Path,
    debug_bundles: Mapping[str, Bundle],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def talk(*options: str) -> tuple[str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO("the\n"))
        result = program("chat", debug_bundles["onnx"].root, "--max-new-tokens", "8", *options)
        assert result.code == 0
        return result.out, result.err

    out, err = talk("--guard", str(folder))
    assert out == ""
    assert "the guard finds the question unsafe: S1 Violent Crimes, S9" in err
    assert "it is not part of the dialog" in err
    alone, _ = talk()
    passed, _ = talk("--guard", str(folder), "--threshold", "0.9")
    assert passed == alone


def test_categories_without_a_guard(program: Program, debug_bundles: Mapping[str, Bundle]) -> None:
    result = program("chat", debug_bundles["onnx"].root, "--categories", "S1")
    assert result.code == 2
    assert "name it by --guard" in result.err
