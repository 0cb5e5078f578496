"""Tools that a prompt offers, in the form of OpenAI's API, and what a valid call of them is.

Only a few of JSON Schema's keywords are taken: enough for the calls that a small model can make,
and none of them refers to another file or takes long to check.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import jsonschema
import msgspec
from msgspec import Meta

from llama_edge.core.errors import ToolCallError
from llama_edge.text import tools as text_tools
from llama_edge.text.tool_calls import ToolCall, parse_tool_calls

Name = Annotated[str, Meta(pattern="^[A-Za-z_][A-Za-z0-9_]{0,63}$")]
Text = Annotated[str, Meta(max_length=1000)]


class _Struct(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    pass


class Parameter(_Struct, frozen=True):
    """The schema of one argument, or of an array's items."""

    type: Literal["string", "integer", "number", "boolean", "array"]
    description: Text = ""
    enum: Annotated[tuple[str | int, ...], Meta(max_length=50)] | None = None
    items: "Parameter | None" = None
    minimum: int | None = None
    maximum: int | None = None


class Parameters(_Struct, frozen=True):
    """The schema of all arguments."""

    type: Literal["object"]
    properties: Annotated[dict[Name, Parameter], Meta(max_length=20)]
    required: tuple[Name, ...] = ()

    def __post_init__(self) -> None:
        for name in self.required:
            if name not in self.properties:
                raise ValueError(f"required names {name!r}, which is not one of the properties")


class Function(_Struct, frozen=True):
    """What a tool does."""

    name: Name
    description: Text
    parameters: Parameters


class Tool(_Struct, frozen=True):
    """One function that the model may call."""

    type: Literal["function"]
    function: Function

    @property
    def name(self) -> str:
        """As a call names it."""
        return self.function.name

    @property
    def definition(self) -> text_tools.Tool:
        """As the model is told of it."""
        return text_tools.Tool(
            name=self.name,
            description=self.function.description,
            parameters=self._schema(),
        )

    def takes(self, call: ToolCall) -> bool:
        """Whether a call names this tool and gives what it needs, and nothing else."""
        validator = jsonschema.Draft202012Validator(
            {**self._schema(), "additionalProperties": False}
        )
        return call.name == self.name and bool(validator.is_valid(dict(call.arguments)))

    def _schema(self) -> dict[str, Any]:
        """JSON values: lists, not tuples."""
        schema: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self.function.parameters))
        return schema


def valid_calls(answer: str, tools: Sequence[Tool]) -> tuple[ToolCall, ...]:
    """The calls of an answer that consists of valid calls; else none."""
    try:
        calls = parse_tool_calls(answer)
    except ToolCallError:
        return ()
    return calls if all(any(tool.takes(call) for tool in tools) for call in calls) else ()
