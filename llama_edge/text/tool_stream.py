"""Tool calls while an answer is still being written: what is known of them, piece by piece.

Everything that the stream gives out is what `parse_tool_calls` finds in the whole answer, however
it was cut into pieces. Where an answer begins as a call and does not end as that one, the end
raises an error. What is written in an unusual way is given out at the end.
"""

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from llama_edge.core.errors import ToolCallError
from llama_edge.text.tool_calls import (
    PYTHON_TAG,
    CallFormat,
    ToolCall,
    literal_value,
    parse_tool_calls,
    write_value,
)

_JSON_HEAD: Final = re.compile(
    r'[\s;,\]}]*\[?\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:parameters|arguments)"\s*:\s*'
    r"(?=\{)"
)
_PYTHON_HEAD: Final = re.compile(r"\s*[\[,]\s*([A-Za-z_][A-Za-z0-9_.]*)\(")
_ARGUMENT: Final = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*)\s*=\s*")
_TRIPLE_QUOTES: Final = re.compile(r"\"\"\"|'''")
_CLOSING: Final = {")": "(", "]": "[", "}": "{"}


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More of an answer that is no call."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CallDelta:
    """More of one call; all `arguments` of an index together are the JSON of its arguments."""

    index: int
    #: in the first delta of an index, and in no other
    name: str | None = None
    arguments: str = ""


Delta = TextDelta | CallDelta


@dataclass(slots=True)
class _Scanner:
    """Follows brackets and strings, to find where a value ends."""

    open: list[str] = field(default_factory=list)
    quote: str = ""
    escaped: bool = False
    #: a comment or a continued line, which is not followed
    lost: bool = False

    def is_end(self, letter: str, ends: str) -> bool:
        """Whether this letter, outside of all brackets and strings, is one of `ends`."""
        if self.quote:
            if self.escaped:
                self.escaped = False
            elif letter == "\\":
                self.escaped = True
            elif letter == self.quote:
                self.quote = ""
            return False
        if not self.open and letter in ends:
            return True
        if letter in "#\\":
            self.lost = True
        elif letter in "\"'":
            self.quote = letter
        elif letter in "([{":
            self.open.append(letter)
        elif letter in _CLOSING and self.open:
            self.open.pop()
        return False


class ToolCallStream:
    """Takes an answer's pieces; gives out its text, or its calls as far as they are known."""

    def __init__(self) -> None:
        self._whole = ""
        self._is_text = False
        self._format: CallFormat | None = None
        self._stuck = False
        #: where in `_whole` the next part begins, and how far its value was scanned
        self._place = 0
        self._scanned = 0
        self._scanner: _Scanner | None = None
        self._names: list[str] = []
        self._arguments: list[str] = []

    def push(self, piece: str) -> list[Delta]:
        """What this piece adds."""
        self._whole += piece
        if self._is_text:
            return [TextDelta(piece)] if piece else []
        if self._format is None:
            return self._begin()
        return list(self._more())

    def flush(self) -> list[Delta]:
        """What is left at the end.

        Raises:
            ToolCallError: As `parse_tool_calls`; or what was given out as a call is none in the
                whole answer.
        """
        if self._is_text:
            return []
        calls = parse_tool_calls(self._whole)
        if not calls and not self._names:
            self._is_text = True
            return [TextDelta(self._whole)] if self._whole else []
        return list(self._rest(calls))

    def _begin(self) -> list[Delta]:
        """Decide what kind of answer it is, as soon as its first letters say so."""
        text = self._whole.lstrip()
        if not text or (PYTHON_TAG.startswith(text) and text != PYTHON_TAG):
            return []
        tagged = text.startswith(PYTHON_TAG)
        text = text.removeprefix(PYTHON_TAG).lstrip()
        if not text:
            return []
        if not tagged and text[0] not in "{[":
            self._is_text = True
            return [TextDelta(self._whole)]
        self._place = len(self._whole) - len(text)
        if text[0] == "{":
            self._format = CallFormat.JSON
        elif text[0] == "[":
            inner = text[1:].lstrip()
            if not inner:
                return []
            self._format = CallFormat.JSON if inner[0] == "{" else CallFormat.PYTHONIC
        else:  # a call without its list, or an error: known at the end
            self._format, self._stuck = CallFormat.PYTHONIC, True
        return list(self._more())

    def _more(self) -> Iterator[Delta]:
        while not self._stuck:
            before = (self._place, self._scanned, len(self._names))
            step = self._json() if self._format is CallFormat.JSON else self._python()
            yield from step
            if before == (self._place, self._scanned, len(self._names)):
                return

    def _json(self) -> Iterator[Delta]:
        """One step: a call's head, or more of its arguments."""
        if self._scanner is None:
            head = _JSON_HEAD.match(self._whole, self._place)
            if head is None:
                return
            try:
                name = json.loads(head[1])
            except ValueError:
                self._stuck = True
                return
            self._place = self._scanned = head.end()
            self._scanner = _Scanner()
            yield self._named(name)
            return
        begin = self._scanned
        while self._scanned < len(self._whole):
            letter = self._whole[self._scanned]
            self._scanned += 1
            self._scanner.is_end(letter, "")
            if not self._scanner.open and not self._scanner.quote:
                self._scanner = None
                break
        yield self._argued(self._whole[begin : self._scanned])
        if self._scanner is None:
            self._place = self._scanned

    def _python(self) -> Iterator[Delta]:
        """One step: a call's head, or an argument that is whole."""
        if self._scanner is None:
            head = _PYTHON_HEAD.match(self._whole, self._place)
            if head is None:
                return
            self._place = self._scanned = head.end()
            self._scanner = _Scanner()
            yield self._named(head[1].removesuffix(".call"))
            return
        while self._scanned < len(self._whole):
            letter = self._whole[self._scanned]
            self._scanned += 1
            if self._scanner.is_end(letter, ",)"):
                yield from self._argument(self._whole[self._place : self._scanned - 1], letter)
                return
            if self._scanner.lost:
                self._stuck = True
                return

    def _argument(self, text: str, end: str) -> Iterator[Delta]:
        self._place = self._scanned
        self._scanner = None if end == ")" else _Scanner()
        given = self._arguments[-1]
        written = ""
        if text.strip():
            pair = self._pair(text)
            if pair is None:
                self._stuck = True
                return
            written = f"{', ' if given else '{'}{pair}"
        if end == ")":
            written += "}" if given or written else "{}"
        if written:
            yield self._argued(written)

    def _pair(self, text: str) -> str | None:
        """An argument as a member of a JSON object; None where it is no plain value."""
        named = _ARGUMENT.match(text)
        if named is None or _TRIPLE_QUOTES.search(text):
            return None
        try:
            value = literal_value(ast.parse(text[named.end() :].strip(), mode="eval").body)
            return f"{json.dumps(named[1])}: {write_value(value, CallFormat.JSON)}"
        except (SyntaxError, ValueError, RecursionError, MemoryError, ToolCallError):
            return None

    def _named(self, name: str) -> CallDelta:
        self._names.append(name)
        self._arguments.append("")
        return CallDelta(index=len(self._names) - 1, name=name)

    def _argued(self, text: str) -> CallDelta:
        self._arguments[-1] += text
        return CallDelta(index=len(self._names) - 1, arguments=text)

    def _rest(self, calls: tuple[ToolCall, ...]) -> Iterator[Delta]:
        """What was not given out yet; what was must be true of the whole answer."""
        if len(self._names) > len(calls):
            raise ToolCallError(f"{self._whole[:60]!r} begins as a call and is none as a whole")
        for index, call in enumerate(calls):
            written = write_value(call.arguments, CallFormat.JSON)
            if index >= len(self._names):
                yield CallDelta(index=index, name=call.name, arguments=written)
                continue
            given = self._arguments[index]
            missing = "" if _is_json(given, call) else _suffix(written, given)
            if self._names[index] != call.name or missing is None:
                raise ToolCallError(
                    f"the call {self._names[index][:60]!r} does not end as it began"
                )
            if missing:
                yield CallDelta(index=index, arguments=missing)


def _is_json(text: str, call: ToolCall) -> bool:
    try:
        return bool(json.loads(text) == call.arguments)
    except (ValueError, RecursionError):
        return False


def _suffix(written: str, given: str) -> str | None:
    return written.removeprefix(given) if written.startswith(given) else None
