"""The tokens that every dialog with a system prompt begins with, whatever the user says."""

from collections.abc import Sequence
from datetime import date
from itertools import takewhile
from typing import Final

from llama_edge.core.errors import UsageError
from llama_edge.text.tokenizer import Tokenizer

#: Two messages without a token in common.
_MESSAGES: Final = ("a", "0")
#: Two days without a number in common.
_DAYS: Final = (date(2001, 2, 3), date(2024, 11, 30))


def system_prefix(tokenizer: Tokenizer, system: str, day: date) -> tuple[int, ...]:
    """What two dialogs have in common in which only the user's message differs.

    Args:
        tokenizer: With the chat template.
        system: The system prompt.
        day: What the template takes for the current day.

    Raises:
        TokenizerError: There is no chat template, or it takes no system prompt.
        UsageError: The template does not write the system prompt before the user's message.
    """
    with_system, without = (
        _common(*(tokenizer.encode_chat(_dialog(text, said), today=day) for said in _MESSAGES))
        for text in (system, None)
    )
    if len(with_system) <= len(without) and with_system == without[: len(with_system)]:
        raise UsageError(
            "the chat template writes nothing of the system prompt before the user's message, so "
            f"that dialogs have only their first {len(with_system)} tokens in common: there is "
            "nothing to store"
        )
    return with_system


def depends_on_day(tokenizer: Tokenizer, system: str) -> bool:
    """Whether the chat template writes the current day into such a dialog's beginning.

    Raises:
        TokenizerError: There is no chat template, or it takes no system prompt.
    """
    one, other = (tokenizer.encode_chat(_dialog(system, _MESSAGES[0]), today=day) for day in _DAYS)
    return one != other


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common."""
    pairs = zip(first, second, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _common(first: Sequence[int], second: Sequence[int]) -> tuple[int, ...]:
    return tuple(first[: common_length(first, second)])


def _dialog(system: str | None, said: str) -> list[dict[str, str]]:
    messages = [{"role": "user", "content": said}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return messages
