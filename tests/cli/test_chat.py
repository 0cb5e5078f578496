"""`chat` through a pipe, and on a terminal of its own."""

import fcntl
import io
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from llama_edge.bundle.folder import Bundle
from llama_edge.cli.chat import _interruption
from tests.cli.conftest import Program, Result

#: What the line editor tells a terminal before it asks.
PROMPT = b"\x1b[?2004h"
QUICK = ("--max-new-tokens", "8")

pytestmark = [pytest.mark.executorch, pytest.mark.onnx]


@pytest.fixture
def folder(debug_bundles: Mapping[str, Bundle]) -> Path:
    return debug_bundles["onnx"].root


@pytest.fixture
def talk(program: Program, folder: Path, monkeypatch: pytest.MonkeyPatch) -> "Talk":
    def run(*lines: str, options: tuple[str, ...] = ()) -> Result:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        return program("chat", folder, *QUICK, *options)

    return run


Talk = Program


def saved(path: Path) -> list[tuple[str, str]]:
    messages = json.loads(path.read_text())["messages"]
    return [(message["role"], message["content"]) for message in messages]


def test_a_dialog(talk: Talk, program: Program, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "dialog.json"
    result = talk("the", "on", f"/save {file}", "/stats", options=("--system", "an in"))
    assert result.code == 0
    assert "a context of 512 tokens; /help" in result.err
    roles = [role for role, _ in saved(file)]
    assert roles == ["system", "user", "assistant", "user", "assistant"]
    answers = [content for role, content in saved(file) if role == "assistant"]
    alone = program("run", folder, "the", "--system", "an in", *QUICK, "--json")
    assert answers[0] == alone.json["text"]
    assert result.out == "".join(f"{answer}\n" for answer in answers)
    assert "5 messages in" in result.err
    assert "tokens read, the others were in the cache; 8 written" in result.err
    assert "note: the answer was cut: --max-new-tokens is reached" in result.err


def test_a_second_turn_reads_its_own_tokens(talk: Talk) -> None:
    first = talk("the", "/stats").err
    second = talk("the", "on", "/stats").err

    def read(text: str) -> tuple[int, int]:
        line = next(line for line in text.splitlines() if line.startswith("the last turn: "))
        numbers = line.split()
        return int(numbers[3]), int(numbers[5])

    assert read(first)[0] == read(first)[1]
    assert read(second)[0] < read(second)[1] / 2


def test_beginning_again(talk: Talk, tmp_path: Path) -> None:
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    result = talk(
        *("the", "/reset", f"/save {one}", "/system and", "on", f"/save {two}"),
        *("/system", "on", f"/save {three}"),
        options=("--system", "an in"),
    )
    assert saved(one) == [("system", "an in")]
    assert saved(two)[0] == ("system", "and")
    assert [role for role, _ in saved(two)] == ["system", "user", "assistant"]
    assert [role for role, _ in saved(three)] == ["user", "assistant"]
    assert "a new dialog, without a system prompt" in result.err


def test_a_full_context_says_what_it_drops(talk: Talk) -> None:
    result = talk(*["the lighthouse on the hill " * 3] * 8, options=("--system", "an in"))
    assert result.code == 0
    assert "oldest messages no longer fit the context and were left out" in result.err


def test_what_goes_wrong_is_said_and_the_dialog_goes_on(talk: Talk, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine")
    result = talk(
        *(f"/save {taken}", "/save", "/fly", "the " * 3000, "/help", "", "on", "/quit", "never")
    )
    assert result.code == 0
    assert taken.read_text() == "mine"
    for said in (
        "taken: exists already; name another file",
        "/save needs the name of a file",
        "/fly is no command; /help lists them",
        "shorten it",
        "/system TEXT",
    ):
        assert said in result.err
    assert result.out.count("\n") == 1, "the last question alone has an answer"


def test_a_line_that_goes_on(talk: Talk, tmp_path: Path) -> None:
    file = tmp_path / "dialog.json"
    talk("the\\", "on\\", "an", f"/save {file}")
    assert saved(file)[0] == ("user", "the\non\nan")


def test_a_wrong_bundle_or_option(program: Program, folder: Path, tmp_path: Path) -> None:
    assert program("chat", tmp_path).code in (1, 3)
    result = program("chat", folder, "--max-new-tokens", "512")
    assert (result.code, "below the context's 512 tokens" in result.err) == (2, True)


def test_ctrl_c_is_heard_between_tokens() -> None:
    with _interruption() as is_interrupted:
        assert not is_interrupted()
        os.kill(os.getpid(), signal.SIGINT)
        assert is_interrupted()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)


def test_a_terminal_has_line_editing(folder: Path, tmp_path: Path) -> None:
    """Up repeats the last line, backspace takes a letter back, Ctrl-D ends."""
    file = tmp_path / "dialog.json"
    command = [sys.executable, "-c", "from llama_edge.cli import main; main()", "chat", folder]
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen(
        [*map(str, command), *QUICK], stdin=theirs, stdout=theirs, stderr=theirs, close_fds=True
    )
    os.close(theirs)
    said = b""

    def wait_for(text: bytes) -> None:
        nonlocal said
        deadline = time.monotonic() + 120
        while text not in said:
            assert time.monotonic() < deadline, said
            if select.select([ours], [], [], 0.2)[0]:
                said += os.read(ours, 4096)
                # What prompt_toolkit asks a terminal: where the cursor is.
                if b"\x1b[6n" in said:
                    said = said.replace(b"\x1b[6n", b"")
                    os.write(ours, b"\x1b[1;1R")
        _, _, said = said.partition(text)

    try:
        wait_for(PROMPT)
        os.write(ours, b"thex\x7f\r")
        wait_for(b"is reached")
        wait_for(PROMPT)
        os.write(ours, b"\x1b[A\r")
        wait_for(b"is reached")
        wait_for(PROMPT)
        os.write(ours, f"/save {file}\r".encode())
        wait_for(b"messages in")
        wait_for(PROMPT)
        os.write(ours, b"\x04")
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert [content for role, content in saved(file) if role == "user"] == ["the", "the"]
