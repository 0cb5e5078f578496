"""What a program inherits: streams that are closed, full or broken, and a current folder."""

import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

PROGRAM: Final = "from llama_edge.cli.app import main; main()"
#: Redirections of a POSIX shell, and which of stdout and stderr is lost by each.
LOST: Final = {
    "<&-": "",
    ">&-": "out",
    "2>&-": "err",
    "<&- >&- 2>&-": "out err",
    ">/dev/full": "out",
    "2>/dev/full": "err",
    ">/dev/full 2>&1": "out err",
}
#: Command lines, whose exit code is theirs where stdout is not needed for an answer.
COMMANDS: Final = {
    ("doctor", "no-such-folder"): 3,
    ("doctor", "no-such-folder", "--json"): 3,
    ("no-such-command",): 2,
    ("no-such-command", "--json"): 2,
    ("plan", "llama-3.2-1b", "--json"): 0,
    ("models",): 0,
}


@pytest.mark.parametrize("arguments", COMMANDS)
@pytest.mark.parametrize("streams", LOST)
def test_a_stream_that_is_lost_changes_no_exit_code(
    arguments: tuple[str, ...], streams: str, tmp_path: Path
) -> None:
    result = subprocess.run(
        ["/bin/sh", "-c", f'"$@" {streams}', "sh", sys.executable, "-c", PROGRAM, *arguments],
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
    )
    expected = COMMANDS[arguments]
    if expected == 0 and ">/dev/full" in streams.replace("2>/dev/full", ""):
        expected = 3  # the answer itself is lost
        assert "err" in LOST[streams] or "error: No space left on device" in result.stderr
    assert result.returncode == expected
    assert "Traceback" not in result.stderr
    assert bool(result.stderr) == (expected != 0 and "err" not in LOST[streams])


def test_no_file_takes_the_number_of_a_stream(tmp_path: Path) -> None:
    """What a library writes to stdout would be in the middle of it."""
    code = (
        "import os, sys; from llama_edge.cli.console import open_closed_streams as open_them; "
        "open_them(); file = open('file', 'wb'); os.write(1, b'a remark'); print('another'); "
        "sys.exit(file.fileno() < 3)"
    )
    result = subprocess.run(
        ["/bin/sh", "-c", '"$@" <&- >&- 2>&-', "sh", sys.executable, "-c", code],
        cwd=tmp_path,
        check=False,
    )
    assert result.returncode == 0
    assert (tmp_path / "file").read_bytes() == b""


def test_a_current_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    command = [sys.executable, "-c", PROGRAM, "plan", "llama-3.2-1b"]
    result = subprocess.run(
        ["/bin/sh", "-c", 'cd gone; rmdir ../gone; "$@"', "sh", *command],
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 3
    assert result.stderr.startswith("error: the current folder cannot be used: No such file")
