"""Runtimes that misbehave in each way a native one can; run inside `ChildRuntime`'s child."""

import ctypes
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from llama_edge.core.artifact import Artifact
from llama_edge.core.errors import MissingComponentError, SessionError
from llama_edge.core.session import BlockTrace, FloatArray, OperatorTrace

VOCAB = 11


class FakeSession:
    """Counts tokens; some tokens are orders: 1 segfault, 2 hang, 3 print and abort, 4 a bug."""

    max_context = 16

    def __init__(self) -> None:
        self.used = 0

    def prefill(self, tokens: Sequence[int]) -> FloatArray:
        last: FloatArray = self.prefill_logits(tokens)[-1]
        return last

    def prefill_logits(self, tokens: Sequence[int]) -> FloatArray:
        for token in tokens:
            _obey(token)
        positions = np.arange(self.used, self.used + len(tokens), dtype=np.float32)
        self.used += len(tokens)
        logits: FloatArray = np.add.outer(positions, np.arange(VOCAB) / 16).astype(np.float32)
        return logits

    def decode(self, token: int) -> FloatArray:
        return self.prefill([token])

    def reset(self, keep: int = 0) -> None:
        self.used = 0


def _obey(token: int) -> None:
    if token == 1:
        ctypes.string_at(0)
    if token == 2:
        time.sleep(3600)
    if token == 3:
        os.write(1, b"filler\n" * 2000)
        sys.stderr.write("tensor shape is wrong: [1, 64] against [1, 65]\n")
        os.abort()
    if token == 4:
        raise ZeroDivisionError("a bug in the runtime's wrapper")
    if token >= VOCAB:
        raise SessionError(f"token {token} is outside the vocabulary of {VOCAB}")


class FakeRuntime:
    def __init__(self, name: str) -> None:
        self.name = name

    def version(self) -> str:
        return f"{self.name} 1.2.3"

    def open(self, artifact: Artifact) -> FakeSession:
        if self.name == "segfaults-at-load":
            ctypes.string_at(0)
        if self.name == "refuses":
            raise SessionError(f"{artifact.path}: method forward failed to load, error 0x1")
        if self.name.startswith("opens-"):
            _report(lambda: Path(self.name.removeprefix("opens-")).read_bytes())
        if self.name == "connects":
            _report(lambda: socket.create_connection(("127.0.0.1", 9)))
        if self.name == "starts":
            _report(lambda: subprocess.run(["/bin/true"], check=False))
        if self.name == "fills":
            bytearray(24 << 30)
        if self.name == "absent":
            raise MissingComponentError("runtime absent: its package is not installed")
        return FakeSession()

    def trace(self, artifact: Artifact, calls: Sequence[Sequence[int]]) -> BlockTrace:
        tokens = tuple(token for call in calls for token in call)
        rows = len(tokens)
        session = FakeSession()
        return BlockTrace(
            tokens=tokens,
            calls=tuple(len(call) for call in calls),
            hidden=tuple(np.full((rows, 4), layer, np.float32) for layer in range(3)),
            attention=tuple(np.full((rows, 6), layer, np.float32) for layer in range(2)),
            logits=np.stack([session.prefill(call) for call in calls]),
        )

    def trace_operators(
        self, artifact: Artifact, calls: Sequence[Sequence[int]], layers: Sequence[int]
    ) -> OperatorTrace:
        tokens = tuple(token for call in calls for token in call)
        rows = len(tokens)
        return OperatorTrace(
            tokens=tokens,
            calls=tuple(len(call) for call in calls),
            blocks={
                layer: {
                    "hidden": np.full((rows, 4), layer, np.float32),
                    "q_proj": np.full((rows, 6), -layer, np.float32),
                }
                for layer in layers
            },
            head={"norm": np.full((len(calls), 4), 0.5, np.float32)},
        )


def _report(act: Callable[[], object]) -> None:
    """Say what comes of it."""
    try:
        act()
    except OSError as error:
        raise SessionError(f"denied: {error.strerror}") from error
    raise SessionError("it was possible")


def make(name: str) -> FakeRuntime:
    return FakeRuntime(name)
