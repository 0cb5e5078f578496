"""One prompt after another in the same cache: what both begin with is read once."""

from collections.abc import Sequence
from dataclasses import dataclass

from llama_edge.core.cache_state import CacheState
from llama_edge.core.session import FloatArray, Session
from llama_edge.text.prompt_prefix import common_length


@dataclass(frozen=True, slots=True)
class StoredBeginning:
    """What many prompts begin with, already read."""

    tokens: tuple[int, ...]
    #: the cache after them
    state: CacheState


class KeptCache:
    """A session that knows the tokens of its cache, and forgets as few as a prompt lets it.

    Args:
        session: Opened, with nothing in its cache; the caller closes it.
        beginning: Restored for a prompt that has it, where the cache does not hold it any more.
    """

    def __init__(self, session: Session, beginning: StoredBeginning | None = None) -> None:
        self._session = session
        self._beginning = beginning
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
        held = self._held
        # Whatever ends a call in its middle, nobody knows then what the cache holds.
        self._held = []
        same = self._restored(tokens, common_length(tokens, held))
        # One token at least is read: the logits come out of it.
        keep = max(min(same, len(tokens) - 1), 0)
        self._session.reset(keep)
        logits = self._session.prefill(tokens[keep:])
        self._held = list(tokens)
        self.read_tokens = len(tokens) - keep
        return logits

    def _restored(self, tokens: Sequence[int], same: int) -> int:
        """How many of the tokens the cache holds, `same` of them by itself.

        All of the stored rows are copied, whatever a prompt needs of them: that is done where it
        spares half of their tokens or more.
        """
        beginning = self._beginning
        if beginning is None:
            return same
        known = common_length(tokens, beginning.tokens)
        if 2 * (known - same) < len(beginning.tokens):
            return same
        self._session.restore(beginning.state)
        return known

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
