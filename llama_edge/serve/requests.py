"""What a chat completion may be asked for, field by field.

Source: https://platform.openai.com/docs/api-reference/chat/create. A field that is not known is
refused, as there; so is one that is known, is not supported here, and would change the answer.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from llama_edge.core.errors import UsageError
from llama_edge.core.json_files import parse_json_object
from llama_edge.serve.errors import ApiError, invalid, unsupported

#: A context of 128,000 tokens is about half a MiB of English.
MAX_BODY_BYTES: Final = 4 << 20
MAX_STOPS: Final = 4
MAX_TOP_LOGPROBS: Final = 20
_SHOWN: Final = 60
#: Of a message that repeats a value.
_LONGEST: Final = 200

_PLACE: Final = re.compile(r" - at `(?:key in )?\$\.?(.*)`$")
_UNKNOWN: Final = re.compile(r"^Object contains unknown field `(.*?)`", re.DOTALL)
_MISSING: Final = re.compile(r"^Object missing required field `(.*?)`")


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A field that is not listed is an error."""


class TextPart(_Strict, frozen=True, tag_field="type", tag="text"):
    """Text of a message."""

    text: str


class RefusalPart(_Strict, frozen=True, tag_field="type", tag="refusal"):
    """Text of an assistant that refused."""

    refusal: str


class ImagePart(_Strict, frozen=True, tag_field="type", tag="image_url"):
    """Not supported."""

    image_url: Any


class AudioPart(_Strict, frozen=True, tag_field="type", tag="input_audio"):
    """Not supported."""

    input_audio: Any


class FilePart(_Strict, frozen=True, tag_field="type", tag="file"):
    """Not supported."""

    file: Any


Content = str | tuple[TextPart | RefusalPart | ImagePart | AudioPart | FilePart, ...]


class CalledFunction(_Strict, frozen=True):
    """A function's name, and its arguments as JSON in a string."""

    name: str
    arguments: str


class CallInHistory(_Strict, frozen=True):
    """A call that an assistant's message has made."""

    id: str
    function: CalledFunction
    type: Literal["function"] = "function"


class SystemMessage(_Strict, frozen=True, tag_field="role", tag="system"):
    """Instructions."""

    content: Content
    name: str | None = None


class DeveloperMessage(_Strict, frozen=True, tag_field="role", tag="developer"):
    """The newer name of instructions; rendered as those of the system."""

    content: Content
    name: str | None = None


class UserMessage(_Strict, frozen=True, tag_field="role", tag="user"):
    """What a person says."""

    content: Content
    name: str | None = None


class AssistantMessage(_Strict, frozen=True, tag_field="role", tag="assistant"):
    """An earlier answer, as a response had it."""

    content: Content | None = None
    name: str | None = None
    refusal: str | None = None
    tool_calls: tuple[CallInHistory, ...] | None = None
    annotations: tuple[Any, ...] | None = None
    audio: Any = None
    function_call: Any = None


class ToolMessage(_Strict, frozen=True, tag_field="role", tag="tool"):
    """What a tool has given."""

    content: Content
    tool_call_id: str


AnyMessage = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage


class Function(_Strict, frozen=True):
    """A function that the model may call."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    description: str | None = None
    #: a JSON schema; none: no arguments
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(_Strict, frozen=True):
    """Something that the model may call."""

    function: Function
    type: Literal["function"]


class ChosenFunction(_Strict, frozen=True):
    """Its name."""

    name: str


class ChosenTool(_Strict, frozen=True):
    """The one that has to be called."""

    function: ChosenFunction
    type: Literal["function"]


class TextFormat(_Strict, frozen=True, tag_field="type", tag="text"):
    """Any text."""


class JsonObjectFormat(_Strict, frozen=True, tag_field="type", tag="json_object"):
    """Any JSON object."""


class SchemaOfAnswer(_Strict, frozen=True):
    """A JSON schema, with a name for it."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class JsonSchemaFormat(_Strict, frozen=True, tag_field="type", tag="json_schema"):
    """What the schema allows."""

    json_schema: SchemaOfAnswer


class StreamOptions(_Strict, frozen=True):
    """What a stream has besides the answer."""

    include_usage: bool | None = None
    #: random characters against guessing from packet sizes; there are none
    include_obfuscation: bool | None = None


Penalty = Annotated[float, Meta(ge=-2, le=2)]
Count = Annotated[int, Meta(ge=1)]


class ChatCompletionRequest(_Strict, frozen=True):
    """The body of `POST /v1/chat/completions`."""

    model: str
    messages: Annotated[tuple[AnyMessage, ...], Meta(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_completion_tokens: Count | None = None
    max_tokens: Count | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    #: not of OpenAI's; other servers have it by this name
    top_k: Annotated[int, Meta(ge=0)] | None = None
    seed: Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)] | None = None
    stop: (
        Annotated[str, Meta(min_length=1, max_length=1024)]
        | Annotated[
            tuple[Annotated[str, Meta(min_length=1, max_length=1024)], ...],
            Meta(max_length=MAX_STOPS),
        ]
        | None
    ) = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    response_format: TextFormat | JsonObjectFormat | JsonSchemaFormat | None = None
    tools: Annotated[tuple[Tool, ...], Meta(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ChosenTool | None = None
    parallel_tool_calls: bool | None = None
    # These are followed where they say what happens anyway.
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, float] | None = None
    modalities: tuple[Literal["text", "audio"], ...] | None = None
    # These change no answer here.
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: Any = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    prediction: Any = None
    # These would, and are refused below for what they are.
    audio: Any = None
    functions: Any = None
    function_call: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None
    web_search_options: Any | UnsetType = UNSET

    @property
    def stops(self) -> tuple[str, ...]:
        """Sequences that end the answer."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else self.stop

    @property
    def limit(self) -> int | None:
        """Tokens that the answer may have; None: what the context has room for."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with it."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def dialog(self) -> tuple[Mapping[str, Any], ...]:
        """The messages as chat templates read them.

        Raises:
            ApiError: A part is not text, or a call's arguments are no JSON object.
        """
        return tuple(
            _rendered(message, f"messages[{place}]") for place, message in enumerate(self.messages)
        )


def parse_request(body: bytes) -> ChatCompletionRequest:
    """Read a request.

    Raises:
        ApiError: It is none, or asks for what is not supported.
    """
    try:
        value = parse_json_object(body, "the body", UsageError)
    except UsageError as error:
        raise ApiError(str(error), code="invalid_json") from error
    try:
        request = msgspec.convert(value, ChatCompletionRequest)
    except msgspec.ValidationError as error:
        raise _refused(str(error)) from error
    _require_supported(request)
    return request


def _refused(message: str) -> ApiError:
    """What the reader says of a value, with the field as a client finds it."""
    place = _PLACE.search(message)
    param = "" if place is None else place[1]
    for pattern, code in (
        (_UNKNOWN, "unknown_parameter"),
        (_MISSING, "missing_required_parameter"),
    ):
        if (found := pattern.match(message)) is not None:
            name = found[1][:_SHOWN]
            param = f"{param}.{name}".lstrip(".")
            what = "unknown parameter" if code == "unknown_parameter" else "missing parameter"
            return ApiError(f"{what}: {param}", param=param, code=code)
    text = (message[: place.start()] if place is not None else message)[:_LONGEST]
    code = "invalid_type" if ", got " in text else "invalid_value"
    return ApiError(f"{param or 'the body'}: {text}", param=param or None, code=code)


def _require_supported(request: ChatCompletionRequest) -> None:
    """Refuse what would change the answer and is not supported, and what contradicts itself."""
    refused: tuple[tuple[str, bool, str], ...] = (
        ("n", request.n not in (None, 1), "one answer is given for a request"),
        ("presence_penalty", bool(request.presence_penalty), "there is no presence penalty"),
        ("frequency_penalty", bool(request.frequency_penalty), "there is no frequency penalty"),
        ("logit_bias", bool(request.logit_bias), "logits have no bias here"),
        ("modalities", "audio" in (request.modalities or ()), "answers are text"),
        ("audio", request.audio is not None, "answers are text"),
        ("functions", request.functions is not None, "it was replaced by tools"),
        ("function_call", request.function_call is not None, "it was replaced by tool_choice"),
        ("reasoning_effort", request.reasoning_effort is not None, "no model here has one"),
        ("verbosity", request.verbosity is not None, "no model here has one"),
        ("web_search_options", request.web_search_options is not UNSET, "nothing is searched"),
    )
    for param, is_asked, why in refused:
        if is_asked:
            raise unsupported(param, f"{param} is not supported: {why}; leave it out")
    if request.top_logprobs is not None and not request.logprobs:
        raise invalid("top_logprobs", "top_logprobs needs logprobs to be true")
    if request.stream_options is not None and not request.stream:
        raise invalid("stream_options", "stream_options needs stream to be true")
    if request.max_tokens is not None and request.max_completion_tokens is not None:
        raise invalid(
            "max_tokens", "max_tokens is the old name of max_completion_tokens; give one of them"
        )


def _rendered(message: AnyMessage, where: str) -> dict[str, Any]:
    match message:
        case SystemMessage() | DeveloperMessage():
            return {"role": "system", "content": _text(message.content, where)}
        case UserMessage():
            return {"role": "user", "content": _text(message.content, where)}
        case ToolMessage():
            return {
                "role": "tool",
                "content": _text(message.content, where),
                "tool_call_id": message.tool_call_id,
            }
        case AssistantMessage():
            return _assistant(message, where)


def _assistant(message: AssistantMessage, where: str) -> dict[str, Any]:
    if message.audio is not None or message.function_call is not None:
        param = f"{where}.{'audio' if message.audio is not None else 'function_call'}"
        raise unsupported(param, f"{param} is not supported; leave it out")
    if message.content is None and message.refusal is None and not message.tool_calls:
        raise invalid(f"{where}.content", f"{where} has neither content nor tool_calls")
    text = _text(message.content, where) if message.content is not None else message.refusal or ""
    rendered: dict[str, Any] = {"role": "assistant", "content": text}
    if message.tool_calls:
        rendered["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {
                    "name": call.function.name,
                    "arguments": _arguments(
                        call.function.arguments, f"{where}.tool_calls[{place}].function.arguments"
                    ),
                },
            }
            for place, call in enumerate(message.tool_calls)
        ]
    return rendered


def _arguments(text: str, where: str) -> dict[str, Any]:
    try:
        return parse_json_object(text, where, UsageError)
    except UsageError as error:
        raise invalid(where, str(error)) from error


def _text(content: Content, where: str) -> str:
    """The text of a message, whose parts follow each other as they are."""
    if isinstance(content, str):
        return content
    texts = list[str]()
    for place, part in enumerate(content):
        match part:
            case TextPart():
                texts.append(part.text)
            case RefusalPart():
                texts.append(part.refusal)
            case ImagePart() | AudioPart() | FilePart():
                (kind,) = msgspec.structs.asdict(part)
                param = f"{where}.content[{place}].{kind}"
                raise unsupported(param, f"{param}: this model reads text only")
    return "".join(texts)
