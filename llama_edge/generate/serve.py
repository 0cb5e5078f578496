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
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, Self, TextIO

from llama_edge.backends import get_exporter
from llama_edge.bundle.folder import open_bundle
from llama_edge.bundle.session import open_session
from llama_edge.bundle.signing import NO_KEY, Trust
from llama_edge.core.errors import LlamaEdgeError, UsageError
from llama_edge.core.json_files import parse_json_object
from llama_edge.core.session import Session
from llama_edge.runtimes import choose_runtime
from llama_edge.text.generate import Generation, SamplingConfig

#: A line of a whole context of token ids has under one MiB.
MAX_LINE_CHARACTERS: Final = 4 << 20
CANCELLED: Final = "cancelled"

Reply = Callable[[Mapping[str, Any]], None]


class OpensSession(Protocol):
    """What `serve` runs."""

    def open(self) -> Session:
        """Load the artifact."""
        ...


class BundleModel:
    """A checked bundle with the runtime of its backend, in a child process."""

    def __init__(self, folder: Path, runtime: str | None = None, trust: Trust = NO_KEY) -> None:
        """Hold every file against the manifest.

        Raises:
            ArtifactError: Not a bundle, or an unsafe one.
            CheckFailedError: A file is not what the manifest says, or not listed there; or the
                signature is not the one that `trust` demands.
            UsageError: The runtime is another backend's.
        """
        self._bundle = open_bundle(folder, trust)
        self._artifact = get_exporter(self._bundle.manifest.backend).open(folder).artifact
        self._runtime = choose_runtime(self._artifact.backend, runtime)

    def open(self) -> Session:
        """See `OpensSession`."""
        return open_session(self._bundle, self._artifact, self._runtime)


class _Requests:
    """Lines of a stream, read by a thread of their own: `cancel` is heard during a generation."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lines: queue.Queue[dict[str, Any] | UsageError | None] = queue.Queue()
        self.cancelled = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def start(self) -> Self:
        """Begin to read; the thread is a daemon, since it may wait for a line that never comes."""
        self._thread.start()
        return self

    def _read(self) -> None:
        while line := self._stream.readline(MAX_LINE_CHARACTERS):
            request = _parse(line)
            if isinstance(request, dict) and request.get("op") == "cancel":
                self.cancelled.set()
                continue
            # Here and not when it is answered: a `cancel` right after it must not be lost.
            self.cancelled.clear()
            self._lines.put(request)
        self._lines.put(None)

    def __iter__(self) -> Iterator[dict[str, Any] | UsageError]:
        while (request := self._lines.get()) is not None:
            yield request


def _parse(line: str) -> dict[str, Any] | UsageError:
    try:
        return parse_json_object(line, f"the request {line[:60]!r}", UsageError)
    except UsageError as error:
        return error


def serve(model: OpensSession, requests: TextIO, replies: TextIO) -> None:
    """Answer requests until `close` or the end of the stream; an error is a reply, not the end."""

    def reply(value: Mapping[str, Any]) -> None:
        replies.write(json.dumps(value) + "\n")
        replies.flush()

    with model.open() as session:
        lines = _Requests(requests).start()
        for request in lines:
            try:
                if isinstance(request, UsageError):
                    raise request
                if request.get("op") == "close":
                    return
                _answer(request, session, lines.cancelled, reply)
            except LlamaEdgeError as error:
                reply({"error": {"class": type(error).__name__, "message": str(error)}})


def _answer(
    request: Mapping[str, Any], session: Session, cancelled: threading.Event, reply: Reply
) -> None:
    match request.get("op"):
        case "open":
            reply({"opened": {"max_context": session.max_context}})
        case "reset":
            session.reset()
            reply({"reset": True})
        case "generate":
            session.reset()
            generation = _generation(request, session)
            for token in generation:
                if cancelled.is_set():
                    reply({"done": CANCELLED})
                    return
                reply({"token": token})
            reason = generation.stop_reason
            assert reason is not None, "a generation that has ended knows why"
            reply({"done": reason.value})
        case other:
            raise UsageError(
                f"op is {other!r}; open, generate, cancel, reset and close are the operations"
            )


def _generation(request: Mapping[str, Any], session: Session) -> Generation:
    limit = request.get("max_new_tokens", 256)
    if type(limit) is not int or limit < 1:
        raise UsageError(f"max_new_tokens is {limit!r}; a whole number of at least 1 is needed")
    numbers = {
        name: request[name] for name in ("temperature", "top_p", "top_k", "seed") if name in request
    }
    for name, value in numbers.items():
        kinds = (int,) if name in ("top_k", "seed") else (int, float)
        if type(value) not in kinds or (name == "seed" and value < 0):
            raise UsageError(f"{name} is {value!r}; a number is needed")
    return Generation(
        session,
        _ids(request, "tokens"),
        eos_token_ids=_ids(request, "ends"),
        max_new_tokens=limit,
        sampling=SamplingConfig(**numbers),
    )


def _ids(request: Mapping[str, Any], name: str) -> Sequence[int]:
    value = request.get(name)
    if not isinstance(value, list) or not all(type(number) is int for number in value):
        raise UsageError(f"{name} is {str(value)[:60]}; a list of token ids is needed")
    return value
