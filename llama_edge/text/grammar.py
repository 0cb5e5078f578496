"""Constrained decoding: which tokens may come next, so that an answer is what a grammar says.

The engine is llguidance (see docs/tools.md for why). It gets the bytes of the model's own tokens,
and never parses the tokenizer's file. Schemas, patterns and tools come from outside: their size is
limited here, they are compiled in a child process first, and the work for each token is limited by
the engine.
"""

import json
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import llguidance
import numpy as np
from numpy.typing import NDArray

from llama_edge.confined import ConfinedError, Limits, Worker
from llama_edge.core.errors import TokenizerError, UsageError
from llama_edge.text import grammar_child
from llama_edge.text.generate import Constraint
from llama_edge.text.shortest_ending import ShortestEnding, token_mask
from llama_edge.text.token_bytes import greedy
from llama_edge.text.tokenizer import Tokenizer
from llama_edge.text.tool_calls import CallFormat
from llama_edge.text.tool_grammar import call_rules
from llama_edge.text.tools import MAX_CALLS, Tool, ToolChoice

MAX_SCHEMA_BYTES: Final = 1 << 16
MAX_SCHEMA_VALUES: Final = 4096
MAX_SCHEMA_DEPTH: Final = 32
MAX_PATTERN_CHARACTERS: Final = 4096
_SHOWN: Final = 300
#: At the end of the budget: so many tokens, and some more for a long call, are looked after.
_FREE_TOKENS: Final = 48

#: An answer that is no call, whatever it is: what `parse_tool_calls` would take for one, and what
#: begins as JSON, is left to calls. Python's `strip` takes more for white space than `\s`.
_TEXT: Final = r"TEXT: /[\s\x1c-\x1f]*(([^\s\x1c-\x1f{\[<]|<[^|])(.|\n)*|<)?/"


@dataclass(frozen=True, slots=True)
class JsonSchema:
    """The answer is JSON that is valid under this schema."""

    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Regex:
    """The whole answer matches this pattern, in the syntax of Rust's `regex`."""

    pattern: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCalls:
    """The answer calls some of these tools, as far as `choice` says."""

    tools: Sequence[Tool]
    format: CallFormat
    #: a tool: this one is called, once
    choice: ToolChoice | Tool = ToolChoice.AUTO
    max_calls: int = 1


Grammar = JsonSchema | Regex | ToolCalls


def constraint_for(
    grammar: Grammar, tokenizer: Tokenizer, eos_token_ids: Sequence[int], vocab_size: int
) -> Constraint:
    """Follow a grammar through one answer.

    Args:
        grammar: What the answer must be.
        tokenizer: The model's; what the engine needs of it is made once, which takes seconds.
        eos_token_ids: Allowed where the grammar is complete, and nowhere else.
        vocab_size: Logits that the model gives; ids without a token are never allowed.

    Raises:
        UsageError: The grammar is wrong, too large, or asks for what cannot be kept.
        TokenizerError: The bytes of the tokenizer's tokens are not known.
    """
    source, tables = _checked(grammar), _tables(tokenizer)
    matcher = llguidance.LLMatcher(tables.engine, source, log_level=0, limits=grammar_child.LIMITS)
    if matcher.is_error():
        raise UsageError(f"{_NAMES[type(grammar)]}: {_reason(matcher)}")
    return _Followed(matcher, tables, eos_token_ids, vocab_size)


def check_grammar(grammar: Grammar) -> None:
    """Whether a grammar can be followed, without a tokenizer.

    Raises:
        UsageError: As `constraint_for`.
    """
    _checked(grammar)


def _checked(grammar: Grammar) -> str:
    """The grammar in the engine's form, once it was compiled in a child process."""
    source = _source(grammar)
    fault = _fault(source)
    if fault:
        raise UsageError(f"{_NAMES[type(grammar)]}: {fault}")
    return source


_NAMES: Final[Mapping[type, str]] = {
    JsonSchema: "the JSON schema",
    Regex: "the regex",
    ToolCalls: "the tools",
}
#: The largest grammars within the engine's limits take a second.
_CHILD_LIMITS: Final = Limits(memory_bytes=1 << 30, cpu_s=3, wall_s=60)


@lru_cache(maxsize=1)
def _checker() -> Worker:
    return Worker(grammar_child.__name__, _CHILD_LIMITS)


@lru_cache(maxsize=64)
def _fault(source: str) -> str:
    """What is wrong with a grammar; nothing: an empty text."""
    try:
        found: str = _checker().ask({"source": source})
    except ConfinedError as error:
        return f"it is too complex, and was stopped: {error}"
    return _first_line(found)


def _source(grammar: Grammar) -> str:
    """The grammar in the engine's form."""
    match grammar:
        case JsonSchema(schema=schema):
            _check_size(schema)
            # One space or none after a comma and a colon, and no other white space: a small model
            # would write it without end. No `\u`: half of a surrogate pair is no text.
            return llguidance.LLMatcher.grammar_from_json_schema(
                json.dumps(schema),
                overrides={
                    "item_separator": ", ?",
                    "key_separator": ": ?",
                    "whitespace_flexible": False,
                    "json_allowed_escapes": '"\\bfnrt',
                },
            )
        case Regex(pattern=pattern):
            if not 0 < len(pattern) <= MAX_PATTERN_CHARACTERS:
                raise UsageError(
                    f"the regex has {len(pattern)} characters; 1 to {MAX_PATTERN_CHARACTERS} "
                    "are possible"
                )
            if (len(pattern) - len(pattern.rstrip("\\"))) % 2:  # the engine would drop it
                raise UsageError("the regex ends inside an escape: its last backslash is alone")
            return llguidance.LLMatcher.grammar_from_regex(pattern)
        case ToolCalls():
            return llguidance.LLMatcher.grammar_from_lark(_tool_lark(grammar))


def _tool_lark(grammar: ToolCalls) -> str:
    if grammar.choice is ToolChoice.NONE:
        return f"start: TEXT\n{_TEXT}\n"
    tools, most = grammar.tools, grammar.max_calls
    if isinstance(grammar.choice, Tool):
        tools, most = (grammar.choice,), 1
    if not tools:
        raise UsageError("there are no tools to call")
    if not 1 <= most <= MAX_CALLS:
        raise UsageError(f"max_calls is {most}; 1 to {MAX_CALLS} are possible")
    rules = call_rules(tools, grammar.format, most)
    if grammar.choice is ToolChoice.AUTO:
        return f"start: TEXT | calls\n{rules}{_TEXT}\n"
    return f"start: calls\n{rules}"


def _check_size(schema: Mapping[str, Any]) -> None:
    """No schema on which the engine takes long, or overflows its stack."""
    count = 0
    unseen: list[tuple[Any, int]] = [(schema, 1)]
    while unseen:
        value, depth = unseen.pop()
        if depth > MAX_SCHEMA_DEPTH:
            raise UsageError(f"the JSON schema is nested more than {MAX_SCHEMA_DEPTH} deep")
        inner = list(value.values()) if isinstance(value, Mapping) else value
        if isinstance(inner, (list, tuple)):
            count += len(inner)
            unseen.extend((item, depth + 1) for item in inner)
        if count > MAX_SCHEMA_VALUES:
            raise UsageError(f"the JSON schema has more than {MAX_SCHEMA_VALUES} values")


class _Followed:
    """A grammar, as far as an answer has gone."""

    def __init__(
        self,
        matcher: llguidance.LLMatcher,
        tables: "_Tables",
        eos_token_ids: Sequence[int],
        vocab_size: int,
    ) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._known = min(vocab_size, tables.size)
        self._ends = [number for number in eos_token_ids if number < vocab_size]
        self._endings = tables.endings
        #: of the first token only: a space there would be lost in the text
        self._not_first = tables.not_first
        shortest = self._ending(matcher)
        #: with more tokens left than this, nothing is looked ahead
        self._watched = _FREE_TOKENS + 2 * len(shortest or ())

    def allowed(self) -> NDArray[np.bool_]:
        """See `Constraint`.

        Raises:
            UsageError: The grammar exceeds the engine's limits here.
        """
        found = token_mask(self._matcher, self._known)
        self._check()
        mask = np.zeros(self._vocab_size, np.bool_)
        mask[: self._known] = found
        if self._not_first is not None:
            mask[: self._known] &= ~self._not_first[: self._known]
        mask[self._ends] = self._matcher.is_accepting()
        return mask

    def in_time(self, token: int, left: int) -> int:
        """See `Constraint`."""
        if left > self._watched:
            return token
        after = self._matcher.deep_copy()
        after.consume_token(token)
        ending = self._ending(after)
        if ending is None or len(ending) <= left:
            return token
        known = self._ending(self._matcher)
        if known is None:
            return token
        return [*known, *self._ends, token][0]

    def _ending(self, matcher: llguidance.LLMatcher) -> list[int] | None:
        return self._endings.of(matcher, self._known)

    def push(self, token: int) -> None:
        """See `Constraint`."""
        self._not_first = None
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise UsageError(f"the grammar cannot be followed further: {_reason(self._matcher)}")


def _reason(matcher: llguidance.LLMatcher) -> str:
    return _first_line(matcher.get_error())


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # The regex parser puts what is wrong into its last line.
    last = next((line for line in lines if line.startswith("error:")), "")
    return " ".join(filter(None, (lines[0] if lines else "", last)))[:_SHOWN]


class _Tables:
    """What the engine needs of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokens = tokenizer.token_bytes
        self.size = len(tokens)
        self.endings = ShortestEnding(tokens)
        self.not_first: NDArray[np.bool_] | None = None
        if tokenizer.drops_first_space:
            self.not_first = np.array([token.startswith(b" ") for token in tokens])
        wrapper = llguidance.TokenizerWrapper(_Spelling(tokenizer, tokens))
        self.engine = llguidance.LLTokenizer(wrapper)


class _Spelling:
    """The tokenizer as llguidance wants it; it has one end token, an id after all others.

    What a grammar leaves no choice about is tokenized as the model's tokenizer does, if that keeps
    the bytes: it may normalize them, add a space, or find a control token in them.
    """

    bos_token_id: int | None = None

    def __init__(self, tokenizer: Tokenizer, tokens: Sequence[bytes]) -> None:
        self.tokens = [*tokens, b""]
        self.eos_token_id = len(tokens)
        self.special_token_ids = [i for i, token in enumerate(self.tokens) if not token]
        self._tokenizer = tokenizer
        self._ids = {token: number for number, token in enumerate(tokens) if token}
        self._longest = max(map(len, self._ids), default=0)

    def __call__(self, text: bytes) -> list[int]:
        try:
            ids = self._tokenizer.encode_rendered(text.decode())
        except (TokenizerError, UnicodeDecodeError):
            ids = []
        if b"".join(self.tokens[number] for number in ids) == text:
            return ids
        return greedy(self._ids, text, self._longest)


_made: "weakref.WeakKeyDictionary[Tokenizer, _Tables]" = weakref.WeakKeyDictionary()


def _tables(tokenizer: Tokenizer) -> _Tables:
    if tokenizer not in _made:
        _made[tokenizer] = _Tables(tokenizer)
    return _made[tokenizer]
