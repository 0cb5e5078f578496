"""The child's side: import one module, give up every right that it does not need, and answer.

Requests and replies are JSON, each after its length in eight bytes. A reply is
`{"answer": value}` or `{"refused": message}`.
"""

import importlib
import json
import os
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Final

from llama_edge.confined.kernel import deny_files, deny_system_calls

LENGTH_BYTES: Final = 8
MAX_REPLY_BYTES: Final = 1 << 30
#: The exit code of a child in which Python ran out of memory.
OUT_OF_MEMORY: Final = 97
#: What it may write into a file, which is what it says.
_MAX_FILE_BYTES: Final = 1 << 20


class RefusedError(Exception):
    """The input is not what it should be; the message says why."""


def main() -> None:
    """Serve until the parent closes the pipe; the module and the limits are the arguments."""
    limits = json.loads(sys.argv[2])
    try:
        _serve(sys.argv[1], limits["memory_bytes"], limits["cpu_s"])
    except MemoryError:
        os._exit(OUT_OF_MEMORY)


def _serve(module: str, memory_bytes: int, cpu_s: int) -> None:
    requests, replies = _own_pipes()
    answer: Callable[[dict[str, Any]], Any] = importlib.import_module(module).answer
    _limit(memory_bytes)
    deny_files(read=_program_folders())
    deny_system_calls()
    _send(replies, {"answer": None})
    while header := requests.read(LENGTH_BYTES):
        request = json.loads(requests.read(int.from_bytes(header, "little")))
        _allow_cpu(cpu_s)
        try:
            reply = {"answer": answer(request)}
        except RefusedError as error:
            reply = {"refused": str(error)}
        _send(replies, reply)


def _own_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Stdin and stdout, kept from libraries that would print or read there."""
    requests, replies = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.close(nothing)
    return os.fdopen(requests, "rb"), os.fdopen(replies, "wb")


def _send(replies: BinaryIO, reply: dict[str, Any]) -> None:
    data = json.dumps(reply, ensure_ascii=True).encode()
    replies.write(len(data).to_bytes(LENGTH_BYTES, "little") + data)
    replies.flush()


def _limit(memory_bytes: int) -> None:
    space = memory_bytes + _address_space()
    for limit, value in (
        (resource.RLIMIT_AS, space),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, _MAX_FILE_BYTES),
    ):
        with suppress(ValueError, OSError):  # macOS has no limit of address space
            resource.setrlimit(limit, (value, value))


def _address_space() -> int:
    """Bytes that are mapped now; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return 0
    return pages * resource.getpagesize()


def _allow_cpu(seconds: int) -> None:
    """The next request may take so much more; then a signal ends the process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = int(used.ru_utime + used.ru_stime) + 1 + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def _program_folders() -> tuple[Path, ...]:
    """Where Python and the libraries lie, of which some are loaded when first needed."""
    package = Path(__file__).parents[1]
    places = [*sys.path, sys.prefix, sys.base_prefix, "/lib", "/lib64", "/usr/lib", "/usr/lib64"]
    return tuple(folder for folder in (package, *map(Path, places)) if folder.is_dir())
