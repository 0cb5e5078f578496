"""Text that a person typed, kept apart from text that a chat template writes.

While a dialog is rendered, a mark follows each character of a message with which a control token
could begin. So no part of a message begins one, whatever the template joins it with, cuts out of it
or replaces in it. The template itself does not see the marks: what it compares, searches and counts
is what was typed.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, SupportsIndex

#: A Unicode noncharacter: no text has it.
MARK: Final = "\ufdd0"
_REPLACEMENT: Final = "\ufffd"
#: replaces a character by itself and a mark
_MARKED: Final = rf"\g<0>{MARK}"
_NOTHING: Final = re.compile("(?!)")
_UNIT: Final = re.compile(f".{MARK}?", re.DOTALL)


def mark_typed(value: Any, firsts: Iterable[str]) -> Any:  # noqa: ANN401
    """A JSON value in which every string, names included, is a `TypedText`.

    Args:
        value: A message, or a tool.
        firsts: First characters of the control tokens; in either case, since templates change it.
    """
    found = "".join(map(re.escape, sorted(set(firsts))))
    pattern = re.compile(f"[{found}]", re.IGNORECASE) if found else _NOTHING

    def marked(inner: Any) -> Any:  # noqa: ANN401
        if isinstance(inner, str):
            return TypedText(pattern.sub(_MARKED, inner.replace(MARK, _REPLACEMENT)), pattern)
        if isinstance(inner, Mapping):
            return {marked(key): marked(member) for key, member in inner.items()}
        if isinstance(inner, (list, tuple)):
            return [marked(member) for member in inner]
        return inner

    return marked(value)


def without_marks(text: str) -> str:
    """What was typed."""
    return str.replace(text, MARK, "")


class TypedText(str):
    """A string with marks, of which Python's own string operations see nothing.

    What a template makes of it with any other operation still has the marks.
    """

    __slots__ = ("_pattern",)
    _pattern: re.Pattern[str]

    def __new__(cls, marked: str, pattern: re.Pattern[str] = _NOTHING) -> "TypedText":
        """A text with its marks.

        Args:
            marked: The text.
            pattern: What has been marked in it; by default unknown, as where Jinja's sandbox makes
                a string of the same class.
        """
        found = super().__new__(cls, str.__str__(marked))
        found._pattern = pattern
        return found

    def _like(self, marked: str) -> "TypedText":
        return TypedText(marked, self._pattern)

    def _marked(self, value: Any) -> Any:  # noqa: ANN401
        """What a template looks for, with the marks that it has in a typed text."""
        if isinstance(value, tuple):
            return tuple(map(self._marked, value))
        if not isinstance(value, str):
            return value
        return self._pattern.sub(_MARKED, without_marks(value))

    def __str__(self) -> "TypedText":
        return self

    def __hash__(self) -> int:
        return hash(without_marks(self))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and without_marks(self) == without_marks(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __lt__(self, other: str) -> bool:
        return without_marks(self) < without_marks(other)

    def __le__(self, other: str) -> bool:
        return without_marks(self) <= without_marks(other)

    def __gt__(self, other: str) -> bool:
        return without_marks(self) > without_marks(other)

    def __ge__(self, other: str) -> bool:
        return without_marks(self) >= without_marks(other)

    def __len__(self) -> int:
        return len(without_marks(self))

    def __contains__(self, part: object) -> bool:
        return isinstance(part, str) and without_marks(part) in without_marks(self)

    def __iter__(self) -> Iterator["TypedText"]:
        return (self._like(unit) for unit in _UNIT.findall(self))

    def __getitem__(self, place: SupportsIndex | slice) -> "TypedText":
        units: list[str] = _UNIT.findall(self)
        return self._like("".join(units[place]) if isinstance(place, slice) else units[place])

    def __add__(self, other: str) -> "TypedText":
        return self._like(str.__add__(self, other))

    def __radd__(self, other: str) -> "TypedText":
        return self._like(str.__add__(other, self))


def _counting(name: str) -> Callable[..., Any]:
    """A method whose result says something about the text."""

    def method(self: TypedText, *given: Any) -> Any:  # noqa: ANN401
        plain = [without_marks(each) if isinstance(each, str) else each for each in given]
        return getattr(without_marks(self), name)(*plain)

    return method


def _cutting(name: str) -> Callable[..., Any]:
    """A method whose result is made of the text; its first argument is looked for."""

    def method(self: TypedText, *given: Any, **named: Any) -> Any:  # noqa: ANN401
        looked_for = [self._marked(each) for each in given[:1]]
        result = getattr(str, name)(self, *looked_for, *given[1:], **named)
        return (
            self._like(result) if isinstance(result, str) else type(result)(map(self._like, result))
        )

    return method


def _casing(name: str) -> Callable[..., TypedText]:
    """A method that changes the case; what a character becomes is marked as it was."""

    def method(self: TypedText) -> TypedText:
        units: list[str] = _UNIT.findall(self)
        changed: str = getattr(without_marks(self), name)()
        if len(changed) == len(units):
            pairs = zip(units, changed, strict=True)
            return self._like("".join(new + old[1:] for old, new in pairs))
        # One has become several, and nobody knows which: all are marked.
        return self._like("".join(new + MARK for new in changed))

    return method


def _stripping(*, left: bool, right: bool) -> Callable[..., TypedText]:
    def method(self: TypedText, gone: str | None = None) -> TypedText:
        units: list[str] = _UNIT.findall(self)
        characters = None if gone is None else without_marks(gone)
        start, end = 0, len(units)
        while left and start < end and not units[start][0].strip(characters):
            start += 1
        while right and start < end and not units[end - 1][0].strip(characters):
            end -= 1
        return self._like("".join(units[start:end]))

    return method


for _name in ("count", "endswith", "find", "index", "isdigit", "isspace", "rfind", "startswith"):
    setattr(TypedText, _name, _counting(_name))
for _name in (
    *("partition", "removeprefix", "removesuffix", "replace", "rpartition", "rsplit", "split"),
    "splitlines",
):
    setattr(TypedText, _name, _cutting(_name))
for _name in ("capitalize", "casefold", "lower", "swapcase", "title", "upper"):
    setattr(TypedText, _name, _casing(_name))
TypedText.strip = _stripping(left=True, right=True)  # type: ignore[method-assign]
TypedText.lstrip = _stripping(left=True, right=False)  # type: ignore[method-assign]
TypedText.rstrip = _stripping(left=False, right=True)  # type: ignore[method-assign]
