"""What a program can check in an answer, in the manner of IFEval (arXiv 2311.07911).

Each check knows the prompt's language and tools. Thai has no spaces between words and no mark at
the end of a sentence: what would count these is refused for it, and `characters` is there instead.
"""

import json
import re
import unicodedata
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from llama_edge.suites.languages import LANGUAGES, WITHOUT_SPACES, is_in
from llama_edge.suites.tools import Name, Tool, valid_calls

Count = Annotated[int, Meta(ge=0, le=100_000)]
Phrase = Annotated[str, Meta(min_length=1, max_length=200)]
Phrases = Annotated[tuple[Phrase, ...], Meta(min_length=1, max_length=20)]

#: One or more marks, and what may close after them. Devanagari has its own full stop.
_SENTENCE_END: Final = re.compile(r"""[.!?…।॥]+["'”\u2019»)\]*]*(?:\s+|$)""")
_BULLET: Final = re.compile(r"\s*(?:[-*•]|\d{1,3}[.)])\s+\S")
_FENCE: Final = re.compile(r"```(?:json)?\s*\n(.*)\n\s*```", re.DOTALL)


class Asked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What checks know of a prompt."""

    language: Annotated[str, Meta(pattern="^[a-z]{2,3}$")]
    tools: Annotated[tuple[Tool, ...], Meta(max_length=16)] = ()


class Check(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"
):
    """One thing that an answer must have."""

    @property
    def kind(self) -> str:
        """As a suite names it."""
        return str(self.__struct_config__.tag)

    def why_not(self, asked: Asked) -> str | None:
        """Why an answer to such a prompt cannot be checked for it; None if it can."""
        del asked
        return None

    def passes(self, answer: str, asked: Asked) -> bool:
        """Whether an answer has it."""
        raise NotImplementedError


class _Counted(Check, frozen=True):
    """A number within limits; one at least, unless said otherwise."""

    at_least: Count = 1
    at_most: Count | None = None

    def __post_init__(self) -> None:
        if self.at_most is not None and self.at_most < self.at_least:
            raise ValueError(f"at_most is {self.at_most}, and at_least {self.at_least}")

    def count(self, answer: str) -> int:
        """What is limited."""
        raise NotImplementedError

    def passes(self, answer: str, asked: Asked) -> bool:
        """See `Check`."""
        del asked
        found = self.count(answer)
        return found >= self.at_least and (self.at_most is None or found <= self.at_most)


class _CountedBySpaces(_Counted, frozen=True):
    def why_not(self, asked: Asked) -> str | None:
        """See `Check`."""
        if asked.language not in WITHOUT_SPACES:
            return None
        return f"{asked.language} is written without spaces; count characters"


class Words(_CountedBySpaces, frozen=True, tag="words"):
    """What spaces separate and has a letter or a digit."""

    def count(self, answer: str) -> int:
        """See `_Counted`."""
        return sum(any(map(str.isalnum, part)) for part in answer.split())


class Characters(_Counted, frozen=True, tag="characters"):
    """Without white space, and without the marks that stand on another character."""

    def count(self, answer: str) -> int:
        """See `_Counted`."""
        return sum(
            not character.isspace() and unicodedata.category(character)[0] != "M"
            for character in answer
        )


class Sentences(_CountedBySpaces, frozen=True, tag="sentences"):
    """What ends with a mark, and the rest after the last one."""

    def count(self, answer: str) -> int:
        """See `_Counted`."""
        return sum(any(map(str.isalnum, part)) for part in _SENTENCE_END.split(answer))


class Paragraphs(_Counted, frozen=True, tag="paragraphs"):
    """What empty lines separate."""

    def count(self, answer: str) -> int:
        """See `_Counted`."""
        return sum(bool(part.strip()) for part in re.split(r"\n[ \t]*\n", answer))


class Bullets(_Counted, frozen=True, tag="bullets"):
    """Lines that begin with `-`, `*`, `•` or a number."""

    def count(self, answer: str) -> int:
        """See `_Counted`."""
        return sum(_BULLET.match(line) is not None for line in answer.splitlines())


class Contains(Check, frozen=True, tag="contains"):
    """Every phrase, in capitals or not, also inside of a longer word."""

    phrases: Phrases

    def passes(self, answer: str, asked: Asked) -> bool:
        """See `Check`."""
        del asked
        return all(_plain(phrase) in _plain(answer) for phrase in self.phrases)


class Omits(Check, frozen=True, tag="omits"):
    """None of the phrases, and not by saying nothing."""

    phrases: Phrases

    def passes(self, answer: str, asked: Asked) -> bool:
        """See `Check`."""
        del asked
        found = _plain(answer)
        return bool(found) and not any(_plain(phrase) in found for phrase in self.phrases)


class EndsWith(Check, frozen=True, tag="ends_with"):
    """The phrase at the end, in capitals or not."""

    phrase: Phrase

    def passes(self, answer: str, asked: Asked) -> bool:
        """See `Check`."""
        del asked
        return _plain(answer).endswith(_plain(self.phrase))


class LowerCase(Check, frozen=True, tag="lower_case"):
    """Letters, and none of them a capital."""

    def why_not(self, asked: Asked) -> str | None:
        """See `Check`."""
        has_none = asked.language == "hi" or asked.language in WITHOUT_SPACES
        return f"{asked.language} has no capital letters" if has_none else None

    def passes(self, answer: str, asked: Asked) -> bool:
        """See `Check`."""
        del asked
        return any(map(str.islower, answer)) and not any(map(str.isupper, answer))


class InLanguage(Check, frozen=True, tag="language"):
    """The prompt's language is kept."""

    def why_not(self, asked: Asked) -> str | None:
        """See `Check`."""
        if asked.language in LANGUAGES:
            return None
        return f"only {', '.join(LANGUAGES)} are told apart, not {asked.language}"

    def passes(self, answer: str, asked: Asked) -> bool:
        """See `Check`."""
        return is_in(answer, asked.language)


class JsonObject(Check, frozen=True, tag="json_object"):
    """Nothing but a JSON object with exactly these keys; it may be in a fenced block."""

    keys: Phrases

    def passes(self, answer: str, asked: Asked) -> bool:
        """See `Check`."""
        del asked
        text = answer.strip()
        fenced = _FENCE.fullmatch(text)
        try:
            value = json.loads(text if fenced is None else fenced[1])
        except (ValueError, RecursionError):
            return False
        return isinstance(value, dict) and set(value) == set(self.keys)


class CallsTool(Check, frozen=True, tag="tool_call"):
    """Nothing but one valid call of this tool, with these arguments if any are given."""

    name: Name
    arguments: dict[str, str | int | float | bool] = {}

    def why_not(self, asked: Asked) -> str | None:
        """See `Check`."""
        if any(tool.name == self.name for tool in asked.tools):
            return None
        return f"the prompt offers no tool {self.name!r}"

    def passes(self, answer: str, asked: Asked) -> bool:
        """See `Check`."""
        calls = valid_calls(answer, asked.tools)
        if len(calls) != 1 or calls[0].name != self.name:
            return False
        given = calls[0].arguments
        return all(_same(given.get(name), value) for name, value in self.arguments.items())


AnyCheck = (
    Words
    | Characters
    | Sentences
    | Paragraphs
    | Bullets
    | Contains
    | Omits
    | EndsWith
    | LowerCase
    | InLanguage
    | JsonObject
    | CallsTool
)


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).strip().casefold()


def _same(given: Any, wanted: Any) -> bool:  # noqa: ANN401 (JSON values)
    if isinstance(given, str) and isinstance(wanted, str):
        return _plain(given) == _plain(wanted)
    return type(given) is type(wanted) and bool(given == wanted)
