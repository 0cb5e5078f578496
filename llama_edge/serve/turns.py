"""One thread that computes, and a queue before it: each request waits for its turn."""

import asyncio
import math
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from http import HTTPStatus
from typing import Final, TypeVar

from llama_edge.core.errors import UsageError
from llama_edge.serve.errors import ApiError

_T = TypeVar("_T")

DEFAULT_MAX_WAITING: Final = 64
#: What a client is told to wait, at most: OpenAI's clients follow no longer time.
_MAX_RETRY_S: Final = 60
#: How much the last turn says about the next one, next to those before it.
_WEIGHT: Final = 0.3


class Turns:
    """Turns of one thread, in the order in which they were asked for.

    All methods are called on one event loop.

    Args:
        max_waiting: Turns that may wait for the one that runs.

    Raises:
        UsageError: That is none.
    """

    def __init__(self, max_waiting: int = DEFAULT_MAX_WAITING) -> None:
        if max_waiting < 1:
            raise UsageError(f"the queue has {max_waiting} places; it must have 1 or more")
        self._max_waiting = max_waiting
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="turns")
        self._turns: set[Future[None]] = set()
        self._seconds = 1.0
        self._stopped = False

    @property
    def waiting(self) -> int:
        """Turns that wait for the one that runs."""
        return sum(not turn.running() for turn in self._turns)

    @property
    def running(self) -> bool:
        """Whether the thread is at work."""
        return any(turn.running() for turn in self._turns)

    async def take(self, work: Callable[[], Iterable[_T]]) -> AsyncGenerator[_T, None]:
        """What the work yields, as it comes.

        Whoever closes the generator gives the turn up: it leaves the queue, or ends before its next
        item. The thread does not wait for a reader that is slow.

        Args:
            work: Called in the thread. Its errors are raised here.

        Raises:
            ApiError: The queue is full, or the server is going to end.
        """
        if self._stopped:
            raise stopping()
        if len(self._turns) > self._max_waiting:
            raise self._busy()
        loop = asyncio.get_running_loop()
        made: asyncio.Queue[_T | None] = asyncio.Queue()
        left = threading.Event()

        def run() -> None:
            began = time.monotonic()
            try:
                for item in work():
                    loop.call_soon_threadsafe(made.put_nowait, item)
                    if left.is_set():
                        return
            finally:
                loop.call_soon_threadsafe(self._measure, time.monotonic() - began)

        turn = self._executor.submit(run)
        self._turns.add(turn)
        turn.add_done_callback(lambda _: loop.call_soon_threadsafe(self._ended, turn, made))
        try:
            while (item := await made.get()) is not None:
                yield item
            if turn.cancelled():
                raise stopping()
            turn.result()
        finally:
            left.set()
            turn.cancel()

    def stop(self) -> None:
        """Send those away that wait; the turn that runs goes on."""
        self._stopped = True
        for turn in self._turns:
            turn.cancel()

    def close(self) -> None:
        """Wait for the turn that runs, whose reader has left."""
        self.stop()
        self._executor.shutdown()

    def _ended(self, turn: Future[None], made: "asyncio.Queue[_T | None]") -> None:
        self._turns.discard(turn)
        made.put_nowait(None)

    def _measure(self, seconds: float) -> None:
        self._seconds += _WEIGHT * (seconds - self._seconds)

    def _busy(self) -> ApiError:
        seconds = min(max(1, math.ceil(self._seconds * self._max_waiting / 2)), _MAX_RETRY_S)
        return ApiError(
            f"{self._max_waiting} requests are waiting, and one model answers them one by one; try "
            f"again in {seconds} s, or start the server with a larger --queue",
            status=HTTPStatus.TOO_MANY_REQUESTS,
            code="rate_limit_exceeded",
            headers={"retry-after": str(seconds)},
        )


def stopping() -> ApiError:
    """For requests that come too late."""
    return ApiError(
        "the server is going to end", status=HTTPStatus.SERVICE_UNAVAILABLE, code="stopping"
    )
