"""Something that holds a runtime, which is opened again after that has died."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from llama_edge.core.errors import RuntimeCrashError
from llama_edge.core.session import ClosesOnExit

_T = TypeVar("_T", bound=ClosesOnExit)


class Kept(ClosesOnExit, Generic[_T]):
    """Opened at once, so that what cannot be opened is told at the beginning."""

    def __init__(self, opens: Callable[[], _T]) -> None:
        self._opens = opens
        self._opened: _T | None = opens()

    @contextmanager
    def use(self) -> Iterator[_T]:
        """What is open; where the runtime dies in the meantime, it is closed.

        Raises:
            RuntimeCrashError: The runtime has died.
            LlamaEdgeError: It cannot be opened again.
        """
        if self._opened is None:
            self._opened = self._opens()
        try:
            yield self._opened
        except RuntimeCrashError:
            self.close()
            raise

    def close(self) -> None:
        """Close what is open."""
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.close()
