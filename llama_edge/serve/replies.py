"""What a chat completion's response holds, whole and as chunks of a stream.

Source: https://platform.openai.com/docs/api-reference/chat/object and `chat/streaming`.
"""

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

Finish = Literal["stop", "length", "tool_calls", "content_filter"]


class _Reply(msgspec.Struct, frozen=True, kw_only=True):
    """A value of ours."""


class TokenChoice(_Reply, frozen=True, kw_only=True):
    """A token and the logarithm of its probability."""

    token: str
    logprob: float
    #: UTF-8; None where the token is a part of a character
    bytes: tuple[int, ...] | None


class TokenLogprob(TokenChoice, frozen=True, kw_only=True):
    """A token of the answer, with the most probable ones at its place."""

    top_logprobs: tuple[TokenChoice, ...]


class Logprobs(_Reply, frozen=True, kw_only=True):
    """Of the tokens of an answer, or of a piece of it."""

    content: tuple[TokenLogprob, ...]
    refusal: None = None


class FunctionCall(_Reply, frozen=True, kw_only=True):
    """A function, and its arguments as JSON in a string."""

    name: str
    arguments: str


class ToolCallReply(_Reply, frozen=True, kw_only=True):
    """A call that the answer makes."""

    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


class FunctionDelta(_Reply, frozen=True, kw_only=True):
    """More of a call."""

    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class ToolCallDelta(_Reply, frozen=True, kw_only=True):
    """More of the call with this index."""

    index: int
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
    function: FunctionDelta


class Message(_Reply, frozen=True, kw_only=True):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: str | None = None
    tool_calls: tuple[ToolCallReply, ...] | UnsetType = UNSET


class Delta(_Reply, frozen=True, kw_only=True):
    """More of the answer."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    refusal: str | UnsetType | None = UNSET
    tool_calls: tuple[ToolCallDelta, ...] | UnsetType = UNSET


class PromptDetails(_Reply, frozen=True, kw_only=True):
    """Of the prompt's tokens."""

    #: those whose keys and values were in the cache
    cached_tokens: int
    audio_tokens: int = 0


class CompletionDetails(_Reply, frozen=True, kw_only=True):
    """Of the answer's tokens."""

    reasoning_tokens: int = 0
    audio_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class Usage(_Reply, frozen=True, kw_only=True):
    """Numbers of tokens; end tokens do not count."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails = CompletionDetails()


class Choice(_Reply, frozen=True, kw_only=True):
    """The one answer."""

    index: int = 0
    message: Message
    logprobs: Logprobs | None
    finish_reason: Finish


class ChunkChoice(_Reply, frozen=True, kw_only=True):
    """More of the one answer."""

    index: int = 0
    delta: Delta
    logprobs: Logprobs | None = None
    finish_reason: Finish | None = None


class Completion(_Reply, frozen=True, kw_only=True):
    """The body of a response that is not a stream."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: tuple[Choice, ...]
    usage: Usage


class Chunk(_Reply, frozen=True, kw_only=True):
    """An event of a stream."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: tuple[ChunkChoice, ...]
    #: null but in the last one, where it was asked for
    usage: Usage | UnsetType | None = UNSET


class ModelCard(_Reply, frozen=True, kw_only=True):
    """A model that answers here."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "llama-edge"


class ModelList(_Reply, frozen=True, kw_only=True):
    """All of them."""

    object: Literal["list"] = "list"
    data: tuple[ModelCard, ...]


class Health(_Reply, frozen=True, kw_only=True):
    """Whether requests are answered, and how many are."""

    status: Literal["ok"] = "ok"
    running: bool
    waiting: Annotated[int, Meta(ge=0)]


DONE: Final = b"data: [DONE]\n\n"
_JSON: Final = msgspec.json.Encoder()


def encode(value: Any) -> bytes:  # noqa: ANN401
    """JSON."""
    return _JSON.encode(value)


def event(data: bytes) -> bytes:
    """A server-sent event; JSON on one line has no line break to escape."""
    return b"data: " + data + b"\n\n"
