"""Where a network's weights come from when the reference runs it.

Shape legend: T tokens, D hidden.
"""

from typing import Protocol

from torch import Tensor

from llama_edge.core.checkpoint import Weights
from llama_edge.core.model_config import ModelConfig
from llama_edge.core.quantized import QuantizedWeights
from llama_edge.models.weight_names import EMBEDDING, HEAD_ROTATION, LM_HEAD


class MatrixSource(Protocol):
    """Where the reference takes its weights from; every result is float32."""

    def matrix(self, name: str) -> Tensor:
        """A linear's weight (out_features, in_features)."""
        ...

    def vector(self, name: str) -> Tensor:
        """A norm's weight (D,)."""
        ...

    def embedding_rows(self, tokens_T: Tensor) -> Tensor:
        """Rows of the embedding (T, D)."""
        ...


class FullPrecisionSource:
    """The checkpoint's own weights, read from disk each time."""

    def __init__(self, config: ModelConfig, weights: Weights) -> None:
        self._tied = config.tie_word_embeddings
        self._weights = weights

    def matrix(self, name: str) -> Tensor:
        """See `MatrixSource`; a tied head is the embedding."""
        return self._weights.read(EMBEDDING if self._tied and name == LM_HEAD else name)

    def vector(self, name: str) -> Tensor:
        """See `MatrixSource`."""
        return self._weights.read(name)

    def embedding_rows(self, tokens_T: Tensor) -> Tensor:
        """See `MatrixSource`."""
        return self._weights.read(EMBEDDING)[tokens_T]


class DequantizedSource:
    """Codes times scales."""

    def __init__(self, weights: QuantizedWeights) -> None:
        self._weights = weights

    def matrix(self, name: str) -> Tensor:
        """See `MatrixSource`."""
        if name == HEAD_ROTATION:
            return self._weights.vector(name)
        return self._weights.quantized(name).dequantize()

    def vector(self, name: str) -> Tensor:
        """See `MatrixSource`."""
        return self._weights.vector(name)

    def embedding_rows(self, tokens_T: Tensor) -> Tensor:
        """See `MatrixSource`."""
        return self._weights.quantized(EMBEDDING).rows(tokens_T).dequantize()


class CachedSource:
    """Keeps what it has read: for one layer of many tokens, or for decoding token by token.

    Args:
        source: Where weights come from.
        limit_bytes: Of what is kept; what comes later is read again each time. None keeps all.
    """

    def __init__(self, source: MatrixSource, limit_bytes: int | None = None) -> None:
        self._source = source
        self._limit = limit_bytes
        self._size = 0
        self._matrices: dict[str, Tensor] = {}
        self._vectors: dict[str, Tensor] = {}

    def matrix(self, name: str) -> Tensor:
        """See `MatrixSource`."""
        if name in self._matrices:
            return self._matrices[name]
        found = self._source.matrix(name)
        if self._limit is None or self._size + found.nbytes <= self._limit:
            self._matrices[name] = found
            self._size += found.nbytes
        return found

    def vector(self, name: str) -> Tensor:
        """See `MatrixSource`."""
        if name not in self._vectors:
            self._vectors[name] = self._source.vector(name)
        return self._vectors[name]

    def embedding_rows(self, tokens_T: Tensor) -> Tensor:
        """See `MatrixSource`."""
        return self.matrix(EMBEDDING)[tokens_T]
