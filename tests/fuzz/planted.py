"""Readers with a fault each, which a campaign must find."""

import os
import time
from pathlib import Path

from llama_edge.core.errors import ArtifactError, UsageError
from tests.fuzz.readers import Reader


def _write(folder: Path) -> None:
    (folder / "file").write_bytes(b'{"size": 3, "name": "abc"}')


def _content(folder: Path) -> bytes:
    data = (folder / "file").read_bytes()
    if not data.startswith(b"{"):
        raise ArtifactError("begins with no brace")
    return data


def _good(folder: Path) -> None:
    _content(folder)


def _raises(folder: Path) -> None:
    if b'"name"' not in _content(folder):
        raise KeyError("name")


def _hangs(folder: Path) -> None:
    if not _content(folder).endswith(b"}"):
        time.sleep(60)


def _fills(folder: Path) -> None:
    if b"abc" not in _content(folder):
        bytearray(2 << 30)


def _aborts(folder: Path) -> None:
    if not _content(folder).isascii():
        os.abort()


def _usage(folder: Path) -> None:
    if b"3" not in _content(folder):
        raise UsageError("the exit code of a wrong command line")


GOOD = Reader(_write, ("file",), _good)
RAISES = Reader(_write, ("file",), _raises)
HANGS = Reader(_write, ("file",), _hangs, limit_s=0.2)
FILLS = Reader(_write, ("file",), _fills)
ABORTS = Reader(_write, ("file",), _aborts, confined=("another file",))
ABORTS_IN_CHILD = Reader(_write, ("file",), _aborts, confined=("file",))
USAGE = Reader(_write, ("file",), _usage)
UNREADABLE = Reader(lambda folder: (folder / "file").write_bytes(b"x"), ("file",), _good)
