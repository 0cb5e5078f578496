"""The child's side: import one module, give up every right that it does not need, and answer.

Requests and replies are JSON, each after its length in eight bytes. A reply is
`{"answer": value}` or `{"refused": message}`, and before it as many `{"event": value}` as `tell`
was called.
"""

import importlib
import json
import os
import resource
import sys
from collections.abc import Callable, Sequence
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


#: What libraries read of the system: other libraries, random numbers, what processor it is.
_SYSTEM: Final = (
    *("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache"),
    *("/dev/null", "/dev/random", "/dev/urandom", "/dev/zero"),
    *("/proc/cpuinfo", "/proc/meminfo", "/proc/self", "/sys/devices/system"),
)

_tell: list[Callable[[dict[str, Any]], None]] = []


def tell(event: object) -> None:
    """Let the parent know something before the answer: how far the work is.

    Args:
        event: A JSON value.
    """
    for send in _tell:
        send({"event": event})


class RefusedError(Exception):
    """The input is not what it should be; the message says why."""


def main() -> None:
    """Serve until the parent closes the pipe; the module and the limits are the arguments."""
    try:
        _serve(sys.argv[1], **json.loads(sys.argv[2]))
    except MemoryError:
        os._exit(OUT_OF_MEMORY)


def _serve(
    module: str,
    *,
    memory_bytes: int,
    cpu_s: int,
    readable: Sequence[str],
    scratch: str | None,
    children: bool,
) -> None:
    requests, replies = _own_pipes()
    answer: Callable[[dict[str, Any]], Any] = importlib.import_module(module).answer
    _tell[:] = [lambda event: _send(replies, event)]
    confine(
        memory_bytes=memory_bytes,
        file_bytes=_MAX_FILE_BYTES,
        readable=tuple(map(Path, readable)),
        writable=None if scratch is None else Path(scratch),
        children=children,
    )
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


def confine(
    *,
    memory_bytes: int,
    file_bytes: int,
    readable: Sequence[Path],
    writable: Path | None = None,
    children: bool = False,
) -> None:
    """Give up, for good, what this process does not need from now on.

    Args:
        memory_bytes: What it may take in addition to what it has.
        file_bytes: What a file that it writes may have.
        readable: Files and folders that it may open, besides those of Python and the system.
        writable: A folder that it may write into.
        children: Whether it may start processes.
    """
    _limit(memory_bytes, file_bytes)
    deny_files(read=(*_program_folders(), *readable), write=writable)
    deny_system_calls(children=children)


def _limit(memory_bytes: int, file_bytes: int) -> None:
    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: file_bytes}
    own = _data_bytes()
    if own is not None:  # elsewhere the limit counts something else, or nothing
        limits[resource.RLIMIT_DATA] = own + memory_bytes
    for limit, value in limits.items():
        with suppress(ValueError, OSError):  # a lower one is in force already
            resource.setrlimit(limit, (value, value))


def _data_bytes() -> int | None:
    """Memory of this process that no file stands behind; None where Linux does not tell."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    lines = (line.split() for line in status.splitlines() if line.startswith("VmData:"))
    return next((int(fields[1]) << 10 for fields in lines), None)


def _allow_cpu(seconds: int) -> None:
    """The next request may take so much more; then a signal ends the process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = int(used.ru_utime + used.ru_stime) + 1 + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def _program_folders() -> tuple[Path, ...]:
    """Where Python and the libraries are, of which some are loaded when first needed."""
    package = Path(__file__).parents[1]
    # In a checkout some of its folders are links.
    linked = [entry.resolve() for entry in package.iterdir() if entry.is_symlink()]
    places = [*sys.path, sys.prefix, sys.base_prefix, *_SYSTEM]
    return tuple(place for place in (package, *linked, *map(Path, places)) if place.exists())
