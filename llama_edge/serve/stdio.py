"""A bundle after a line protocol, for programs in other languages: the apps' text path, say.

One JSON object a line, in and out. Requests: `{"op": "open"}`; `{"op": "generate", "tokens": [...],
"ends": [...]}` with `max_new_tokens`, `temperature`, `top_p`, `top_k` and `seed` where wanted;
`{"op": "cancel"}` while a generation runs; `{"op": "reset"}`; `{"op": "close"}`. Replies:
`{"opened": {"max_context": N}}`, `{"token": id}` for each new one, `{"done": "eos"}` with the
reason, `{"reset": true}`, `{"error": {...}}`. Text never passes: template, tokenizer and streaming
are the caller's, and that is what this is for.
"""

import json
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, BinaryIO, Final, Protocol, Self, TextIO

import msgspec

from llama_edge.core.errors import LlamaEdgeError, UsageError
from llama_edge.core.json_files import parse_json_object
from llama_edge.core.session import Session
from llama_edge.text.generate import (
    DEFAULT_MAX_NEW_TOKENS,
    GREEDY,
    Generation,
    SamplingConfig,
)

#: A line of a whole context of token ids has under one MiB.
MAX_LINE_BYTES: Final = 4 << 20
#: Requests that wait; beyond them, the stream is not read until one is answered.
MAX_WAITING: Final = 64
CANCELLED: Final = "cancelled"

Reply = Callable[[Mapping[str, Any]], None]
_Id = Annotated[int, msgspec.Meta(ge=0)]


class _Request(msgspec.Struct, frozen=True, tag_field="op", forbid_unknown_fields=True):
    """What `op` says decides which fields there are."""


class _Open(_Request, frozen=True, tag="open"):
    pass


class _Reset(_Request, frozen=True, tag="reset"):
    pass


class _Cancel(_Request, frozen=True, tag="cancel"):
    pass


class _Close(_Request, frozen=True, tag="close"):
    pass


class _Generate(_Request, frozen=True, tag="generate"):
    tokens: tuple[_Id, ...]
    ends: tuple[_Id, ...]
    max_new_tokens: Annotated[int, msgspec.Meta(ge=1)] = DEFAULT_MAX_NEW_TOKENS
    temperature: float = GREEDY.temperature
    top_p: float = GREEDY.top_p
    top_k: int = GREEDY.top_k
    seed: int = GREEDY.seed


_AnyRequest = _Open | _Generate | _Cancel | _Reset | _Close
_OPERATIONS: Final = ("open", "generate", "cancel", "reset", "close")


class OpensSession(Protocol):
    """What `serve` runs."""

    def open(self) -> Session:
        """Load the artifact."""
        ...


@dataclass(frozen=True, slots=True)
class _Received:
    """A request, or why it is none."""

    #: the first has 1
    number: int
    content: _AnyRequest | UsageError


class _Requests:
    """Lines of a stream, read by a thread of their own: `cancel` is heard during a generation."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._received: queue.Queue[_Received | None] = queue.Queue(MAX_WAITING)
        self._count = 0
        self._cancelled = 0
        self._thread = threading.Thread(target=self._read, daemon=True)

    def start(self) -> Self:
        """Begin to read; the thread is a daemon, since it may wait for a line that never comes."""
        self._thread.start()
        return self

    def is_cancelled(self, received: _Received) -> bool:
        """Whether a `cancel` came after it; one that comes before it is not for it."""
        return received.number <= self._cancelled

    def _read(self) -> None:
        try:
            while line := self._stream.readline(MAX_LINE_BYTES + 1):
                content = _parse(line) if len(line) <= MAX_LINE_BYTES else self._pass_over(line)
                if isinstance(content, _Cancel):
                    self._cancelled = self._count
                    continue
                self._count += 1
                self._received.put(_Received(self._count, content))
        finally:
            self._received.put(None)

    def _pass_over(self, line: bytes) -> UsageError:
        """Read the rest of a line that is too long, and keep none of it."""
        size = len(line)
        while line and not line.endswith(b"\n"):
            line = self._stream.readline(MAX_LINE_BYTES)
            size += len(line)
        return UsageError(
            f"the request is a line of {size} bytes; at most {MAX_LINE_BYTES} are read"
        )

    def __iter__(self) -> Iterator[_Received]:
        while (received := self._received.get()) is not None:
            yield received


def _parse(line: bytes) -> _AnyRequest | UsageError:
    shown = line[:60].decode("utf-8", "backslashreplace")
    try:
        value = parse_json_object(line, f"the request {shown!r}", UsageError)
        request: _AnyRequest = msgspec.convert(value, _AnyRequest)
    except UsageError as error:
        return error
    except msgspec.ValidationError as error:
        if value.get("op") in _OPERATIONS:
            return UsageError(f"the request {shown!r}: {error}")
        return UsageError(
            f"op is {str(value.get('op'))[:60]!r}; {', '.join(_OPERATIONS)} are the operations"
        )
    return request


def serve(model: OpensSession, requests: BinaryIO, replies: TextIO) -> None:
    """Answer requests until `close` or the end of the stream; an error is a reply, not the end."""

    def reply(value: Mapping[str, Any]) -> None:
        replies.write(json.dumps(value) + "\n")
        replies.flush()

    with model.open() as session:
        lines = _Requests(requests).start()
        for received in lines:
            try:
                match received.content:
                    case UsageError() as error:
                        raise error
                    case _Close():
                        return
                    case _Open():
                        reply({"opened": {"max_context": session.max_context}})
                    case _Reset():
                        session.reset()
                        reply({"reset": True})
                    case _Generate() as request:
                        reason = _generate(
                            request, session, reply, partial(lines.is_cancelled, received)
                        )
                        reply({"done": reason})
            except LlamaEdgeError as error:
                reply({"error": {"class": type(error).__name__, "message": str(error)}})


def _generate(
    request: _Generate, session: Session, reply: Reply, is_cancelled: Callable[[], bool]
) -> str:
    """Why the answer ended."""
    session.reset()
    generation = Generation(
        session,
        request.tokens,
        eos_token_ids=request.ends,
        max_new_tokens=request.max_new_tokens,
        sampling=SamplingConfig(
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            seed=request.seed,
        ),
    )
    if is_cancelled():
        return CANCELLED
    for token in generation:
        if is_cancelled():
            return CANCELLED
        reply({"token": token})
    reason = generation.stop_reason
    assert reason is not None, "a generation that has ended knows why"
    return reason.value
