"""No command that writes replaces, empties or removes what llama-edge did not write."""

import os
import shutil
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import pytest

from llama_edge.bundle.folder import Bundle
from tests.cli.conftest import Program

#: Command lines that write `place/out`, all else being right.
WRITERS: Final[Mapping[str, tuple[str, ...]]] = {
    "export": ("export", "model", "--target", "onnx", "--recipe", "w4a8-rtn", "--out"),
    "quantize": ("quantize", "model", "--recipe", "w4a8-rtn", "--out"),
    "bisect": ("bisect", "bundle", "--out"),
    "synth": ("synth", "--like", "llama-3.2-1b", "--layers", "1"),
}
#: The same with a wrong argument, which is told before anything is made or removed.
WRONG: Final[Mapping[str, tuple[str, ...]]] = {
    "export": ("export", "./no-such-model", "--target", "onnx", "--out"),
    "quantize": ("quantize", "./no-such-model", "--out"),
    "bisect": ("bisect", "no-such-bundle", "--out"),
    "synth": ("synth", "--like", "llama-9"),
}


def documents(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "thesis.tex").write_text("years of work")
    (path / "photos").mkdir()
    (path / "photos/1.jpg").write_text("a picture")
    return path


def link(path: Path) -> None:
    path.symlink_to(os.path.relpath(documents(Path("victim")), path.parent))


def marked(path: Path) -> None:
    """The user's documents, with files of the names that llama-edge uses."""
    documents(path)
    for name in ("lock", "llama-edge.lock", "key", "output", "manifest.json", "quantization.json"):
        (path / name).write_text("{}")


AT_OUT: Final[Mapping[str, Callable[[Path], object]]] = {
    "documents": documents,
    "documents with our names": marked,
    "a file": lambda path: path.write_text("letter"),
    "a pipe": os.mkfifo,
    "a link": link,
}
AT_WORK: Final[Mapping[str, Callable[[Path], object]]] = {
    name: AT_OUT[name] for name in ("documents", "documents with our names", "a file", "a link")
}


@pytest.fixture
def place(
    debug_folder: Path,
    debug_bundles: Mapping[str, Bundle],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    shutil.copytree(debug_folder, tmp_path / "model")
    shutil.copytree(debug_bundles["onnx"].root, tmp_path / "bundle")
    (tmp_path / "place").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "place"


def snapshot() -> dict[str, tuple[int, bytes]]:
    """Of everything below the current folder: its kind, and what is in it."""
    found = {}
    for path in Path().rglob("*"):
        mode = path.lstat().st_mode
        content = path.read_bytes() if stat.S_ISREG(mode) else b""
        found[str(path)] = mode, os.fsencode(path.readlink()) if stat.S_ISLNK(mode) else content
    return found


def refused(program: Program, arguments: tuple[str, ...]) -> str:
    before = snapshot()
    result = program(*arguments)
    assert result.code in (2, 3)
    assert snapshot() == before
    return result.err


@pytest.mark.parametrize("command", WRITERS)
@pytest.mark.parametrize("kind", AT_OUT)
def test_force_replaces_nothing_of_the_users(
    program: Program, place: Path, command: str, kind: str
) -> None:
    AT_OUT[kind](place / "out")
    arguments = (*WRITERS[command], "place/out")
    assert "exists already" in refused(program, arguments)
    assert "llama-edge" in refused(program, (*arguments, "--force"))


@pytest.mark.parametrize("command", WRITERS)
@pytest.mark.parametrize("kind", AT_WORK)
def test_a_work_folder_that_is_not_ours_is_named(
    program: Program, place: Path, command: str, kind: str
) -> None:
    AT_WORK[kind](place / ".out.unfinished")
    for more in ((), ("--force",)):
        assert ".out.unfinished" in refused(program, (*WRITERS[command], "place/out", *more))
        refused(program, (*WRONG[command], "place/out", *more))


@pytest.mark.parametrize("kind", AT_OUT)
def test_a_failed_bundles_place_that_is_the_users_is_named(
    program: Program, place: Path, kind: str
) -> None:
    AT_OUT[kind](place / "out.failed")
    said = refused(program, (*WRITERS["export"], "place/out", "--force"))
    assert "out.failed" in said


@pytest.mark.parametrize("command", WRITERS)
def test_a_wrong_argument_makes_and_removes_nothing(
    program: Program, place: Path, command: str
) -> None:
    refused(program, (*WRONG[command], "place/new/deep/out"))


def test_the_default_places_are_looked_at_as_well(program: Program, place: Path) -> None:
    """As a stranger's archive may bring them, with a link from the middle of it."""
    for folder, name in (("bundles", "model-onnx"), ("quantized", "model-w4a8-rtn")):
        Path(folder).mkdir()
        Path(folder, f".{name}.unfinished").symlink_to("../victim")
    documents(Path("victim"))
    for arguments in (
        ("export", "model", "--target", "onnx", "--recipe", "w4a8-rtn"),
        ("quantize", "model", "--recipe", "w4a8-rtn"),
    ):
        assert "unfinished: is needed for work" in refused(program, arguments)
