"""One prompt after another in the same cache: what both begin with is read once."""

from collections.abc import Sequence
from itertools import takewhile

from llama_edge.core.session import FloatArray, Session


class KeptCache:
    """A session that knows the tokens of its cache, and forgets as few as a prompt lets it.

    Args:
        session: Opened, with nothing in its cache; the caller closes it.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._held: list[int] = []
        #: how many tokens of the last prompt the model had to read
        self.read_tokens = 0

    @property
    def max_context(self) -> int:
        """Tokens that the cache holds."""
        return self._session.max_context

    def prefill(self, tokens: Sequence[int]) -> FloatArray:
        """Make `tokens` the sequence; logits (V,) after the last one.

        Raises:
            SessionError: No token, a token outside the vocabulary, or more than the cache holds.
        """
        pairs = zip(tokens, self._held, strict=False)
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        # One token at least is read: the logits come out of it.
        keep = max(min(same, len(tokens) - 1), 0)
        # Whatever ends a call in its middle, nobody knows then what the cache holds.
        self._held = []
        self._session.reset(keep)
        logits = self._session.prefill(tokens[keep:])
        self._held = list(tokens)
        self.read_tokens = len(tokens) - keep
        return logits

    def decode(self, token: int) -> FloatArray:
        """Append one token; logits (V,) after it.

        Raises:
            SessionError: The token is outside the vocabulary, or the cache is full.
        """
        held, self._held = self._held, []
        logits = self._session.decode(token)
        held.append(token)
        self._held = held
        return logits
