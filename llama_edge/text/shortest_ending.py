"""How an answer under a grammar becomes whole with few more tokens.

A small model may write a string without end. What closes a string, a bracket or a number depends on
where the answer is, and the engine says of any token whether it may come; so endings are looked for
on a copy of the engine's state, first among tokens that close something.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import llguidance
import numpy as np
from numpy.typing import NDArray

#: Endings of more tokens are not looked for.
MAX_TOKENS: Final = 400
#: Of a token that brings an answer nearer to its end where nothing can be closed, bytes.
_LONGEST: Final = 4
#: Quotes that are tried: the first that ends the string is taken.
_TRIED: Final = 40
#: Of other tokens, those that are tried for whether the answer can end right after them.
_TRIED_AT_ONCE: Final = 100
_QUOTES: Final = (b'"', b"'")
_BRACKETS: Final = b"}])"


class ShortestEnding:
    """Endings for the answers of one tokenizer.

    Args:
        tokens: Bytes of each token; none of those that are no text.
    """

    def __init__(self, tokens: Sequence[bytes]) -> None:
        def found(
            keep: Callable[[bytes], bool], order: Callable[[bytes], Any]
        ) -> NDArray[np.int64]:
            numbers = [number for number, token in enumerate(tokens) if token and keep(token)]
            return np.array(sorted(numbers, key=lambda number: order(tokens[number])), np.int64)

        def longest_first(token: bytes) -> int:
            return -len(token)

        #: allowed inside a string, and hardly anywhere else
        self._letters = found(lambda token: token in (b"q", b"z", b"~"), longest_first)
        self._quotes = found(
            lambda token: token[:1] in _QUOTES and not token[1:].strip(_BRACKETS), longest_first
        )
        self._brackets = found(lambda token: not token.strip(_BRACKETS), longest_first)
        # A quote begins a string, which can be ended; a comma begins something that must be.
        self._others = found(
            lambda token: len(token) <= _LONGEST,
            lambda token: (token[:1] == b",", token not in _QUOTES, len(token), token),
        )

    def of(self, matcher: llguidance.LLMatcher, known: int) -> list[int] | None:
        """Tokens that make an answer whole: few, if not always the fewest.

        Args:
            matcher: Where the answer is; unchanged.
            known: Tokens from this id on are not used.

        Returns:
            None where no ending was found.
        """
        matcher, found = matcher.deep_copy(), list[int]()
        while not matcher.is_accepting():
            more = matcher.compute_ff_tokens() or self._closing(matcher, known)
            if not more or len(found) > MAX_TOKENS or not matcher.consume_tokens(more):
                return None
            found += more
        return found

    def _closing(self, matcher: llguidance.LLMatcher, known: int) -> list[int]:
        """One token, or none."""
        mask = token_mask(matcher, known)
        if self._is_text(mask):  # a bracket is text here
            for token in _usable(self._quotes, mask)[:_TRIED].tolist():
                after = matcher.deep_copy()
                after.consume_token(token)
                if after.is_accepting() or not self._is_text(token_mask(after, known)):
                    return [token]
        else:  # a quote begins a string here, or ends one that is full
            usable = _usable(self._brackets, mask)
            if len(usable):
                return [int(usable[0])]
        others = _usable(self._others, mask)
        for token in others[:_TRIED_AT_ONCE].tolist():
            after = matcher.deep_copy()
            after.consume_token(token)
            if after.is_accepting():
                return [token]
        return others[:1].tolist()  # type: ignore[no-any-return]

    def _is_text(self, mask: NDArray[np.bool_]) -> bool:
        return len(_usable(self._letters, mask)) > 0


def _usable(numbers: NDArray[np.int64], mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    inside = numbers[numbers < len(mask)]
    return inside[mask[inside]]


def token_mask(matcher: llguidance.LLMatcher, known: int) -> NDArray[np.bool_]:
    """Shape (known,): the tokens that may come next, of those below `known`."""
    bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
    return np.unpackbits(bits, count=known, bitorder="little").astype(np.bool_)
