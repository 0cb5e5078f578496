"""A native runtime in a child process: its crash or hang is an error here, not the end.

A lowered artifact can segfault without a word or never return. The child gets requests by pickle
and answers in plain JSON and raw arrays, so that a file that takes over the child gains nothing
from the parent's side of the pipe.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from math import prod
from multiprocessing import Pipe
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from llama_edge.core import errors
from llama_edge.core.artifact import Artifact, KVCacheDtype
from llama_edge.core.cache_state import CacheState
from llama_edge.core.errors import LlamaEdgeError, RuntimeCrashError, SessionError
from llama_edge.core.session import (
    BlockTrace,
    ClosesOnExit,
    FloatArray,
    OperatorTrace,
)
from llama_edge.runtimes.speed import SpeedPlan, SpeedReading

#: What a report shows of a dead child's output.
LAST_OUTPUT_BYTES: Final = 4096
_EXIT_GRACE_S: Final = 5.0
#: Of the arrays that a child sends: logits and traces are float32, a cache is what it is.
_DTYPES: Final = frozenset(("float32", "float16", "int8"))
_MAIN: Final = "llama_edge.runtimes.child_main"
#: What a child gets of the user's environment, where it is set: how to find programs, libraries and
#: the user's own packages, languages, threads. No other variable, since many hold tokens and keys.
PASSED_ON: Final = frozenset(
    (
        *("PATH", "HOME", "TMPDIR", "TZ", "LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE"),
        *("LD_LIBRARY_PATH", "LD_PRELOAD", "DYLD_LIBRARY_PATH", "DYLD_INSERT_LIBRARIES"),
        *("PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE", "PYTHONNOUSERSITE", "VIRTUAL_ENV"),
        *("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX", "PYTHONUTF8", "PYTHONWARNINGS"),
        *("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "OMP_PROC_BIND", "OMP_PLACES", "OMP_DYNAMIC"),
        *("GOMP_CPU_AFFINITY", "GOMP_SPINCOUNT", "KMP_AFFINITY", "KMP_BLOCKTIME"),
        *("MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"),
        *("GLIBC_TUNABLES", "MALLOC_ARENA_MAX", "MALLOC_TRIM_THRESHOLD_"),
        *("TOKENIZERS_PARALLELISM", "TORCH_CPP_LOG_LEVEL", "ORT_DISABLE_TELEMETRY"),
    )
)
#: Memory in pages of 2 MiB, where glibc and the kernel have them, unless the user says otherwise:
#: in small ones the same file decodes up to 60 % slower in one process than in the next.
_LARGE_PAGES: Final = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildTimeouts:
    """Seconds after which a request counts as hung; generous, for 3B on a slow laptop."""

    open_s: float = 300.0
    #: one prefill, decode or reset
    call_s: float = 300.0
    trace_s: float = 900.0


def _status(code: int) -> str:
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def child_environment() -> dict[str, str]:
    """The variables of a child: those of `PASSED_ON` that are set, and ours."""
    given = {name: value for name, value in os.environ.items() if name in PASSED_ON}
    return {**_LARGE_PAGES, **given}


class _Child:
    """The process, its pipe and the file that takes what it prints."""

    def __init__(self, factory: str, name: str) -> None:
        self._name = name
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `kill`)
        self._pipe, theirs = Pipe()
        with theirs:
            descriptor = theirs.fileno()
            # A session of its own: the terminal's Ctrl-C reaches the parent alone, which kills it.
            # -P: no module is taken from the folder that the user happens to be in.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-u", "-m", _MAIN, str(descriptor), factory, name],
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                pass_fds=[descriptor],
                start_new_session=True,
                env=child_environment(),
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def request(
        self, method: str, *arguments: object, timeout_s: float
    ) -> tuple[Any, list[NDArray[Any]]]:
        """Ask and wait; after any failure but a refusal the child is gone.

        Raises:
            SessionError: The child is closed.
            RuntimeCrashError: It died, or did not answer in time.
            LlamaEdgeError: What the runtime itself raised, same class and message.
        """
        if self._pipe.closed:
            raise SessionError(f"runtime {self._name}: the session is closed; open it again")
        answered = False
        try:
            header, arrays = self._exchange((method, arguments), timeout_s)
            answered = True
        except (EOFError, ConnectionError) as error:
            raise RuntimeCrashError(self._obituary(method)) from error
        except TimeoutError as error:
            output = self._last_output()
            raise RuntimeCrashError(
                f"runtime {self._name}: {method} did not answer within {timeout_s:g} s and was "
                f"stopped; {output}"
            ) from error
        finally:
            if not answered:
                self.kill()
        if "error" in header:
            raise _error_class(header["error"])(header["message"])
        return header["value"], arrays

    def _exchange(self, message: object, timeout_s: float) -> tuple[Any, list[NDArray[Any]]]:
        self._pipe.send(message)
        if not self._pipe.poll(timeout_s):
            raise TimeoutError
        header = json.loads(self._pipe.recv_bytes())
        arrays = [self._receive(name, tuple(shape)) for name, shape in header.get("arrays", ())]
        return header, arrays

    def _receive(self, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        if name not in _DTYPES:
            raise EOFError(f"an array of {name!r}")
        dtype = np.dtype(name)
        data = self._pipe.recv_bytes(dtype.itemsize * prod(shape))
        return np.frombuffer(data, dtype).reshape(shape)

    def _obituary(self, method: str) -> str:
        try:
            code = self._process.wait(_EXIT_GRACE_S)
        except subprocess.TimeoutExpired:
            return f"runtime {self._name}: {method} closed the pipe; {self._last_output()}"
        return f"runtime {self._name}: {method} {_status(code)}; {self._last_output()}"

    def _last_output(self) -> str:
        size = self._output.seek(0, 2)
        self._output.seek(max(0, size - LAST_OUTPUT_BYTES))
        text = self._output.read().decode(errors="replace").strip()
        return f"its last output:\n{text}" if text else "it printed nothing"

    def close(self) -> None:
        """End the child in good order, by force when it does not follow; safe to call twice."""
        self._pipe.close()
        try:
            self._process.wait(_EXIT_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self.kill()

    def kill(self) -> None:
        """End the child now and collect it, so that no zombie stays; safe to call twice."""
        self._pipe.close()
        self._process.kill()
        self._process.wait()
        self._output.close()


def _error_class(name: str) -> type[LlamaEdgeError]:
    found = getattr(errors, name, None)
    if isinstance(found, type) and issubclass(found, LlamaEdgeError):
        return found
    return SessionError


class ChildSession:
    """A `Session` whose work is done in the child; `close` ends the child."""

    def __init__(self, child: _Child, max_context: int, call_timeout_s: float) -> None:
        self._child = child
        self._max_context = max_context
        self._timeout_s = call_timeout_s

    @property
    def pid(self) -> int:
        """Process id of the child, for memory measurements."""
        return self._child.pid

    @property
    def max_context(self) -> int:
        """See `Session`."""
        return self._max_context

    def _logits(self, method: str, argument: object) -> FloatArray:
        _, arrays = self._child.request(method, argument, timeout_s=self._timeout_s)
        return arrays[0]

    def prefill(self, tokens: Sequence[int]) -> FloatArray:
        """See `Session`."""
        return self._logits("prefill", list(tokens))

    def prefill_logits(self, tokens: Sequence[int]) -> FloatArray:
        """See `Session`."""
        return self._logits("prefill_logits", list(tokens))

    def decode(self, token: int) -> FloatArray:
        """See `Session`."""
        return self._logits("decode", token)

    def measure(self, plan: SpeedPlan, vocab_size: int) -> SpeedReading:
        """Time one sequence in the child (`speed.time_session`).

        Raises:
            RuntimeCrashError: The runtime died, or did not answer in `call_s` a token and more.
        """
        timeout_s = self._timeout_s * (1 + plan.new_tokens)
        value, _ = self._child.request("measure", plan, vocab_size, timeout_s=timeout_s)
        return SpeedReading(**value)

    def peak_rss_bytes(self) -> int:
        """The child's peak so far, the interpreter and its libraries included."""
        value, _ = self._child.request("peak_rss_bytes", timeout_s=self._timeout_s)
        return int(value)

    def reset(self, keep: int = 0) -> None:
        """See `Session`."""
        self._child.request("reset", keep, timeout_s=self._timeout_s)

    def save(self) -> CacheState:
        """See `Session`."""
        value, arrays = self._child.request("save", timeout_s=self._timeout_s)
        return CacheState(
            kv_cache=KVCacheDtype(value["kv_cache"]),
            tokens=int(value["tokens"]),
            arrays=dict(zip(map(str, value["names"]), arrays, strict=True)),
        )

    def restore(self, state: CacheState) -> None:
        """See `Session`."""
        self._child.request("restore", state, timeout_s=self._timeout_s)

    def close(self) -> None:
        """See `Session`."""
        self._child.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # After an error, Ctrl-C included, nothing the child still does is of use.
        if error is None:
            self._child.close()
        else:
            self._child.kill()


class ChildRuntime(ClosesOnExit):
    """A `Runtime` that runs the runtime called `name` in a child process.

    A child that has answered `version` or `trace` is kept for the next request, since starting one
    takes seconds; `close` ends it. An opened session takes the child with it. With its first
    artifact a child gives up what only other artifacts and requests need (`child_main`), and those
    get a new one.

    Args:
        name: What the factory is called with.
        factory: `module:attribute` of a function from a name to a `Runtime`.
        timeouts: When a silent child counts as hung.
    """

    def __init__(
        self,
        name: str,
        *,
        factory: str = "llama_edge.runtimes:get_runtime",
        timeouts: ChildTimeouts = ChildTimeouts(),
    ) -> None:
        self.name = name
        self._factory = factory
        self._timeouts = timeouts
        self._idle: _Child | None = None
        #: what the waiting child is confined to; None: it has met no artifact
        self._confined_to: tuple[Path, bool] | None = None

    def _take_child(self, wanted: tuple[Path, bool] | None = None) -> _Child:
        """The waiting child, unless it gave up what is wanted now; or a new one."""
        if None not in (wanted, self._confined_to) and wanted != self._confined_to:
            self.close()
        child, self._idle = self._idle, None
        if child is None:
            self._confined_to = None
            child = _Child(self._factory, self.name)
        self._confined_to = self._confined_to or wanted
        return child

    def _ask(
        self, method: str, *arguments: object, timeout_s: float
    ) -> tuple[Any, list[NDArray[Any]]]:
        """One request to a child that is kept when it answers, and killed when it does not."""
        artifact = next((each for each in arguments if isinstance(each, Artifact)), None)
        starts_processes = method == "trace_operators"
        child = self._take_child(None if artifact is None else (artifact.root, starts_processes))
        answered = False
        try:
            reply = child.request(method, *arguments, timeout_s=timeout_s)
            answered = True
        finally:
            if answered:
                self._idle = child
            else:
                child.kill()
        return reply

    def peak_rss_bytes(self) -> int:
        """Of the child before it opens an artifact: what the interpreter and libraries take."""
        value, _ = self._ask("peak_rss_bytes", timeout_s=self._timeouts.open_s)
        return int(value)

    def version(self) -> str:
        """See `Runtime`."""
        value, _ = self._ask("version", timeout_s=self._timeouts.open_s)
        return str(value)

    def open(self, artifact: Artifact) -> ChildSession:
        """See `Runtime`; a crash or a hang while loading raises `RuntimeCrashError`."""
        max_context, _ = self._ask("open", artifact, timeout_s=self._timeouts.open_s)
        return ChildSession(self._take_child(), int(max_context), self._timeouts.call_s)

    def close(self) -> None:
        """End the child that waits for the next request; calling it twice is harmless."""
        if self._idle is not None:
            self._idle.kill()
            self._idle = None

    def trace(self, artifact: Artifact, calls: Sequence[Sequence[int]]) -> BlockTrace:
        """See `Runtime`; a crash or a hang raises `RuntimeCrashError`."""
        plain_calls = [list(call) for call in calls]
        counts, arrays = self._ask("trace", artifact, plain_calls, timeout_s=self._timeouts.trace_s)
        values = iter(arrays)

        def take(name: str) -> tuple[FloatArray, ...]:
            return tuple(islice(values, counts[name]))

        return BlockTrace(
            tokens=tuple(counts["tokens"]),
            calls=tuple(counts["calls"]),
            hidden=take("hidden"),
            attention=take("attention"),
            cache_rows=take("cache_rows"),
            logits=next(values),
        )

    def trace_operators(
        self, artifact: Artifact, calls: Sequence[Sequence[int]], layers: Sequence[int]
    ) -> OperatorTrace:
        """See `Runtime`; a crash or a hang raises `RuntimeCrashError`."""
        plain_calls = [list(call) for call in calls]
        names, arrays = self._ask(
            "trace_operators",
            artifact,
            plain_calls,
            list(layers),
            timeout_s=self._timeouts.trace_s,
        )
        values = iter(arrays)

        def take(keys: Sequence[str]) -> dict[str, FloatArray]:
            return dict(zip(keys, islice(values, len(keys)), strict=True))

        return OperatorTrace(
            tokens=tuple(names["tokens"]),
            calls=tuple(names["calls"]),
            blocks={layer: take(keys) for layer, keys in names["blocks"]},
            head=take(names["head"]),
        )
