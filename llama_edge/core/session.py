"""What every desktop runtime offers: prefill, decode, reset, and a look inside for the gate.

Shape legend: T tokens, V vocab, D hidden, N query heads, K key/value heads, H head_dim, L layers,
Q query_size (all query heads together).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from llama_edge.core.artifact import Artifact
from llama_edge.core.cache_state import CacheState
from llama_edge.core.errors import SessionError

FloatArray = NDArray[np.float32]


def check_tokens(tokens: Sequence[int], *, used: int, max_context: int, vocab_size: int) -> None:
    """What every session demands of the tokens it is given, `used` being in the cache already.

    Raises:
        SessionError: No token, a token outside the vocabulary, or more than the cache holds.
    """
    if not tokens:
        raise SessionError("the prompt has no token; give at least one")
    if used + len(tokens) > max_context:
        raise SessionError(
            f"{used} tokens in the cache and {len(tokens)} new ones exceed the context of "
            f"{max_context}; shorten the prompt, or export with a larger --max-context"
        )
    for position, token in enumerate(tokens):
        if not 0 <= token < vocab_size:
            raise SessionError(
                f"token {token} at position {used + position} is outside the vocabulary of "
                f"{vocab_size}; the tokenizer belongs to another model"
            )


def check_kept(keep: int, used: int) -> None:
    """What `Session.reset` demands, `used` tokens being in the cache.

    Raises:
        SessionError: They are fewer than are to be kept.
    """
    if not 0 <= keep <= used:
        raise SessionError(f"{keep} tokens are to be kept, and the cache holds {used}")


def check_saved(used: int) -> None:
    """What `Session.save` demands, `used` tokens being in the cache.

    Raises:
        SessionError: There are none.
    """
    if not used:
        raise SessionError("the cache holds no token; read a prompt before its state is saved")


class ClosesOnExit(ABC):
    """A context manager, as a `Session` is: leaving it closes it."""

    @abstractmethod
    def close(self) -> None:
        """Free what is held; calling it twice is harmless."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Session(Protocol):
    """One sequence with its KV cache. A context manager; `close` frees the runtime."""

    @property
    def max_context(self) -> int:
        """Tokens that the cache holds."""
        ...

    def prefill(self, tokens: Sequence[int]) -> FloatArray:
        """Append tokens to the cache; logits (V,) after the last one.

        Raises:
            SessionError: No token, a token outside the vocabulary, or more than the cache holds.
        """
        ...

    def prefill_logits(self, tokens: Sequence[int]) -> FloatArray:
        """As `prefill`, but logits (T, V) after every token."""
        ...

    def decode(self, token: int) -> FloatArray:
        """Append one token; logits (V,) after it."""
        ...

    def reset(self, keep: int = 0) -> None:
        """Forget the sequence, or all of it but its first `keep` tokens.

        Raises:
            SessionError: The cache holds fewer.
        """
        ...

    def save(self) -> CacheState:
        """A copy of what the cache holds of the sequence.

        Raises:
            SessionError: It holds nothing, or the runtime does not let anybody read it.
        """
        ...

    def restore(self, state: CacheState) -> None:
        """Put what `save` gave, of this session or of another one, in the place of the sequence.

        Raises:
            SessionError: It is of another model's cache, or the runtime does not let anybody
                write it.
        """
        ...

    def close(self) -> None:
        """Free the runtime; calling it twice is harmless."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockTrace:
    """Real values seen inside a written artifact while it ran one sequence, call by call.

    Rows of all calls (one prefill, then single decode steps) are concatenated in order.
    """

    tokens: tuple[int, ...]
    #: number of tokens of each call; they sum to len(tokens)
    calls: tuple[int, ...]
    #: L + 1 arrays (T, D): the residual stream entering block l; the last leaves the last block
    hidden: tuple[FloatArray, ...]
    #: L arrays (T, Q): attention's output of block l, before o_proj
    attention: tuple[FloatArray, ...]
    #: (number of calls, V): logits after the last token of each call
    logits: FloatArray
    #: with an int8 KV cache, L arrays (T, N + 2K, H + 2): each token's queries, keys and values as
    #: H codes, their step and their zero point; none with a float cache
    cache_rows: tuple[FloatArray, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorTrace:
    """What single operators made while a written artifact ran one sequence, call by call.

    A value that a backend computes inside a fused operator is absent.
    """

    tokens: tuple[int, ...]
    #: number of tokens of each call; they sum to len(tokens)
    calls: tuple[int, ...]
    #: by layer: `models.value_names.BLOCK_VALUES`; the caches as they are after the last call
    blocks: Mapping[int, Mapping[str, FloatArray]]
    #: `models.value_names.HEAD_VALUES`
    head: Mapping[str, FloatArray]


class Runtime(Protocol):
    """A way to run one backend's artifacts on this machine."""

    name: str

    def version(self) -> str:
        """Name and version of the runtime library, for reports."""
        ...

    def open(self, artifact: Artifact) -> Session:
        """Load the artifact from disk.

        Raises:
            SessionError: The runtime refuses the file.
        """
        ...

    def trace(self, artifact: Artifact, calls: Sequence[Sequence[int]]) -> BlockTrace:
        """Run one sequence through the written file and return every block's real values.

        `calls[0]` is the prefill; each later call is appended to the same cache.
        """
        ...

    def trace_operators(
        self, artifact: Artifact, calls: Sequence[Sequence[int]], layers: Sequence[int]
    ) -> OperatorTrace:
        """As `trace`, but each operator's result in the blocks `layers`, and in the head."""
        ...
