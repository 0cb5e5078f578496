"""What strangers wrote reaches a terminal as text, and a terminal without UTF-8 is no error."""

import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest
from rich.console import Console
from rich.progress import Progress as RichProgress

from llama_edge.bundle.folder import Bundle
from llama_edge.cli import console
from llama_edge.core.errors import ArtifactError
from llama_edge.generate.run import Run
from tests.cli.conftest import Program
from tests.faults.forging import edit_json, edit_manifest, put, rehash

#: Clears the screen, sets the window's title, reorders what follows, and ends a line.
HOSTILE: Final = "\x1b[2Jx\x1b]0;title\x07\x9b1m\u202e\nerror: y"
SHOWN: Final = r"\x1b[2Jx\x1b]0;title\x07\x9b1m\u202e\nerror: y"
ACTS: Final = ("\x1b[2J", "\x1b]", "\x07", "\x9b", "\u202e", "\nerror: y")


def assert_harmless(said: str) -> None:
    assert [part for part in ACTS if part in said] == []


@pytest.fixture
def folder(debug_bundles: Mapping[str, Bundle], tmp_path: Path) -> Path:
    return Path(shutil.copytree(debug_bundles["onnx"].root, tmp_path / "bundle"))


@pytest.mark.parametrize("command", ["inspect", "compare", "doctor", "report", "parity", "run"])
def test_a_name_in_an_error(program: Program, command: str) -> None:
    more = ("hi",) if command == "run" else ()
    result = program(command, f"no/{HOSTILE}", *more)
    assert result.code == 3
    assert SHOWN.replace(r"\n", "\n  ") in result.err
    assert_harmless(result.err)


def test_a_name_of_bytes_that_are_no_utf_8(program: Program) -> None:
    result = program("inspect", os.fsdecode(b"no/\xff\xfe"))
    assert result.code == 3
    assert r"no/\udcff\udcfe: there is no such file" in result.err
    value = program("inspect", os.fsdecode(b"no/\xff\xfe"), "--json").json
    assert "no/\udcff\udcfe" in value["error"]["message"]


@pytest.mark.parametrize("arguments", [("fly\x1b[2J",), ("models", f"--{HOSTILE}")])
def test_an_argument_in_a_usage_error(program: Program, arguments: tuple[str, ...]) -> None:
    result = program(*arguments)
    assert result.code == 2
    assert r"\x1b[2J" in result.err
    assert_harmless(result.err)


def test_words_of_a_manifest(program: Program, folder: Path) -> None:
    edit_manifest(folder, lambda value: put(value, "model.source", HOSTILE))
    edit_manifest(folder, lambda value: put(value, "versions.onnx", HOSTILE))
    (folder / f"added{HOSTILE.replace('/', '')}").touch()
    for command in ("compare", "doctor", "report"):
        result = program(command, folder)
        assert result.code == 1
        assert_harmless(result.out + result.err)
    found = program("doctor", folder, "--json").out
    assert_harmless(found)
    assert any(HOSTILE in one["where"] for one in json.loads(found)["findings"])


def test_words_of_a_manifest_in_a_table(program: Program, folder: Path) -> None:
    edit_manifest(folder, lambda value: put(value, "model.source", f"[red]a[/]:bomb:{HOSTILE}"))
    result = program("compare", folder)
    assert result.code == 0
    assert "[red]a[/]:bomb:" in result.out
    assert_harmless(result.out)


def test_the_text_of_a_token(program: Program, folder: Path) -> None:
    def change(value: dict[str, object]) -> None:
        model = value["model"]
        assert isinstance(model, dict)
        vocabulary = model["vocab"]
        token = "Ġa" if "Ġa" in vocabulary else next(iter(vocabulary))
        vocabulary["ĠaĽ[2J"] = vocabulary.pop(token)

    edit_json(folder / "tokenizer.json", change)
    rehash(folder)
    result = program("doctor", folder)
    assert_harmless(result.out + result.err)


def test_a_model_s_answer(program: Program, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pieces(self: Run) -> Iterator[str]:
        yield from ("Two\n\tlines", "\x1b", "[2J\x9b1m\u202e", "👩\u200d🚀\r")

    monkeypatch.setattr(Run, "__iter__", pieces)
    assert program("run", folder, "hi").out == ("Two\n\tlines\\x1b[2J\\x9b1m\\u202e👩\u200d🚀\\r\n")
    said = program("run", folder, "hi", "--json")
    assert_harmless(said.out)
    assert said.json["text"] == "Two\n\tlines\x1b[2J\x9b1m\u202e👩\u200d🚀\r"


def test_lines_of_an_error_are_not_taken_for_errors(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_error(ArtifactError("it printed:\nerror: all is well"), as_json=False)
    assert capsys.readouterr().err == "error: it printed:\n  error: all is well\n"


def test_stages_and_tables_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    words = "[red]x[/red] :bomb: \x1b[2J"
    lines = console.StageLines()
    lines.start(words, 1)
    lines.finish()
    console.print_table(words, (words, "b"), [(words, words)])
    captured = capsys.readouterr()
    assert captured.err.startswith(r"[red]x[/red] :bomb: \x1b[2J: ")
    assert captured.out.count(r"[red]x[/red] :bomb: \x1b[2J") == 4
    shown = Console(record=True, width=200, markup=False, emoji=False)
    with RichProgress(*console.COLUMNS, console=shown) as bars:
        console._Bars(bars).start(words, 1)
    assert r"[red]x[/red] :bomb: \x1b[2J" in shown.export_text()


def on_a_terminal(*arguments: str) -> str:
    """What the program writes to a terminal of its own, stdout and stderr together."""
    main, other = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", "from llama_edge.cli import main; main()", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=other,
        stderr=other,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "200"},
    )
    os.close(other)
    said = b""
    try:
        while piece := os.read(main, 1 << 16):
            said += piece
    except OSError:  # Linux's way to say that nobody writes any more
        pass
    finally:
        os.close(main)
        process.wait()
    return said.decode()


def test_a_terminal_gets_our_colours_and_not_a_strangers_codes(folder: Path) -> None:
    (folder / f"added{HOSTILE}").touch()
    said = on_a_terminal("doctor", str(folder))
    assert "\x1b[31m" in said, "it is taken for a terminal"
    assert SHOWN in said
    assert [part for part in ACTS[:-1] if part in said] == []
    assert "\r\nerror: y" not in said


_SAYS = """
from llama_edge.cli import console
console.replace_unencodable()
console.say("Größe 👩 日本")
console.say("Größe 👩 日本", err=True)
console.say_answer("Größe 👩 日本\\n")
console.print_table("日本", ("a", "é"), [("👩", "ü")])
console.print_json({"a": "ü👩"})
with console.progress_on_stderr() as progress:
    progress.start("日本", 1)
"""


@pytest.mark.parametrize(
    ("encoding", "shown"), [("cp1252", "Größe ? ??"), ("ascii", "Gr??e ? ??"), ("utf-8", None)]
)
def test_what_a_terminal_cannot_show_is_replaced(encoding: str, shown: str | None) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SAYS],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": encoding},
    )
    said, told = done.stdout.decode(encoding), done.stderr.decode(encoding)
    assert (done.returncode, "Traceback" in told) == (0, False), told
    assert said.splitlines()[:2] == [shown or "Größe 👩 日本"] * 2
    assert told.splitlines()[0] == (shown or "Größe 👩 日本")
    value = said[said.index("{") :]
    assert json.loads(value) == {"a": "ü👩"}
