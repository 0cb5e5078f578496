"""What a child of the tests does with a request: everything that it must not be able to do."""

import ctypes
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from llama_edge.confined.child import RefusedError, tell


def answer(request: dict[str, Any]) -> Any:  # noqa: ANN401
    return _DEEDS[request["do"]](request.get("with"))


def _refuse(message: str) -> None:
    raise RefusedError(message)


def _count(to: int) -> int:
    for number in range(to):
        tell(number)
    return to


def _crash(_: object) -> None:
    ctypes.string_at(0)


def _loop(_: object) -> None:
    while True:
        pass


def _wait(_: object) -> None:
    threading.Event().wait()


def _fill(size: int) -> int:
    return len(bytearray(size))


def _say(text: str) -> None:
    print(text)  # noqa: T201
    os.write(1, text.encode())


def _thread(_: object) -> int:
    found: list[int] = []
    thread = threading.Thread(target=found.append, args=(3,))
    thread.start()
    thread.join()
    return found[0]


def _read(path: str) -> str:
    return Path(path).read_text()


def _write(path: str) -> int:
    return Path(path).write_text("x")


def _connect(port: int) -> None:
    socket.create_connection(("127.0.0.1", port)).close()


def _fork(_: object) -> int:
    child = os.fork()
    if child == 0:
        os._exit(0)
    return child


def _run(_: object) -> int:
    return subprocess.run(["/bin/true"], check=False).returncode


def _descriptor(number: int) -> str:
    return os.pread(number, 100, 0).decode()


_DEEDS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "echo": lambda value: value,
    "count": _count,
    "refuse": _refuse,
    "crash": _crash,
    "exit": lambda code: os._exit(code),
    "loop": _loop,
    "wait": _wait,
    "fill": _fill,
    "say": _say,
    "thread": _thread,
    "read": _read,
    "write": _write,
    "connect": _connect,
    "fork": _fork,
    "run": _run,
    "environment": lambda _: dict(os.environ),
    "descriptor": _descriptor,
}
