"""Making a long dialog fit a context: the oldest exchanges go, the system prompt stays."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llama_edge.core.errors import SessionError

Message = Mapping[str, Any]


def trim_dialog(
    messages: Sequence[Message], count_tokens: Callable[[Sequence[Message]], int], limit: int
) -> tuple[Message, ...]:
    """The newest part of a dialog that fits.

    An exchange is a user's message and everything up to the next one: an answer without its
    question, or a tool's result without its call, would mislead the model, so they go together.
    System messages in front stay.

    Args:
        messages: The whole dialog, oldest first.
        count_tokens: Of a dialog, as it will be rendered.
        limit: Tokens that it may have.

    Raises:
        SessionError: The last exchange alone, with the system messages, is too long.
    """
    first = next(
        (place for place, message in enumerate(messages) if message["role"] != "system"),
        len(messages),
    )
    system, rest = tuple(messages[:first]), messages[first:]
    starts = [place for place, message in enumerate(rest) if message["role"] == "user"]
    tokens = 0
    for start in [0, *(place for place in starts if place > 0)]:
        kept = (*system, *rest[start:])
        tokens = count_tokens(kept)
        if tokens <= limit:
            return kept
    raise SessionError(
        f"the last message needs {tokens} tokens and {limit} are free in the context; shorten it"
    )
