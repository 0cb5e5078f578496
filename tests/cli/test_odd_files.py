"""Whatever is in a folder, or at a path, each command ends with a message and a code."""

import os
import shutil
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from llama_edge.bundle.folder import Bundle
from llama_edge.bundle.signing import new_key
from tests.cli.conftest import Program

#: Words of each command around the path.
COMMANDS: Mapping[str, tuple[str, ...]] = {
    "doctor": (),
    "verify": ("--public-key", "key.pub"),
    "sign": ("--key", "key"),
    "run": ("hi", "--max-new-tokens", "1"),
    "inspect": (),
    "compare": (),
    "report": ("--out", "page.html"),
    "diff": ("same",),
    "parity": (),
    "bisect": ("--out", "found"),
    "export": ("--target", "onnx", "--recipe", "w4a8-rtn", "--out", "out"),
    "quantize": ("--recipe", "w4a8-rtn", "--out", "out"),
    "eval": ("--text", "text.txt", "--window", "16"),
    "plan": (),
}


def listen(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))


def nest(path: Path) -> None:
    """Deeper than is walked."""
    path.joinpath(*["d"] * 100).mkdir(parents=True)


#: What may take a file's place.
PLACES: Mapping[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a socket": listen,
    "a folder": Path.mkdir,
    "a link to nowhere": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "nothing in it": Path.touch,
    "a Git LFS pointer": lambda path: path.write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n"
    ),
    "UTF-16": lambda path: path.write_bytes("{}".encode("utf-16")),
}
#: What may be in a folder besides.
ADDED: Mapping[str, Callable[[Path], object]] = {
    "deep folders": lambda folder: nest(folder / "deep"),
    "a long name": lambda folder: (folder / ("x" * 255)).touch(),
    "a name of other bytes": lambda folder: (folder / os.fsdecode(b"\xff\xfe")).touch(),
    "a name with escapes": lambda folder: (folder / "\x1b[2J\n").touch(),
    "a link to itself": lambda folder: (folder / "link").symlink_to("."),
    "a link to everything": lambda folder: (folder / "link").symlink_to("/"),
}


@pytest.fixture
def place(
    debug_bundles: Mapping[str, Bundle],
    debug_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    for name in ("bundle", "same"):
        shutil.copytree(debug_bundles["onnx"].root, name)
    shutil.copytree(debug_folder, "model")
    Path("text.txt").write_text("the rain in Spain stays mainly in the plain " * 8)
    new_key(Path("key"))
    return tmp_path


def ended(program: Program, command: str, path: str) -> int:
    """The exit code; the fixture itself refuses a traceback."""
    result = program(command, path, *COMMANDS[command])
    assert result.code in (0, 1, 2, 3), (command, result.err)
    assert "\x1b[2J" not in result.out + result.err
    if result.code in (2, 3):
        *_, last = result.err.strip().splitlines()
        assert last.startswith("error: "), (command, result.err)
    return result.code


@pytest.mark.parametrize("name", ["manifest.json", "manifest.sig", "model.onnx", "tokenizer.json"])
@pytest.mark.parametrize("kind", PLACES)
def test_a_file_of_a_bundle_that_is_none(
    program: Program, place: Path, name: str, kind: str
) -> None:
    path = place / "bundle" / name
    path.unlink(missing_ok=True)
    PLACES[kind](path)
    # `doctor` takes a process each time.
    doctor = ("doctor",) if name == "manifest.json" else ()
    for command in (*doctor, "verify", "sign", "run", "inspect", "compare", "report", "parity"):
        code = ended(program, command, "bundle")
        # What is not the bundle's own is named by all; what is only damaged, by who looks at it.
        assert code or (name, command) in {
            ("manifest.sig", "sign"),
            ("model.onnx", "report"),
            ("tokenizer.json", "inspect"),
            ("tokenizer.json", "report"),
        }
        if code == 0 and command == "sign":
            break


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json"])
@pytest.mark.parametrize("kind", PLACES)
def test_a_file_of_a_checkpoint_that_is_none(
    program: Program, place: Path, name: str, kind: str
) -> None:
    path = place / "model" / name
    path.unlink()
    PLACES[kind](path)
    doctor = ("doctor",) if name == "config.json" else ()
    for command in ("export", "quantize", "diff", "plan", *doctor):
        code = ended(program, command, "model")
        if name == "config.json" and command != "doctor":
            assert code == 3, command
    shutil.rmtree("out", ignore_errors=True)


@pytest.mark.parametrize("kind", ADDED)
def test_what_else_is_in_a_folder(program: Program, place: Path, kind: str) -> None:
    for folder in ("bundle", "model"):
        ADDED[kind](place / folder)
    for command in ("doctor", "verify", "sign", "run", "inspect", "report", "parity", "bisect"):
        assert ended(program, command, "bundle") in (1, 3), command
    for command in ("doctor", "plan", "inspect", "diff"):
        ended(program, command, "model")
    shutil.rmtree(place / "bundle" / "deep", ignore_errors=True)


@pytest.mark.parametrize(
    "path",
    [
        "x" * 300,
        "x" * 5000,
        "a/" * 2000,
        os.fsdecode(b"\xff"),
        "",
        "/dev/null",
        "pipe",
        "loop",
        "key",
    ],
)
def test_a_path_that_is_nothing_of_ours(program: Program, place: Path, path: str) -> None:
    os.mkfifo("pipe")
    Path("loop").symlink_to("loop")
    for command in COMMANDS:
        assert ended(program, command, path) in (1, 2, 3), command
    assert not (place / "out").exists()
    assert not (place / "page.html").exists()


@pytest.mark.parametrize("kind", [kind for kind in PLACES if kind != "a folder"])
def test_an_output_place_that_is_taken(program: Program, place: Path, kind: str) -> None:
    """`--force` or not, what is there stays what it is."""
    PLACES[kind](place / "taken")
    before = (place / "taken").lstat()
    for words in (
        ("export", "model", "--target", "onnx", "--out", "taken"),
        ("quantize", "model", "--out", "taken"),
        ("bisect", "bundle", "--out", "taken"),
        ("synth", "--like", "llama-3.2-1b", "taken"),
        ("report", "bundle", "--out", "taken"),
    ):
        for more in ((), ("--force",) if words[0] != "report" else ()):
            result = program(*words, *more)
            assert result.code == 3, (words, result.err)
            last = result.err.splitlines()[-1]
            assert last.startswith("error: ")
            assert "taken: " in last
    after = (place / "taken").lstat()
    assert (before.st_ino, before.st_size) == (after.st_ino, after.st_size)


def test_an_error_of_the_system_is_a_message(
    program: Program, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> object:
        raise OSError(5, "Input/output error", "/dev/disk")

    monkeypatch.setattr("llama_edge.bundle.doctor.diagnose", failing)
    result = program("doctor", "bundle")
    assert (result.code, result.err) == (3, "error: /dev/disk: Input/output error\n")
