"""The parent's side: start a child, ask it, and say of what it died."""

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from llama_edge.confined import child

#: What the child needs of the environment, to find Python and the packages. Keys, tokens and
#: proxies of the user are not among it.
PASSED_ON: Final = ("HOME", "LANG", "LD_LIBRARY_PATH", "PATH", "PYTHONHOME", "PYTHONPATH")
_SHOWN_CHARACTERS: Final = 200
#: Time for the child to import its module, on a machine that does other things as well.
_START_S: Final = 120
_READ_BYTES: Final = 1 << 20


class ConfinedError(Exception):
    """The input was refused, or the child crashed on it or exceeded a limit; the message says how.

    Who asks knows the file and turns it into an error of that.
    """

    def __init__(self, message: str, *, refused: bool = False) -> None:
        super().__init__(message)
        #: in good order, by the program that reads it
        self.refused = refused


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one request may cost."""

    #: address space above what the child's own program takes
    memory_bytes: int
    cpu_s: int
    #: longer than `cpu_s`: the machine may be busy
    wall_s: int


@dataclass(frozen=True, slots=True)
class _Process:
    popen: subprocess.Popen[bytes]
    #: what the child and the libraries in it say; a file, which never fills up like a pipe
    said: IO[bytes]


class Worker:
    """A child process that answers requests about untrusted input, one at a time.

    It starts with the first request. After it has died, the next request starts another.

    Args:
        module: Has a function `answer(request: dict[str, Any]) -> Any` of JSON values, which raises
            `child.RefusedError` for input that it refuses.
        limits: Of each request.
        opening: A request that every child gets first, should the answers to others depend on it.
        descriptors: Open files that the child may read; they have the same numbers there.
        readable: Files and folders that it may open for reading, where the kernel can deny others.
        children: It may start processes, which have its limits at most, and write small files into
            a folder of its own: `TMPDIR`.
    """

    def __init__(
        self,
        module: str,
        limits: Limits,
        *,
        opening: Mapping[str, Any] | None = None,
        descriptors: tuple[int, ...] = (),
        readable: tuple[Path, ...] = (),
        children: bool = False,
    ) -> None:
        self._module = module
        self._limits = limits
        self._opening = opening
        self._descriptors = descriptors
        self._settings = {
            "memory_bytes": limits.memory_bytes,
            "cpu_s": limits.cpu_s,
            "readable": [str(path.absolute()) for path in readable],
            "children": children,
        }
        self._scratch = tempfile.TemporaryDirectory() if children else None
        self._process: _Process | None = None
        self._lock = threading.Lock()

    def ask(self, request: Mapping[str, Any], heard: Callable[[Any], None] | None = None) -> Any:  # noqa: ANN401
        """What `answer` gives for the request, in JSON values both ways.

        Args:
            request: For `answer`.
            heard: Called with each event that the child tells before it answers.

        Raises:
            ConfinedError: The input was refused, or the child crashed on it or exceeded a limit.
        """
        with self._lock:
            if self._process is None:
                self._open()
            return self._answer(request, heard)

    def open(self) -> Any:  # noqa: ANN401
        """Start a child, in place of one that runs; what it answers to the opening request.

        Raises:
            ConfinedError: As `ask`.
        """
        with self._lock:
            self._close()
            return self._open()

    def _open(self) -> Any:  # noqa: ANN401
        self._process = self._start()
        if self._opening is None:
            return None
        try:
            return self._answer(self._opening)
        except ConfinedError:
            self._close()
            raise

    def _answer(
        self, request: Mapping[str, Any], heard: Callable[[Any], None] | None = None
    ) -> Any:  # noqa: ANN401
        assert self._process is not None
        try:
            reply = self._exchange(self._process, request, heard)
        except BaseException as failure:
            last = self._end(self._process)
            self._process = None
            if isinstance(failure, _DiedError):
                raise ConfinedError(self._reason(failure, last)) from None
            raise
        if "refused" in reply:
            raise ConfinedError(visible(str(reply["refused"])), refused=True)
        return reply["answer"]

    def close(self) -> None:
        """End the child."""
        with self._lock:
            self._close()
            if self._scratch is not None:
                self._scratch.cleanup()

    def _close(self) -> None:
        if self._process is not None:
            self._end(self._process)
            self._process = None

    def __del__(self) -> None:
        self.close()

    def _start(self) -> _Process:
        said = _scratch_file()
        given = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        scratch = None if self._scratch is None else self._scratch.name
        settings = json.dumps({**self._settings, "scratch": scratch})
        given |= {} if scratch is None else {"TMPDIR": scratch}
        popen = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-m",
                child.__package__,
                self._module,
                settings,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            bufsize=0,
            env={**given, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"},
            pass_fds=self._descriptors,
            start_new_session=True,
        )
        process = _Process(popen, said)
        try:
            self._receive(process, time.monotonic() + _START_S)
        except _DiedError as failure:
            raise ConfinedError(self._reason(failure, self._end(process))) from None
        return process

    def _exchange(
        self,
        process: _Process,
        request: Mapping[str, Any],
        heard: Callable[[Any], None] | None,
    ) -> dict[str, Any]:
        deadline = time.monotonic() + self._limits.wall_s
        data = json.dumps(request, ensure_ascii=True).encode()
        self._send(process, len(data).to_bytes(child.LENGTH_BYTES, "little") + data, deadline)
        while "event" in (reply := self._receive(process, deadline)):
            if heard is not None:
                heard(reply["event"])
        return reply

    def _send(self, process: _Process, data: bytes, deadline: float) -> None:
        stream = process.popen.stdin
        assert stream is not None
        os.set_blocking(stream.fileno(), False)
        rest = memoryview(data)
        while rest:
            self._wait(stream, selectors.EVENT_WRITE, deadline)
            try:
                rest = rest[os.write(stream.fileno(), rest[:_READ_BYTES]) :]
            except BlockingIOError:
                continue
            except OSError as failure:
                raise _DiedError from failure

    def _receive(self, process: _Process, deadline: float) -> dict[str, Any]:
        stream = process.popen.stdout
        assert stream is not None
        size = int.from_bytes(self._read(stream, child.LENGTH_BYTES, deadline), "little")
        if size > child.MAX_REPLY_BYTES:
            raise _DiedError
        reply = json.loads(self._read(stream, size, deadline))
        assert isinstance(reply, dict)
        return reply

    def _read(self, stream: IO[bytes], size: int, deadline: float) -> bytes:
        pieces = bytearray()
        while len(pieces) < size:
            self._wait(stream, selectors.EVENT_READ, deadline)
            piece = os.read(stream.fileno(), min(size - len(pieces), _READ_BYTES))
            if not piece:
                raise _DiedError
            pieces += piece
        return bytes(pieces)

    @staticmethod
    def _wait(stream: IO[bytes], event: int, deadline: float) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(stream, event)
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise _DiedError(late=True)

    @staticmethod
    def _end(process: _Process) -> "_Last":
        """Let the child end, by force if it does not; what was left of it."""
        popen = process.popen
        for stream in (popen.stdin, popen.stdout):
            if stream is not None:
                stream.close()
        try:
            # A child that dies has closed its pipes a moment before; one that lives ends with them.
            popen.wait(1)
        except subprocess.TimeoutExpired:
            popen.kill()
            popen.wait()
        with process.said as said:
            said.seek(max(0, said.seek(0, os.SEEK_END) - _READ_BYTES))
            return _Last(popen.returncode, said.read())

    def _reason(self, failure: "_DiedError", last: "_Last") -> str:
        if failure.late:
            return f"it takes more than {self._limits.wall_s} s"
        if last.code == -signal.SIGXCPU:
            return f"it takes more than {self._limits.cpu_s} s of processor time"
        if last.code == child.OUT_OF_MEMORY:
            return f"it takes more than {self._limits.memory_bytes >> 20} MiB of memory"
        how = (
            f"was ended by {signal.Signals(-last.code).name}"
            if last.code < 0
            else f"ended with exit code {last.code}"
        )
        return f"the program that reads it {how} ({last.words()})"


@dataclass(frozen=True, slots=True)
class _Last:
    """How a child ended, and what it had said."""

    code: int
    output: bytes

    def words(self) -> str:
        """The last line that tells something."""
        lines = self.output.decode(errors="replace").split("\n")
        # A panic of a Rust library ends with a note for whoever debugs the library.
        telling = [line for line in lines if line.strip() and not line.startswith("note:")]
        return visible(telling[-1] if telling else "it said nothing")


class _DiedError(Exception):
    """The child is gone, or as good as gone."""

    def __init__(self, *, late: bool = False) -> None:
        super().__init__()
        self.late = late


def visible(text: str) -> str:
    """One line of moderate length without control characters."""
    line = "".join(c if c.isprintable() else "?" for c in text)
    return line if len(line) <= _SHOWN_CHARACTERS else f"{line[:_SHOWN_CHARACTERS]}..."


def _scratch_file() -> IO[bytes]:
    """A file without a name, in memory where the system has such."""
    if sys.platform == "linux":
        return os.fdopen(os.memfd_create("said", os.MFD_CLOEXEC), "w+b")
    return tempfile.TemporaryFile()
