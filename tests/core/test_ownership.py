"""What the user has at the place of an output stays, whatever it is and however it is named."""

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from llama_edge.core.errors import OutputError
from llama_edge.core.files import output_folder, require_place
from llama_edge.core.ownership import RECORD_FILE, remove_tree, require_own
from llama_edge.core.unfinished import unfinished_folder

BUNDLE: Final = {
    "format_version": 1,
    "verdict": "passed",
    "recipe": {},
    "backend": "onnx",
    "tensors": [],
    "files": [{"path": "model.onnx"}, {"path": "sub/data"}],
}


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("years of work")
    return folder


def bundle(folder: Path) -> Path:
    fill(folder, "model.onnx", "sub/data", "manifest.sig")
    (folder / "manifest.json").write_text(json.dumps(BUNDLE))
    return folder


def checkpoint(folder: Path) -> Path:
    fill(folder, "weights.safetensors", "tokenizer.json", "tokenizer_config.json")
    signs = ("format_version", "config", "recipe", "source_sha256", "calibration")
    (folder / "quantization.json").write_text(json.dumps(dict.fromkeys(signs)))
    return folder


def recorded(folder: Path) -> Path:
    with output_folder(folder, force=False) as unfinished:
        fill(unfinished, "README.md", "sub/model.safetensors")
    return folder


def snapshot(folder: Path) -> dict[str, tuple[int, str]]:
    """Every entry with its kind, and what is in files and links."""
    found = {}
    for path in folder.rglob("*"):
        mode = path.lstat().st_mode
        text = str(path.readlink()) if stat.S_ISLNK(mode) else ""
        text = path.read_text() if stat.S_ISREG(mode) else text
        found[path.relative_to(folder).as_posix()] = stat.S_IFMT(mode), text
    return found


Plant = Callable[[Path], object]


def into_bundle(change: Plant) -> Plant:
    return lambda path: change(bundle(path))


def steps(*acts: Plant) -> Plant:
    def plant(path: Path) -> None:
        for act in acts:
            act(path)

    return plant


def linked(path: Path) -> None:
    path.symlink_to(bundle(path.with_name("elsewhere")), target_is_directory=True)


def listened(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))


THE_USERS: Final[dict[str, Plant]] = {
    "a folder of documents": lambda path: fill(path, "thesis.tex"),
    "deep documents alone": lambda path: fill(path, "a/b/thesis.tex"),
    "a folder of empty folders": lambda path: (path / "photos" / "2026").mkdir(parents=True),
    "a hidden file": lambda path: fill(path, ".git"),
    "a file": lambda path: path.write_text("letter"),
    "a named pipe": os.mkfifo,
    "a socket": listened,
    "a link to nowhere": lambda path: path.symlink_to("nowhere"),
    "a link to a bundle": linked,
    "a manifest of something else": lambda path: (
        fill(path, "thesis.tex") / "manifest.json"
    ).write_text('{"name": "my web page", "files": [{"path": "thesis.tex"}]}'),
    "a manifest that is no JSON": lambda path: fill(path, "manifest.json", "model.onnx"),
    "a quantization.json of something else": lambda path: (
        fill(path, "weights.safetensors") / "quantization.json"
    ).write_text("{}"),
    "a record of something else": lambda path: (fill(path, "a") / RECORD_FILE).write_text(
        '{"files": ["a"]}'
    ),
    "a bundle with a file of the user's": into_bundle(lambda path: fill(path, "notes.txt")),
    "a bundle with a folder of the user's": into_bundle(lambda path: fill(path, "mine/a.txt")),
    "a bundle with an empty folder": into_bundle(lambda path: (path / "mine").mkdir()),
    "a bundle with a file next to data": into_bundle(lambda path: fill(path, "sub/notes.txt")),
    "a bundle with a link": into_bundle(lambda path: (path / "photos").symlink_to("..")),
    "a bundle with a link for a file": into_bundle(
        steps(
            lambda path: (path / "sub/data").unlink(),
            lambda path: (path / "sub/data").symlink_to("../../x"),
        )
    ),
    "a bundle with a pipe for a file": into_bundle(
        steps(
            lambda path: (path / "model.onnx").unlink(),
            lambda path: os.mkfifo(path / "model.onnx"),
        )
    ),
    "a checkpoint with a file of the user's": lambda path: fill(checkpoint(path), "notes.txt"),
    "another output with a file of the user's": lambda path: fill(recorded(path), "notes.txt"),
}


@pytest.mark.parametrize("kind", THE_USERS)
def test_what_llama_edge_did_not_write_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    THE_USERS[kind](tmp_path / "out")
    before = snapshot(tmp_path)
    with pytest.raises(OutputError, match="exists already"):
        require_place(tmp_path / "out", force=False)
    for place in (require_place, write):
        with pytest.raises(OutputError, match=r"only an empty folder|did not write there"):
            place(tmp_path / "out", force=True)
        assert snapshot(tmp_path) == before


def write(target: Path, *, force: bool) -> None:
    with output_folder(target, force=force) as folder:
        fill(folder, "new")


def test_the_message_names_the_first_entry_that_is_the_users(tmp_path: Path) -> None:
    fill(bundle(tmp_path / "out"), "sub/thesis.tex")
    with pytest.raises(OutputError, match=r"out: holds sub/thesis\.tex, which llama-edge did not"):
        require_own(tmp_path / "out")


@pytest.mark.parametrize("make", [bundle, checkpoint, recorded, Path.mkdir])
def test_what_llama_edge_wrote_and_an_empty_folder_are_replaced(
    tmp_path: Path, make: Plant
) -> None:
    make(tmp_path / "out")
    write(tmp_path / "out", force=True)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"new", RECORD_FILE}
    write(tmp_path / "out", force=True)  # the record of the first accounts for it


def test_a_file_that_appears_during_the_work_is_not_lost(tmp_path: Path) -> None:
    bundle(tmp_path / "out")

    def work() -> None:
        with output_folder(tmp_path / "out", force=True):
            fill(tmp_path / "out", "notes.txt")

    with pytest.raises(OutputError, match=r"holds notes\.txt"):
        work()
    assert (tmp_path / "out/notes.txt").exists()
    assert (tmp_path / "out/model.onnx").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_file_with_a_second_name_keeps_it(tmp_path: Path) -> None:
    fill(tmp_path, "thesis.tex")
    bundle(tmp_path / "out")
    (tmp_path / "out/model.onnx").unlink()
    os.link(tmp_path / "thesis.tex", tmp_path / "out/model.onnx")
    write(tmp_path / "out", force=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


_WITH_A_MOUNT: Final = """
import subprocess, sys
from pathlib import Path
from llama_edge.core.errors import OutputError
from llama_edge.core.files import output_folder
victim, place, out = map(Path, sys.argv[1:])
subprocess.run(["mount", "--bind", str(victim), str(place)], check=True)
try:
    with output_folder(out, force=True):
        pass
except OutputError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("out", "something is mounted at"),
        ("out/sub", "something is mounted at"),
        (".out.unfinished/quantized", "something is mounted at"),
        (".out.unfinished", "was not made there by llama-edge"),
    ],
)
def test_nothing_is_emptied_through_a_mount(tmp_path: Path, place: str, message: str) -> None:
    """A bind mount of the same file system, which no device number tells from a folder."""
    if shutil.which("unshare") is None:
        pytest.skip("unshare, which gives a process mounts of its own, is for Linux only")
    fill(tmp_path / "victim", "thesis.tex")
    bundle(tmp_path / "out")
    with (
        pytest.raises(KeyboardInterrupt),
        unfinished_folder(tmp_path / ".out.unfinished", keep=True),
    ):
        raise KeyboardInterrupt
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    before = snapshot(tmp_path)
    paths = [str(tmp_path / name) for name in ("victim", place, "out")]
    done = subprocess.run(
        ["unshare", "-rm", sys.executable, "-c", _WITH_A_MOUNT, *paths],
        check=False,
        capture_output=True,
        text=True,
    )
    if "unshare:" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"this system lets no process have mounts of its own: {done.stderr[:200]}")
    assert message in done.stdout, done.stderr
    assert snapshot(tmp_path) == before


def test_removing_follows_no_link(tmp_path: Path) -> None:
    fill(tmp_path / "victim", "thesis.tex")
    (tmp_path / "tree/deep").mkdir(parents=True)
    (tmp_path / "tree/deep/link").symlink_to(tmp_path / "victim")
    (tmp_path / "link").symlink_to(tmp_path / "victim")
    for name in ("tree", "link", "nothing"):
        remove_tree(tmp_path / name)
        assert not os.path.lexists(tmp_path / name)
    assert (tmp_path / "victim/thesis.tex").exists()
