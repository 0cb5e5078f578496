"""A grammar of "a valid call of one of these tools", in both forms that `tool_calls` reads.

The arguments follow each tool's JSON Schema. Whatever the grammar accepts is read by
`parse_tool_calls` and valid under the schema; it does not accept all that is valid: arguments come
in the order of `properties`, with one space or none after a comma and a colon, and numbers and
nesting stay within what the apps can hold. A schema with a keyword that cannot be kept is refused.

The result is in the Lark dialect of llguidance; `%json` embeds a schema for one value.
"""

import json
import keyword
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from llama_edge.core.errors import ToolCallError, UsageError
from llama_edge.text.tool_calls import MAX_DEPTH, CallFormat, check_value, write_value
from llama_edge.text.tools import Tool

#: Of all tools together, every `$ref` written out.
MAX_VALUES: Final = 4096
#: How deep a value is nested about whose kind the schema says nothing.
_FREE_DEPTH: Final = 3
#: Any number of so many digits, and no fewer, has a place in 64 bits.
_LARGEST: Final = 10**18
_MAX_COUNT: Final = 1 << 16

#: What says nothing about a value.
_REMARKS: Final = frozenset(
    {"$comment", "$defs", "$id", "$schema", "default", "definitions", "deprecated", "description"}
    | {"examples", "readOnly", "title", "writeOnly"}
)
_KEYWORDS: Final = frozenset(
    {"$ref", "additionalProperties", "anyOf", "const", "enum", "exclusiveMaximum"}
    | {"exclusiveMinimum", "format", "items", "maximum", "maxItems", "maxLength", "minimum"}
    | {"minItems", "minLength", "multipleOf", "pattern", "properties", "required", "type"}
)
_NUMBER_LIMITS: Final = (
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
)
_TYPES: Final = ("null", "boolean", "integer", "number", "string", "array", "object")
#: In JSON strings of `%json`: what Python's literals have as well.
_EXACT: Final = {"json_allowed_escapes": '"\\bfnrt', "whitespace_flexible": False}
_IDENTIFIER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

_TERMINALS: Final = r"""
COMMA: /, ?/
COLON: /: ?/
NEXT_CALL: /; ?/
INTEGER: /-?(0|[1-9][0-9]{0,17})/
NUMBER: /-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,17})?([eE][+-]?[0-9]{1,2})?/
"""


_QUOTES: Final = {CallFormat.JSON: ('"',), CallFormat.PYTHONIC: ('"', "'")}


def call_rules(tools: Sequence[Tool], form: CallFormat, max_calls: int) -> str:
    """Lark rules, of which `calls` is an answer that is nothing but calls.

    Args:
        tools: At least one.
        form: How they are called.
        max_calls: How many calls an answer may have.

    Raises:
        UsageError: A schema has a keyword or a value that no grammar can keep, or a name cannot be
            written in this form.
    """
    return _Writer(form).write(tools, max_calls)


class _Writer:
    """Rules so far; each value of a schema gets one."""

    def __init__(self, form: CallFormat) -> None:
        self._form = form
        self._rules: list[str] = []
        self._values = 0
        #: the tool's whole schema, and the references that are being written out
        self._root: Mapping[str, Any] = {}
        self._open: list[str] = []

    def write(self, tools: Sequence[Tool], max_calls: int) -> str:
        calls = [self._call(tool) for tool in tools]
        one = self._rule(" | ".join(calls))
        between = "COMMA" if self._form is CallFormat.PYTHONIC else "NEXT_CALL"
        several = one + _repeated(f"{between} {one}", 0, max_calls - 1)
        if self._form is CallFormat.PYTHONIC:
            several = f'"[" {several} "]"'
        self._rules.append(f"calls: {several}")
        return "\n".join(self._rules) + _TERMINALS

    def _call(self, tool: Tool) -> str:
        where = f"tool {tool.name}"
        self._root = tool.parameters
        self._check_keywords(tool.parameters, f"{where}: parameters")
        if tool.parameters.get("type", "object") != "object":
            raise UsageError(
                f"{where}: parameters.type is {str(tool.parameters['type'])[:60]!r}; "
                "the arguments of a call are an object"
            )
        for name in ("$ref", "anyOf", "enum", "const"):
            if name in tool.parameters:
                raise UsageError(
                    f"{where}: parameters.{name}: not possible here; list the arguments in "
                    "properties"
                )
        if self._form is CallFormat.PYTHONIC:
            _require_dotted(tool.name, where)
            members = self._members(tool.parameters, f"{where}: parameters", 0)
            return self._rule(f'{_literal(tool.name + "(")} {members} ")"')
        members = self._members(tool.parameters, f"{where}: parameters", 0)
        name = _quoted(tool.name, '"')
        return self._rule(
            f'"{{" {_literal(_quoted("name", chr(34)))} COLON {_literal(name)} COMMA '
            f'{_literal(_quoted("parameters", chr(34)))} COLON "{{" {members} "}}" "}}"'
        )

    def _rule(self, body: str) -> str:
        name = f"r{len(self._rules)}"
        self._rules.append(f"{name}: {body}")
        return name

    def _members(self, schema: Mapping[str, Any], where: str, depth: int) -> str:
        """The declared properties in order; those that are not required may be absent."""
        properties = _member(schema, "properties", Mapping, where, {})
        required = _member(schema, "required", list, where, [])
        missing = [name for name in required if name not in properties]
        if missing:
            raise UsageError(
                f"{where}.required names {str(missing[0])[:60]!r}, which is not in properties"
            )
        keyed = self._form is CallFormat.PYTHONIC and depth == 0
        pairs = []
        for name, inner in properties.items():
            place = f"{where}.properties.{name[:60]}"
            key = self._key(name, place, keyed=keyed)
            pairs.append((f"{key} {self._value(inner, place, depth + 1)}", name in required))
        # `first` is what may come where nothing was written yet, `rest` what may come after that.
        first, rest = '""', '""'
        for pair, is_required in reversed(pairs):
            now_rest = self._rule(f"COMMA {pair} {rest}" + ("" if is_required else f" | {rest}"))
            now_first = self._rule(f"{pair} {rest}" + ("" if is_required else f" | {first}"))
            first, rest = now_first, now_rest
        return first

    def _key(self, name: str, where: str, *, keyed: bool) -> str:
        if not keyed:
            return f"{self._text(name)} COLON"
        if not _IDENTIFIER.fullmatch(name) or keyword.iskeyword(name) or name == "__debug__":
            raise UsageError(
                f"{where}: {name[:60]!r} cannot be the name of an argument in a Python call; "
                "rename it, or use the format json"
            )
        return _literal(f"{name}=")

    def _value(self, schema: object, where: str, depth: int) -> str:
        """A rule for one value."""
        self._values += 1
        if self._values > MAX_VALUES:
            raise UsageError(f"{where}: the tools have more than {MAX_VALUES} values in all")
        if depth > MAX_DEPTH:
            raise UsageError(f"{where}: arguments are nested more than {MAX_DEPTH} deep")
        if schema is True:
            schema = {}
        if not isinstance(schema, Mapping):
            raise UsageError(f"{where} is {str(schema)[:40]!r}; a JSON Schema is needed")
        self._check_keywords(schema, where)
        if "$ref" in schema:
            return self._reference(schema, where, depth)
        if "const" in schema or "enum" in schema:
            return self._listed(schema, where, depth)
        if "anyOf" in schema:
            _require_alone(schema, "anyOf", where)
            options = _member(schema, "anyOf", list, where, [])
            if not options:
                raise UsageError(f"{where}.anyOf is empty; no value would be possible")
            rules = [
                self._value(option, f"{where}.anyOf[{number}]", depth)
                for number, option in enumerate(options)
            ]
            return self._rule(" | ".join(rules))
        kinds = _kinds(schema, where)
        if kinds is None:
            return self._free(min(_FREE_DEPTH, MAX_DEPTH - depth))
        return self._rule(" | ".join(self._kind(kind, schema, where, depth) for kind in kinds))

    def _check_keywords(self, schema: Mapping[str, Any], where: str) -> None:
        for name in schema:
            if name not in _KEYWORDS and name not in _REMARKS:
                raise UsageError(
                    f"{where}.{str(name)[:60]}: this keyword cannot be kept while decoding; "
                    f"possible are {', '.join(sorted(_KEYWORDS))}"
                )

    def _reference(self, schema: Mapping[str, Any], where: str, depth: int) -> str:
        _require_alone(schema, "$ref", where)
        target = schema["$ref"]
        if not isinstance(target, str) or not target.startswith("#/"):
            raise UsageError(f"{where}.$ref is {str(target)[:60]!r}; '#/$defs/NAME' is needed")
        if target in self._open:
            raise UsageError(f"{where}.$ref: {target[:60]!r} refers to itself; calls are finite")
        found: Any = self._root
        for part in target[2:].split("/"):
            name = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, Mapping) or name not in found:
                raise UsageError(f"{where}.$ref is {target[:60]!r}, which is not there")
            found = found[name]
        self._open.append(target)
        rule = self._value(found, where, depth)
        self._open.pop()
        return rule

    def _listed(self, schema: Mapping[str, Any], where: str, depth: int) -> str:
        name = "const" if "const" in schema else "enum"
        _require_alone(schema, name, where, {"type"})
        values = [schema["const"]] if name == "const" else _member(schema, "enum", list, where, [])
        kinds = _kinds(schema, where)
        possible = [value for value in values if kinds is None or _is_of(value, kinds)]
        if not possible:
            raise UsageError(f"{where}.{name} has no value of the type; none would be possible")
        self._values += len(possible)
        return self._rule(" | ".join(self._given(value, where, depth) for value in possible))

    def _given(self, value: object, where: str, depth: int) -> str:
        """Exactly this value."""
        if isinstance(value, str):
            return self._text(value)
        try:
            check_value(value, depth)
        except ToolCallError as error:
            raise UsageError(f"{where}: no call can have this value: {error}") from error
        return _literal(write_value(value, self._form))

    def _text(self, text: str) -> str:
        """This string, in each kind of quotes."""
        return (
            "(" + " | ".join(_literal(_quoted(text, quote)) for quote in _QUOTES[self._form]) + ")"
        )

    def _word(self, value: bool | None) -> str:
        return _literal(write_value(value, self._form))

    def _kind(self, kind: str, schema: Mapping[str, Any], where: str, depth: int) -> str:
        match kind:
            case "null":
                return self._word(None)
            case "boolean":
                return f"({self._word(True)} | {self._word(False)})"
            case "integer" | "number":
                return self._number(kind, schema, where)
            case "string":
                return self._string(schema, where)
            case "array":
                return self._array(schema, where, depth)
        return self._object(schema, where, depth)

    def _number(self, kind: str, schema: Mapping[str, Any], where: str) -> str:
        limits = {name: schema[name] for name in _NUMBER_LIMITS if name in schema}
        if not limits:
            return "INTEGER" if kind == "integer" else "NUMBER"
        for name, value in limits.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise UsageError(f"{where}.{name} is {str(value)[:40]!r}; a number is needed")
            if not abs(value) <= _LARGEST:
                raise UsageError(f"{where}.{name} is {value}; at most 10^18 can be kept")
        if "minimum" not in limits and "exclusiveMinimum" not in limits:
            limits["minimum"] = -_LARGEST
        if "maximum" not in limits and "exclusiveMaximum" not in limits:
            limits["maximum"] = _LARGEST
        return self._embedded({"type": kind, **limits})

    def _string(self, schema: Mapping[str, Any], where: str) -> str:
        shortest, longest = _counts(schema, "minLength", "maxLength", where)
        exact = {name: schema[name] for name in ("pattern", "format") if name in schema}
        if exact:
            lengths = {"minLength": shortest, "maxLength": longest}
            limits = {name: value for name, value in lengths.items() if value}
            return self._embedded({"type": "string", **exact, **limits})
        count = f"{{{shortest},{'' if longest is None else longest}}}"
        quoted = (f"/{quote}{_character(quote)}{count}{quote}/" for quote in _QUOTES[self._form])
        return "(" + " | ".join(quoted) + ")"

    def _embedded(self, schema: Mapping[str, Any]) -> str:
        """A value whose schema the engine itself keeps; JSON's numbers and strings are Python's."""
        return self._rule(f"%json {json.dumps({**schema, 'x-guidance': _EXACT})}")

    def _array(self, schema: Mapping[str, Any], where: str, depth: int) -> str:
        fewest, most = _counts(schema, "minItems", "maxItems", where)
        if most == 0:
            return '"[" "]"'
        item = self._value(schema.get("items", True), f"{where}.items", depth + 1)
        most_more = None if most is None else most - 1
        some = item + _repeated(f"COMMA {item}", max(fewest - 1, 0), most_more)
        return f'"[" {some} "]"' if fewest else f'"[" ({some})? "]"'

    def _object(self, schema: Mapping[str, Any], where: str, depth: int) -> str:
        additional = schema.get("additionalProperties", True)
        if schema.get("properties") or additional is False:
            return f'"{{" {self._members(schema, where, depth)} "}}"'
        self._members(schema, where, depth)  # `required` has nothing to name
        if additional is True and depth >= MAX_DEPTH:
            return '"{" "}"'
        inner = self._value(additional, f"{where}.additionalProperties", depth + 1)
        return self._mapping(inner)

    def _mapping(self, inner: str) -> str:
        pair = f"{self._string({}, '')} COLON {inner}"
        return f'"{{" ({pair} (COMMA {pair})*)? "}}"'

    def _free(self, levels: int) -> str:
        """Any value, so deep at most."""
        words = " | ".join(map(self._word, (None, True, False)))
        scalar = f"{words} | NUMBER | {self._string({}, '')}"
        rule = self._rule(scalar)
        for _ in range(levels):
            array = f'"[" ({rule} (COMMA {rule})*)? "]"'
            rule = self._rule(f"{scalar} | {array} | {self._mapping(rule)}")
        return rule


def _repeated(body: str, least: int, most: int | None) -> str:
    """Lark refuses an upper end of 0."""
    return "" if most == 0 else f" ({body}){{{least},{'' if most is None else most}}}"


def _literal(text: str) -> str:
    """A string of Lark."""
    return json.dumps(text, ensure_ascii=False)


def _quoted(text: str, quote: str) -> str:
    """A string as JSON and Python write it, in these quotes."""
    inside = json.dumps(text, ensure_ascii=False)[1:-1]
    return (
        quote + (inside if quote == '"' else inside.replace('\\"', '"').replace("'", "\\'")) + quote
    )


def _character(quote: str) -> str:
    """A regex of one character of a string: no control character, no half of a surrogate pair."""
    return (
        rf"(?:[^{quote}\\\x00-\x1f\x7f]|\\[{quote}\\bfnrt]"
        r"|\\u(?:[0-9a-cA-CefEF][0-9a-fA-F]{3}|[dD][0-7][0-9a-fA-F]{2}))"
    )


def _kinds(schema: Mapping[str, Any], where: str) -> Sequence[str] | None:
    """The types that a schema names; None where it does not say."""
    given = schema.get("type")
    if given is None:
        if "properties" in schema or "additionalProperties" in schema:
            return ("object",)
        if "items" in schema:
            return ("array",)
        constraint = next((name for name in schema if name not in _REMARKS), None)
        if constraint is not None and constraint not in ("const", "enum"):
            raise UsageError(f"{where}.{constraint}: the type is missing; add it")
        return None
    kinds = given if isinstance(given, list) else [given]
    for kind in kinds:
        if kind not in _TYPES:
            raise UsageError(f"{where}.type is {str(kind)[:40]!r}; one of {', '.join(_TYPES)}")
    if not kinds:
        raise UsageError(f"{where}.type is empty; no value would be possible")
    return kinds


def _is_of(value: object, kinds: Sequence[str]) -> bool:
    match value:
        case None:
            return "null" in kinds
        case bool():
            return "boolean" in kinds
        case int():
            return "integer" in kinds or "number" in kinds
        case float():
            return "number" in kinds or ("integer" in kinds and value.is_integer())
        case str():
            return "string" in kinds
        case list():
            return "array" in kinds
    return "object" in kinds


def _member(
    schema: Mapping[str, Any],
    name: str,
    kind: type,
    where: str,
    default: Any,  # noqa: ANN401
) -> Any:  # noqa: ANN401
    value = schema.get(name, default)
    if not isinstance(value, kind):
        wanted = "a list" if kind is list else "an object"
        raise UsageError(f"{where}.{name} is {str(value)[:40]!r}; {wanted} is needed")
    return value


def _require_alone(
    schema: Mapping[str, Any], name: str, where: str, also: frozenset[str] | set[str] = frozenset()
) -> None:
    other = next((key for key in schema if key != name and key not in _REMARKS | also), None)
    if other is not None:
        raise UsageError(f"{where}.{other}: cannot be kept next to {name}; write it inside")


def _counts(schema: Mapping[str, Any], least: str, most: str, where: str) -> tuple[int, int | None]:
    for name in (least, most):
        value = schema.get(name, 0)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MAX_COUNT:
            raise UsageError(
                f"{where}.{name} is {str(value)[:40]!r}; an integer of 0 to {_MAX_COUNT} is needed"
            )
    longest = schema.get(most)
    shortest = int(schema.get(least, 0))
    if longest is not None and longest < shortest:
        raise UsageError(f"{where}.{most} is {longest}, below {least}, which is {shortest}")
    return shortest, None if longest is None else int(longest)


def _require_dotted(name: str, where: str) -> None:
    parts = name.split(".")
    usable = all(_IDENTIFIER.fullmatch(part) and not keyword.iskeyword(part) for part in parts)
    if not usable or parts[-1] == "call":
        raise UsageError(
            f"{where}: {name!r} cannot be the name of a function in a Python call; rename it, or "
            "use the format json"
        )
