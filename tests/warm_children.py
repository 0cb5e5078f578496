"""Runtimes' processes, kept from one test to the next: starting one costs seconds, most of a test.

Every artifact is still loaded and run in a process of its own, through the real pipe. Only who
starts that process changes, and only for the runtimes of the registry: tests of `ChildRuntime`
itself bring their own factories, and get a new process each time.
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from llama_edge.core.errors import SessionError
from llama_edge.core.session import FloatArray
from llama_edge.runtimes.child import _Child

_REGISTRY = "llama_edge.runtimes:get_runtime"
#: The request before which a child keeps the right to start processes.
_NEEDS_PROCESSES = "trace_operators"


class _Lease:
    """A child for one user, who cannot tell it from a new one; then it is the next one's."""

    def __init__(self, name: str, pool: dict[str, list[_Child]]) -> None:
        self._name = name
        self._pool = pool
        self._take("")
        self._over = False
        self._answered = True

    def _take(self, right: str) -> None:
        """A child that has, or had when it met its first artifact, the right to do it."""
        self._idle = self._pool[self._name + right]
        self._child = self._idle.pop() if self._idle else _Child(_REGISTRY, self._name)

    @property
    def pid(self) -> int:
        return self._child.pid

    def request(
        self, method: str, *arguments: object, timeout_s: float
    ) -> tuple[object, list[FloatArray]]:
        if self._over:
            raise SessionError("the session is closed; open it again")
        if method == _NEEDS_PROCESSES and self._idle is self._pool[self._name]:
            self._idle.append(self._child)
            self._take(method)
        self._answered = False
        reply = self._child.request(method, *arguments, timeout_s=timeout_s)
        self._answered = True
        return reply

    def close(self) -> None:
        """Whoever crashed, hung or refused is not given to anybody else."""
        if self._over:
            return
        self._over = True
        if self._answered:
            self._idle.append(self._child)
        else:
            self._child.kill()

    kill = close


@contextmanager
def warm_children() -> Iterator[None]:
    """While it lasts, a runtime's process that has done its work waits for the next artifact."""
    idle: dict[str, list[_Child]] = defaultdict(list)

    def lend(factory: str, name: str) -> _Child | _Lease:
        if factory != _REGISTRY:
            return _Child(factory, name)
        return _Lease(name, idle)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llama_edge.runtimes.child._Child", lend)
        yield
    for child in (child for children in idle.values() for child in children):
        child.kill()
