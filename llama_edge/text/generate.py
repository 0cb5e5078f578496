"""Text generation over any session: prefill the prompt, then choose and decode token by token."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from llama_edge.core.errors import GrammarStuckError, SessionError, UsageError
from llama_edge.core.session import FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingConfig:
    """How the next token is chosen; the default takes the most probable one (greedy).

    Raises:
        UsageError: A value is out of range.
    """

    #: 0 is greedy; 1 samples from the model's own distribution
    temperature: float = 0.0
    #: keep the smallest set of tokens whose probabilities sum to at least this
    top_p: float = 1.0
    #: keep this many most probable tokens; 0 keeps all
    top_k: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise UsageError(f"temperature is {self.temperature}; it must be 0 (greedy) or above")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if self.top_k < 0:
            raise UsageError(f"top_k is {self.top_k}; it must be 0 (keep all) or above")
        if self.seed < 0:
            raise UsageError(f"seed is {self.seed}; it must be 0 or above")


GREEDY = SamplingConfig()

#: What `run` and the apps stop after when nothing else ends the answer.
DEFAULT_MAX_NEW_TOKENS = 256


class StopReason(StrEnum):
    """Why a generation ended."""

    EOS = "eos"
    STOP_SEQUENCE = "stop_sequence"
    MAX_NEW_TOKENS = "max_new_tokens"
    CONTEXT_FULL = "context_full"


def token_probabilities(logits: FloatArray, sampling: SamplingConfig) -> NDArray[np.float64]:
    """Probabilities (V,) after temperature, then top_k, then top_p; temperature is not 0.

    The order is that of transformers' `LogitsProcessorList` in `generation/utils.py`.
    """
    order = np.argsort(-logits, kind="stable")
    below = logits[order].astype(np.float64) - np.float64(logits[order[0]])
    # However small the temperature, the most probable token has 0 / temperature = 0.
    with np.errstate(over="ignore"):
        weights = np.exp(below / sampling.temperature)
    if sampling.top_k:
        weights[sampling.top_k :] = 0.0
    weights /= weights.sum()
    # A token stays while the ones before it have not reached top_p, so one always stays.
    weights[np.cumsum(weights) - weights >= sampling.top_p] = 0.0
    probabilities: NDArray[np.float64] = np.zeros_like(weights)
    probabilities[order] = weights / weights.sum()
    return probabilities


class Constraint(Protocol):
    """Which tokens may come next in one answer: a grammar that follows what was written."""

    def allowed(self) -> NDArray[np.bool_]:
        """Shape (V,): the tokens that may come next, end tokens where the answer may end here."""
        ...

    def in_time(self, token: int, left: int) -> int:
        """The token that was chosen, if the answer can still become whole in `left` more tokens.

        Otherwise the next one of a short way to a whole answer, where one is known; an end token
        where it is whole already, and the limit is then why it ends.
        """
        ...

    def push(self, token: int) -> None:
        """Take the token that was chosen; it was allowed."""
        ...


class Cache(Protocol):
    """What a generation reads with: a session whose cache is empty, or a `KeptCache`."""

    @property
    def max_context(self) -> int:
        """Tokens that the cache holds."""
        ...

    def prefill(self, tokens: Sequence[int]) -> FloatArray:
        """Read a prompt; logits (V,) after it."""
        ...

    def decode(self, token: int) -> FloatArray:
        """Append one token; logits (V,) after it."""
        ...


class Generation:
    """New tokens as they are made, without the EOS; iterate once, then ask `stop_reason`.

    Stops before any of `eos_token_ids`, after `max_new_tokens`, or when the cache is full. With a
    `constraint`, only tokens that it allows are chosen. Iterating raises `SessionError` when the
    prompt is empty or too long, the highest logit is not finite, or the constraint allows no token.
    """

    def __init__(
        self,
        cache: Cache,
        prompt_tokens: Sequence[int],
        *,
        eos_token_ids: Sequence[int],
        max_new_tokens: int,
        sampling: SamplingConfig = GREEDY,
        constraint: Constraint | None = None,
    ) -> None:
        self.stop_reason: StopReason | None = None
        #: logits (V,) out of which the last token was chosen, as the model gave them
        self.logits: FloatArray = np.empty(0, np.float32)
        self._cache = cache
        self._prompt = tuple(prompt_tokens)
        self._eos = frozenset(eos_token_ids)
        self._max_new_tokens = max_new_tokens
        self._sampling = sampling
        self._constraint = constraint
        self._random = np.random.default_rng(sampling.seed)

    def _choose(self, logits: FloatArray) -> int:
        highest = float(np.max(logits))  # NaN where one of them is
        if not math.isfinite(highest):
            raise SessionError(f"the model's highest logit is {highest}; no token follows from it")
        if self._constraint is not None:
            logits = np.where(self._constraint.allowed(), logits, np.float32(-math.inf))
            if np.max(logits) == -math.inf:
                raise GrammarStuckError("the grammar allows no token here, not even the end")
        if self._sampling.temperature == 0:
            return int(np.argmax(logits))
        probabilities = token_probabilities(logits, self._sampling)
        return int(self._random.choice(len(probabilities), p=probabilities))

    def __iter__(self) -> Iterator[int]:
        """Prefill, then one decode for every token but the last."""
        self.logits = self._cache.prefill(self._prompt)
        room = self._cache.max_context - len(self._prompt)
        most = min(self._max_new_tokens, room + 1)
        for count in range(1, most + 1):
            token = self._choose(self.logits)
            if token in self._eos:
                self.stop_reason = StopReason.EOS
                return
            if self._constraint is not None:
                token = self._constraint.in_time(token, max(most - count - 1, 0))  # and the end
                if token in self._eos:
                    break
                self._constraint.push(token)
            yield token
            if count < most:
                self.logits = self._cache.decode(token)
        is_asked_for = most == self._max_new_tokens
        self.stop_reason = StopReason.MAX_NEW_TOKENS if is_asked_for else StopReason.CONTEXT_FULL
