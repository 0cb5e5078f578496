"""Tool calls in a model's answer: the three forms that Llama 3.2 was trained to write.

Source: the published prompt formats of Llama 3.1 and 3.2. JSON `{"name": ..., "parameters": ...}`
(several may follow each other, separated by `;` or white space), a list of Python calls `[f(a=1)]`,
and either of them after `<|python_tag|>`. The apps parse by the same rules; the shared fixtures
hold all of them to one verdict.
"""

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from llama_edge.core.errors import ToolCallError

PYTHON_TAG: Final = "<|python_tag|>"
#: A call longer than this is no call, whatever it looks like.
MAX_CALL_CHARACTERS: Final = 1 << 16
MAX_DEPTH: Final = 16
#: What every language's 64-bit integer holds.
MAX_INTEGER: Final = (1 << 63) - 1

_PYTHON_CALL: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*\(")


class CallFormat(StrEnum):
    """How a model writes calls."""

    #: `{"name": "f", "parameters": {"a": 1}}`
    JSON = "json"
    #: `[f(a=1)]`
    PYTHONIC = "pythonic"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """One function and what it is called with."""

    name: str
    arguments: Mapping[str, Any]


def parse_tool_calls(answer: str) -> tuple[ToolCall, ...]:
    """The calls in a whole answer; none where it is plain text.

    Raises:
        ToolCallError: It begins as a call and does not end as one.
    """
    text = answer.strip()
    tagged = text.startswith(PYTHON_TAG)
    text = text.removeprefix(PYTHON_TAG).strip()
    if text.startswith("[") and _PYTHON_CALL.match(text[1:].lstrip()):
        return _python_calls(text)
    if tagged and _PYTHON_CALL.match(text):
        return _python_calls(f"[{text}]")
    if text.startswith(("{", "[")):
        calls = _json_calls(text)
        if calls:
            return calls
    if tagged:
        raise ToolCallError(f"after {PYTHON_TAG} comes {text[:60]!r}, which is no call")
    return ()


def _json_calls(text: str) -> tuple[ToolCall, ...]:
    """Calls written as JSON; none where it is JSON of another kind, or none at all."""
    looks_like_call = re.match(r'\[?\s*\{\s*"(name|type)"\s*:', text) is not None
    if len(text) > MAX_CALL_CHARACTERS:
        return _not_json(text, looks_like_call, f"more than {MAX_CALL_CHARACTERS} characters")
    decoder = json.JSONDecoder()
    values: list[Any] = []
    place = 0
    while place < len(text):
        try:
            value, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            return _not_json(text, looks_like_call, str(error))
        values.extend(value if isinstance(value, list) else [value])
        while place < len(text) and text[place] in " \t\r\n;":
            place += 1
    calls = [_json_call(value) for value in values]
    return tuple(call for call in calls if call is not None) if all(calls) else ()


def _not_json(text: str, looks_like_call: bool, reason: str) -> tuple[ToolCall, ...]:
    if looks_like_call:
        raise ToolCallError(f"the call {text[:60]!r} is not whole JSON: {reason}")
    return ()


def _json_call(value: object) -> ToolCall | None:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("parameters", value.get("arguments"))
    if not isinstance(arguments, dict):
        return None
    check_value(arguments, 0)
    return ToolCall(name=value["name"], arguments=arguments)


def _python_calls(text: str) -> tuple[ToolCall, ...]:
    if len(text) > MAX_CALL_CHARACTERS:
        raise ToolCallError(f"the call has more than {MAX_CALL_CHARACTERS} characters")
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ToolCallError(f"the call {text[:60]!r} is not whole: {error}") from error
    if not isinstance(tree, ast.List):
        raise ToolCallError(f"{text[:60]!r} is more than a list of calls")
    return tuple(_python_call(element) for element in tree.elts)


def _python_call(node: ast.expr) -> ToolCall:
    if not isinstance(node, ast.Call) or node.args:
        raise ToolCallError(f"{ast.unparse(node)[:60]!r}: calls with named arguments are needed")
    arguments: dict[str, Any] = {}
    for keyword in node.keywords:
        if keyword.arg is None or keyword.arg in arguments:
            raise ToolCallError(f"{ast.unparse(node)[:60]!r}: each argument is named, once")
        arguments[keyword.arg] = literal_value(keyword.value)
    check_value(arguments, 0)
    return ToolCall(name=_dotted_name(node.func).removesuffix(".call"), arguments=arguments)


def _dotted_name(node: ast.expr) -> str:
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=name):
            return f"{_dotted_name(value)}.{name}"
    raise ToolCallError(f"{ast.unparse(node)[:60]!r} is not the name of a function")


def literal_value(node: ast.expr) -> Any:  # noqa: ANN401
    """The value of a literal; nothing is evaluated.

    Raises:
        ToolCallError: It is another expression, or a literal that JSON does not have.
    """
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.List(elts=elements):
            return [literal_value(element) for element in elements]
        case ast.Dict(keys=keys, values=values):
            names = [key.value for key in keys if isinstance(key, ast.Constant)]
            if len(names) == len(keys) and all(isinstance(name, str) for name in names):
                return dict(zip(names, map(literal_value, values), strict=True))
    raise ToolCallError(f"{ast.unparse(node)[:60]!r} is not a plain value")


def check_value(value: object, depth: int) -> None:
    """No argument that one of the apps could not hold.

    Raises:
        ToolCallError: It is nested too deeply, an integer too large, or a number not finite.
    """
    if depth > MAX_DEPTH:
        raise ToolCallError(f"arguments are nested more than {MAX_DEPTH} deep")
    if isinstance(value, int) and not -MAX_INTEGER - 1 <= value <= MAX_INTEGER:
        raise ToolCallError("an argument is an integer of more than 64 bits")
    if isinstance(value, float) and not abs(value) < float("inf"):
        raise ToolCallError("an argument is not a finite number")
    for item in value.values() if isinstance(value, dict) else ():
        check_value(item, depth + 1)
    for item in value if isinstance(value, list) else ():
        check_value(item, depth + 1)


def write_tool_calls(calls: Sequence[ToolCall], form: CallFormat) -> str:
    """Calls as a model writes them; `parse_tool_calls` reads the same from it."""
    if form is CallFormat.PYTHONIC:
        return "[" + ", ".join(map(_python_text, calls)) + "]"
    return "; ".join(
        f'{{"name": {write_value(call.name, form)}, '
        f'"parameters": {write_value(call.arguments, form)}}}'
        for call in calls
    )


def _python_text(call: ToolCall) -> str:
    pairs = (
        f"{name}={write_value(value, CallFormat.PYTHONIC)}"
        for name, value in call.arguments.items()
    )
    return f"{call.name}({', '.join(pairs)})"


def write_value(value: object, form: CallFormat) -> str:
    """A JSON value as one of the forms has it; strings in double quotes."""
    if isinstance(value, Mapping):
        pairs = (f"{write_value(k, form)}: {write_value(v, form)}" for k, v in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(write_value(item, form) for item in value) + "]"
    if form is CallFormat.PYTHONIC and (value is None or isinstance(value, bool)):
        return repr(value)
    return json.dumps(value, ensure_ascii=False)
