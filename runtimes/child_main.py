"""The child's side of `ChildRuntime`: one native runtime, one artifact, requests over a pipe.

Started as `python -m llama_edge.runtimes.child_main FD FACTORY NAME`. A `LlamaEdgeError` goes
back as a message; anything else ends this process, and the parent reports its last output.
"""

import importlib
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from llama_edge.confined.child import confine
from llama_edge.core.artifact import Artifact
from llama_edge.core.cache_state import CacheState
from llama_edge.core.errors import LlamaEdgeError
from llama_edge.core.regular import real_path
from llama_edge.core.session import BlockTrace, FloatArray, Runtime, Session
from llama_edge.core.walk import walk
from llama_edge.runtimes.machine import peak_rss_bytes
from llama_edge.runtimes.speed import SpeedPlan, time_session

#: Activations, caches, the operators' own buffers, and a trace of them.
_BASE_MEMORY_BYTES: Final = 8 << 30
#: Quantized values become float32 in the slowest of the runtimes, and are copied once.
_MEMORY_PER_BYTE: Final = 16

#: JSON-ready values, and arrays that follow them as raw bytes
Reply = tuple[Any, Sequence[NDArray[Any]]]


class _Worker:
    """Answers one request after the other; the method names are the requests."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._session: Session | None = None
        self._is_confined = False

    def _confine(self, artifact: Artifact, *, children: bool = False) -> None:
        """Before the first foreign file is opened; later ones are this artifact's as well."""
        if self._is_confined:
            return
        self._runtime.version()  # imports the vendor's library, which may look around
        root = real_path(artifact.root)
        sizes = sum(entry.status.st_size for entry in walk(root) if entry.is_file)
        confine(
            memory_bytes=_BASE_MEMORY_BYTES + _MEMORY_PER_BYTE * sizes,
            file_bytes=_BASE_MEMORY_BYTES,
            readable=(root,),
            writable=Path(tempfile.gettempdir()),
            children=children,
        )
        self._is_confined = True

    @property
    def session(self) -> Session:
        assert self._session is not None, "a request came before open"
        return self._session

    def version(self) -> Reply:
        return self._runtime.version(), ()

    def open(self, artifact: Artifact) -> Reply:
        self._confine(artifact)
        self._session = self._runtime.open(artifact)
        return self._session.max_context, ()

    def trace(self, artifact: Artifact, calls: Sequence[Sequence[int]]) -> Reply:
        self._confine(artifact)
        trace: BlockTrace = self._runtime.trace(artifact, calls)
        parts = {
            "hidden": trace.hidden,
            "attention": trace.attention,
            "cache_rows": trace.cache_rows,
        }
        counts = {name: len(arrays) for name, arrays in parts.items()}
        arrays = [array for part in parts.values() for array in part]
        value = {"tokens": trace.tokens, "calls": trace.calls, **counts}
        return value, _floats((*arrays, trace.logits))

    def trace_operators(
        self, artifact: Artifact, calls: Sequence[Sequence[int]], layers: Sequence[int]
    ) -> Reply:
        # ExecuTorch's compiler of flatbuffers is a program of its own.
        self._confine(artifact, children=True)
        trace = self._runtime.trace_operators(artifact, calls, layers)
        value = {
            "tokens": trace.tokens,
            "calls": trace.calls,
            "blocks": [[layer, [*block]] for layer, block in trace.blocks.items()],
            "head": [*trace.head],
        }
        arrays = [array for block in trace.blocks.values() for array in block.values()]
        return value, _floats((*arrays, *trace.head.values()))

    def prefill(self, tokens: Sequence[int]) -> Reply:
        return None, (self.session.prefill(tokens),)

    def prefill_logits(self, tokens: Sequence[int]) -> Reply:
        return None, (self.session.prefill_logits(tokens),)

    def decode(self, token: int) -> Reply:
        return None, (self.session.decode(token),)

    def measure(self, plan: SpeedPlan, vocab_size: int) -> Reply:
        return asdict(time_session(self.session, plan, vocab_size)), ()

    def peak_rss_bytes(self) -> Reply:
        return peak_rss_bytes(), ()

    def reset(self, keep: int) -> Reply:
        self.session.reset(keep)
        return None, ()

    def save(self) -> Reply:
        state = self.session.save()
        value = {"kv_cache": state.kv_cache, "tokens": state.tokens, "names": [*state.arrays]}
        return value, [*state.arrays.values()]

    def restore(self, state: CacheState) -> Reply:
        self.session.restore(state)
        return None, ()


def _floats(arrays: Sequence[NDArray[Any]]) -> list[FloatArray]:
    """A trace may look at integers."""
    return [array.astype(np.float32, copy=False) for array in arrays]


def _send(connection: Connection, value: Any, arrays: Sequence[NDArray[Any]]) -> None:  # noqa: ANN401
    """JSON first, then each array's bytes: never a pickle, for this process ran a foreign file."""
    arrays = [np.ascontiguousarray(array) for array in arrays]
    forms = [(array.dtype.name, array.shape) for array in arrays]
    header = {"value": value, "arrays": forms}
    connection.send_bytes(json.dumps(header).encode())
    for array in arrays:
        connection.send_bytes(array.tobytes())


def serve(connection: Connection, runtime: Callable[[], Runtime]) -> None:
    """Answer until the parent closes its end."""
    worker: _Worker | None = None
    while True:
        try:
            method, arguments = connection.recv()
        except EOFError:
            return
        try:
            worker = worker or _Worker(runtime())
            value, arrays = getattr(worker, method)(*arguments)
        except LlamaEdgeError as error:
            header = {"error": type(error).__name__, "message": str(error)}
            connection.send_bytes(json.dumps(header).encode())
        else:
            _send(connection, value, arrays)


def main() -> None:
    """Resolve the factory and serve the inherited pipe."""
    descriptor, factory, name = sys.argv[1:]
    module, attribute = factory.split(":")
    make = getattr(importlib.import_module(module), attribute)
    with Connection(int(descriptor)) as connection:
        serve(connection, lambda: make(name))


if __name__ == "__main__":
    main()
