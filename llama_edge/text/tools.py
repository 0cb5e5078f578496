"""Functions that a model may call: their definitions, which come from outside.

Two forms are read: OpenAI's `{"type": "function", "function": {"name": ..., "parameters": ...}}`,
and the inner object alone. `parameters` is a JSON Schema of an object.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from llama_edge.core.errors import UsageError
from llama_edge.core.json_files import parse_json
from llama_edge.core.regular import read_regular_text

MAX_TOOLS: Final = 128
#: Calls in one answer, where the model's format lets several follow each other.
MAX_CALLS: Final = 8
#: Of all definitions together, as JSON: they are part of a prompt.
MAX_TOOLS_BYTES: Final = 1 << 18
#: OpenAI's rule for names, and the dot of Python's modules.
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_TOOL_KEYS: Final = frozenset({"name", "description", "parameters", "strict"})


class ToolChoice(StrEnum):
    """Whether an answer is a call; the name of one tool is the fourth possibility."""

    NONE = "none"
    AUTO = "auto"
    REQUIRED = "required"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """One function that the model may call."""

    name: str
    description: str = ""
    #: JSON Schema of the object of its arguments
    parameters: Mapping[str, Any] = field(
        default_factory=lambda: {"type": "object", "properties": {}}
    )

    def to_json(self) -> dict[str, Any]:
        """OpenAI's form, which chat templates are written for."""
        return {
            "type": "function",
            "function": {
                "name": self.name,
                "description": self.description,
                "parameters": dict(self.parameters),
            },
        }


def read_tools(file: Path) -> tuple[Tool, ...]:
    """The tools of a JSON file.

    Raises:
        UsageError: It is missing, too large, or not a list of tools.
    """
    text = read_regular_text(file, MAX_TOOLS_BYTES, UsageError)
    return parse_tools(parse_json(text, str(file), UsageError), str(file))


def parse_tools(value: object, where: str = "tools") -> tuple[Tool, ...]:
    """Check definitions in either form.

    Args:
        value: A list of JSON values.
        where: Named in messages.

    Raises:
        UsageError: Too many, a name twice, or one that is no tool.
    """
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise UsageError(f"{where}: {_kind(value)}; a list of tools is needed")
    if not 1 <= len(value) <= MAX_TOOLS:
        raise UsageError(f"{where}: {len(value)} tools; 1 to {MAX_TOOLS} are possible")
    tools = tuple(_tool(item, f"{where}[{number}]") for number, item in enumerate(value))
    names = [tool.name for tool in tools]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"{where}: the name {twice!r} is there twice; a call needs one tool")
    size = len(json.dumps([tool.to_json() for tool in tools], ensure_ascii=False).encode())
    if size > MAX_TOOLS_BYTES:
        raise UsageError(f"{where}: {size} bytes of definitions; at most {MAX_TOOLS_BYTES}")
    return tools


def _tool(value: object, where: str) -> Tool:
    if isinstance(value, Mapping) and "function" in value:
        if value.get("type", "function") != "function":
            raise UsageError(f"{where}.type is {str(value['type'])[:40]!r}; 'function' is needed")
        value, where = value["function"], f"{where}.function"
    if not isinstance(value, Mapping):
        raise UsageError(f"{where}: {_kind(value)}; an object is needed")
    unknown = sorted(str(key)[:40] for key in value if key not in _TOOL_KEYS)
    if unknown:
        raise UsageError(
            f"{where}.{unknown[0]}: unknown; a tool has {', '.join(sorted(_TOOL_KEYS))}"
        )
    name, description = value.get("name"), value.get("description") or ""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UsageError(
            f"{where}.name is {str(name)[:80]!r}; a letter or _ and up to 63 letters, digits, "
            "_, . or - are needed"
        )
    if not isinstance(description, str):
        raise UsageError(f"{where}.description: {_kind(description)}; a string is needed")
    parameters = value.get("parameters")
    if parameters is None:
        return Tool(name=name, description=description)
    if not isinstance(parameters, Mapping):
        raise UsageError(f"{where}.parameters: {_kind(parameters)}; a JSON Schema is needed")
    return Tool(name=name, description=description, parameters=parameters)


def parse_choice(value: str, tools: Sequence[Tool]) -> ToolChoice | Tool:
    """`auto`, `none`, `required`, or the name of one of the tools.

    Raises:
        UsageError: It is none of them.
    """
    for choice in ToolChoice:
        if value == choice:
            return choice
    for tool in tools:
        if value == tool.name:
            return tool
    names = ", ".join([*ToolChoice, *(tool.name for tool in tools)][:20])
    raise UsageError(f"the tool choice is {value[:80]!r}; one of {names} is needed")


def _kind(value: object) -> str:
    names = {Mapping: "an object", str: "a string", bool: "a boolean", type(None): "null"}
    for kind, name in names.items():
        if isinstance(value, kind):
            return name
    return "a number" if isinstance(value, (int, float)) else "a list"
