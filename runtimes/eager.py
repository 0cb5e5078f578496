"""The reference network as a session: for generation, and as a baseline for other runtimes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from llama_edge.core.artifact import KVCacheDtype
from llama_edge.core.cache_state import KINDS, CacheState, cache_name
from llama_edge.core.session import ClosesOnExit, FloatArray, check_kept, check_saved, check_tokens
from llama_edge.models.reference import KVCache, Reference


class EagerSession(ClosesOnExit):
    """A `Session` over the reference, for models that fit in memory.

    Args:
        model: The network; give it a `CachedSource`, or each token reads all weights again.
        max_context: Tokens after which a prompt is refused, as an artifact of that size would.
    """

    def __init__(self, model: Reference, max_context: int) -> None:
        self._model = model
        self._max_context = max_context
        self._cache = KVCache()

    @property
    def max_context(self) -> int:
        """See `Session`."""
        return self._max_context

    def _hidden(self, tokens: Sequence[int]) -> Tensor:
        check_tokens(
            tokens,
            used=self._cache.length,
            max_context=self._max_context,
            vocab_size=self._model.config.vocab_size,
        )
        return self._model.hidden(self._model.embed(torch.tensor(tokens)), self._cache)

    @torch.no_grad()
    def prefill(self, tokens: Sequence[int]) -> FloatArray:
        """See `Session`."""
        logits: FloatArray = self._model.head(self._hidden(tokens)[-1:])[0].numpy()
        return logits

    @torch.no_grad()
    def prefill_logits(self, tokens: Sequence[int]) -> FloatArray:
        """See `Session`."""
        logits: FloatArray = self._model.head(self._hidden(tokens)).numpy()
        return logits

    def decode(self, token: int) -> FloatArray:
        """See `Session`."""
        return self.prefill([token])

    def reset(self, keep: int = 0) -> None:
        """See `Session`."""
        check_kept(keep, self._cache.length)
        self._cache.cut(keep)

    def save(self) -> CacheState:
        """See `Session`; the rows of an int8 cache are dequantized ones here."""
        check_saved(self._cache.length)
        arrays = {
            cache_name(kind, layer): rows.transpose(0, 1).contiguous().numpy().copy()
            for kind, layers in zip(KINDS, (self._cache.keys, self._cache.values), strict=True)
            for layer, rows in enumerate(layers)
        }
        return CacheState(kv_cache=KVCacheDtype.FLOAT32, tokens=self._cache.length, arrays=arrays)

    def restore(self, state: CacheState) -> None:
        """See `Session`."""
        config = self._model.config
        state.require(config, KVCacheDtype.FLOAT32, self._max_context)
        keys, values = (
            [
                torch.from_numpy(state.arrays[cache_name(kind, layer)].copy()).transpose(0, 1)
                for layer in range(config.num_hidden_layers)
            ]
            for kind in KINDS
        )
        self._cache = KVCache(keys, values)

    def close(self) -> None:
        """See `Session`."""
        self._cache = KVCache()
