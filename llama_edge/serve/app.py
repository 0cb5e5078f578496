"""The HTTP interface: paths, bodies in, responses and streams out."""

import asyncio
import hashlib
import secrets
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Coroutine,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, Protocol, TypeVar

from msgspec import UNSET
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from llama_edge.bundle.manifest import Manifest
from llama_edge.core.errors import LlamaEdgeError
from llama_edge.serve.access import Access, AccessConfig
from llama_edge.serve.calls import whole_calls
from llama_edge.serve.errors import JSON_TYPE, ApiError
from llama_edge.serve.openapi import document
from llama_edge.serve.pieces import Ended, Item, Piece
from llama_edge.serve.replies import (
    DONE,
    Choice,
    Chunk,
    ChunkChoice,
    Completion,
    Delta,
    Finish,
    Health,
    Logprobs,
    Message,
    ModelCard,
    ModelList,
    TokenLogprob,
    Usage,
    encode,
    event,
)
from llama_edge.serve.requests import MAX_BODY_BYTES, ChatCompletionRequest, parse_request
from llama_edge.serve.turns import Turns

_T = TypeVar("_T")

#: For the whole body; a client on this machine or network takes a fraction of a second.
BODY_S: Final = 30.0
#: A body that is too large is read to its end up to here: a client that still sends when the
#: connection is closed does not see why.
MAX_PASSED_OVER_BYTES: Final = 64 << 20
_CLOSE: Final = {"connection": "close"}
_STREAM_HEADERS: Final = {"cache-control": "no-cache", "x-accel-buffering": "no"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What is served.

    Args:
        name: By which requests ask for the model.
        manifest: Of its bundle.
    """

    name: str
    fingerprint: str
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def of(cls, manifest: Manifest, name: str) -> "Served":
        """A bundle's."""
        hashes = "".join(entry.sha256 for entry in manifest.files)
        return cls(name=name, fingerprint=f"fp_{hashlib.sha256(hashes.encode()).hexdigest()[:10]}")

    @property
    def card(self) -> ModelCard:
        """As the list of models shows it."""
        return ModelCard(id=self.name, created=self.created)

    def check(self, name: str, param: str | None) -> None:
        """Whether a request is for it.

        Raises:
            ApiError: It is not.
        """
        if name != self.name:
            raise ApiError(
                f"the model {name[:100]!r} is not served here; {self.name!r} is",
                status=HTTPStatus.NOT_FOUND,
                param=param,
                code="model_not_found",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Frame:
    """What all chunks of an answer have in common."""

    served: Served
    wants_usage: bool
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def completion(self, choice: Choice, usage: Usage) -> bytes:
        """The whole answer."""
        return encode(
            Completion(
                id=self.id,
                created=self.created,
                model=self.served.name,
                system_fingerprint=self.served.fingerprint,
                choices=(choice,),
                usage=usage,
            )
        )

    def chunk(
        self,
        delta: Delta,
        logprobs: tuple[TokenLogprob, ...] = (),
        finish: Finish | None = None,
    ) -> bytes:
        """An event with more of the answer."""
        given = Logprobs(content=logprobs) if logprobs else None
        return self._event(ChunkChoice(delta=delta, logprobs=given, finish_reason=finish))

    def usage(self, usage: Usage) -> bytes:
        """The event with the numbers of tokens."""
        return self._event(usage=usage)

    def _event(self, *choices: ChunkChoice, usage: Usage | None = None) -> bytes:
        chunk = Chunk(
            id=self.id,
            created=self.created,
            model=self.served.name,
            system_fingerprint=self.served.fingerprint,
            choices=choices,
            usage=usage if self.wants_usage else UNSET,
        )
        return event(encode(chunk))


class AnswersRequests(Protocol):
    """What is asked: `Answers`."""

    def answer(self, request: ChatCompletionRequest) -> Iterator[Item]:
        """The pieces as they come, one at least, and how it ended."""
        ...


class Endpoint:
    """What the paths do.

    Args:
        served: The model.
        answers: Its answers; called in the thread of `turns`.
        turns: Who is next.
        told: Hears errors that are the server's own.
    """

    def __init__(
        self,
        served: Served,
        answers: AnswersRequests,
        turns: Turns,
        told: Callable[[LlamaEdgeError], None],
    ) -> None:
        self._served = served
        self._answers = answers
        self._turns = turns
        self._told = told

    async def models(self, request: Request) -> Response:
        """`GET /v1/models`."""
        del request
        return _json(encode(ModelList(data=(self._served.card,))))

    async def model(self, request: Request) -> Response:
        """`GET /v1/models/{model}`."""
        self._served.check(request.path_params["model"], "model")
        return _json(encode(self._served.card))

    async def health(self, request: Request) -> Response:
        """`GET /health`."""
        del request
        return _json(encode(Health(running=self._turns.running, waiting=self._turns.waiting)))

    async def openapi(self, request: Request) -> Response:
        """`GET /openapi.json`."""
        del request
        return _json(encode(document()))

    async def complete(self, request: Request) -> Response:
        """`POST /v1/chat/completions`."""
        asked = parse_request(await _body(request))
        self._served.check(asked.model, "model")
        pieces = self._turns.take(lambda: self._answers.answer(asked))
        frame = _Frame(served=self._served, wants_usage=asked.wants_usage)
        if not asked.stream:
            return _json(await _while_connected(request, self._whole(pieces, frame, asked)))
        # Errors before the first piece are responses of their own.
        first = await _while_connected(request, self._first(pieces))
        return _Stream(self._events(first, pieces, frame), pieces)

    async def _first(self, pieces: AsyncGenerator[Item, None]) -> Item:
        try:
            return await anext(pieces)
        except LlamaEdgeError as error:
            raise self._internal(error) from error

    async def _whole(
        self, pieces: AsyncGenerator[Item, None], frame: _Frame, asked: ChatCompletionRequest
    ) -> bytes:
        got = list[Piece]()
        async with aclosing(pieces):
            try:
                async for piece in pieces:
                    if isinstance(piece, Ended):
                        choice = _choice(got, piece.finish, logprobs=bool(asked.logprobs))
                        return frame.completion(choice, piece.usage)
                    got.append(piece)
            except LlamaEdgeError as error:
                raise self._internal(error) from error
        raise AssertionError("the last item of an answer says how it ended")

    async def _events(
        self, first: Item, pieces: AsyncGenerator[Item, None], frame: _Frame
    ) -> AsyncIterator[bytes]:
        yield frame.chunk(Delta(role="assistant", content="", refusal=None))
        try:
            for data in _shown(first, frame):
                yield data
            async for piece in pieces:
                for data in _shown(piece, frame):
                    yield data
        except LlamaEdgeError as error:
            yield event(self._internal(error).body)
        except ApiError as error:
            yield event(error.body)
        else:
            yield DONE

    def _internal(self, error: LlamaEdgeError) -> ApiError:
        self._told(error)
        return ApiError(str(error), status=HTTPStatus.INTERNAL_SERVER_ERROR)


def _choice(pieces: Sequence[Piece], finish: Finish, *, logprobs: bool) -> Choice:
    """The whole answer."""
    text = "".join(piece.text for piece in pieces)
    calls = whole_calls(delta for piece in pieces for delta in piece.calls)
    refusal = next((piece.refusal for piece in pieces if piece.refusal is not None), None)
    read = tuple(entry for piece in pieces for entry in piece.logprobs)
    is_empty = not text and (bool(calls) or refusal is not None)
    message = Message(
        content=None if is_empty else text,
        refusal=refusal,
        tool_calls=calls or UNSET,
    )
    return Choice(
        message=message,
        logprobs=Logprobs(content=read) if logprobs else None,
        finish_reason=finish,
    )


class _Stream(StreamingResponse):
    """A response that gives its turn up when it ends, however that may be."""

    def __init__(self, events: AsyncIterator[bytes], pieces: AsyncGenerator[Item, None]) -> None:
        super().__init__(events, 200, _STREAM_HEADERS, "text/event-stream")
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        async with aclosing(self._pieces):
            await super().__call__(scope, receive, send)


def _shown(item: Item, frame: _Frame) -> Iterator[bytes]:
    """The events of an item."""
    match item:
        case Piece(text=text, logprobs=logprobs, calls=calls, refusal=refusal):
            if text or logprobs:
                yield frame.chunk(Delta(content=text), logprobs)
            if calls:
                yield frame.chunk(Delta(tool_calls=calls))
            if refusal is not None:
                yield frame.chunk(Delta(refusal=refusal))
        case Ended(finish=finish, usage=usage):
            yield frame.chunk(Delta(), finish=finish)
            if frame.wants_usage:
                yield frame.usage(usage)


def _json(body: bytes) -> Response:
    return Response(body, media_type=JSON_TYPE)


async def _body(request: Request) -> bytes:
    """The whole body, as JSON's type and of no more than the limit.

    Raises:
        ApiError: It is of another type, too large, or too slow.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != JSON_TYPE or "content-encoding" in request.headers:
        encoding = request.headers.get("content-encoding", "")
        raise ApiError(
            f"the body is {f'{encoding} {kind}'.strip()[:100] or 'of no type'!r}; send plain "
            f"{JSON_TYPE}",
            status=HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        )
    read, size = bytearray(), 0
    try:
        async with asyncio.timeout(BODY_S):
            if int(request.headers.get("content-length", "0")) > MAX_PASSED_OVER_BYTES:
                raise _too_large(_CLOSE)
            async for part in request.stream():
                size += len(part)
                if size > MAX_PASSED_OVER_BYTES:
                    raise _too_large(_CLOSE)
                read += part if size <= MAX_BODY_BYTES else b""
    except TimeoutError as error:
        raise ApiError(
            f"the body did not come within {BODY_S:g} s",
            status=HTTPStatus.REQUEST_TIMEOUT,
            headers=_CLOSE,
        ) from error
    if size > MAX_BODY_BYTES:
        raise _too_large()
    return bytes(read)


def _too_large(headers: Mapping[str, str] | None = None) -> ApiError:
    return ApiError(
        f"the body has more than {MAX_BODY_BYTES} bytes; shorten the messages",
        status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        code="request_too_large",
        headers=headers,
    )


async def _while_connected(request: Request, work: Coroutine[None, None, _T]) -> _T:
    """The work's result, unless the client leaves before: then the work is cancelled.

    Raises:
        ClientDisconnect: It has left.
    """

    async def leave() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, gone = asyncio.create_task(work), asyncio.create_task(leave())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        gone.cancel()
        task.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _told_as_asked(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, ApiError)
    return error.response()


async def _no_such_path(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    return ApiError(
        f"{request.method} {request.url.path[:100]}: {status.phrase.lower()}; /openapi.json lists "
        "what there is",
        status=status,
        headers=error.headers,
    ).response()


async def _nobody(request: Request, error: Exception) -> Response:
    """For a client that has left; nothing is sent any more."""
    del request, error
    return Response(status_code=HTTPStatus.BAD_REQUEST)


async def _fault(request: Request, error: Exception) -> Response:
    """An error of this program, which is raised on after this."""
    del request
    return ApiError(
        f"an error of this program: {type(error).__name__}",
        status=HTTPStatus.INTERNAL_SERVER_ERROR,
    ).response()


def http_app(endpoint: Endpoint, access: AccessConfig) -> Starlette:
    """Everything that a server needs.

    Args:
        endpoint: What the paths do.
        access: Who may ask.
    """
    middleware = [Middleware(Access, access)]
    if access.origins:
        allowed = Middleware(
            CORSMiddleware,
            allow_origins=access.origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
        )
        middleware.insert(0, allowed)
    return Starlette(
        routes=[
            Route("/v1/chat/completions", endpoint.complete, methods=["POST"]),
            Route("/v1/models", endpoint.models),
            Route("/v1/models/{model:path}", endpoint.model),
            Route("/health", endpoint.health),
            Route("/openapi.json", endpoint.openapi),
        ],
        middleware=middleware,
        exception_handlers={
            ApiError: _told_as_asked,
            HTTPException: _no_such_path,
            ClientDisconnect: _nobody,
            Exception: _fault,
        },
    )
