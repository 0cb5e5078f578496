"""The `.pte`'s named data: every weight under its canonical name, read only when it is written."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from llama_edge.backends.executorch.xnnpack_graph import FilterKeys
from llama_edge.core.hadamard import hadamard
from llama_edge.core.packing import QuantizedTensor, concatenate_rows, pack_uint4
from llama_edge.core.quantized import QuantizedWeights
from llama_edge.formats.pte_stacks import STACK_JOINT, stacked_rows
from llama_edge.formats.quantized_checkpoint import Layout, matrix_shape
from llama_edge.models.weight_names import (
    EMBEDDING,
    HEAD_ROTATION,
    LM_HEAD,
)
from llama_edge.models.weights import float_shapes

MEAN_KEY: Final = "rms_norm.mean"
EPS_KEY: Final = "rms_norm.eps"
CODES: Final = ".codes"
SCALES: Final = ".scales"


@dataclass(frozen=True, slots=True)
class StoredData:
    """One segment of the file: how long it is, and how to make its bytes when their turn comes."""

    key: str
    size_bytes: int
    read: Callable[[], Tensor]


def stacked_key(names: list[str]) -> str:
    """One key for weights stacked along the output: their names joined."""
    return STACK_JOINT.join(names)


class WeightStore:
    """Hands out keys for weights, and keeps for each key how to produce its bytes."""

    def __init__(self, layout: Layout, weights: QuantizedWeights) -> None:
        self._config = layout.config
        self._layout = layout
        self._weights = weights
        self._last: tuple[list[str], QuantizedTensor] | None = None
        self.entries: dict[str, StoredData] = {}

    def _put(self, key: str, size_bytes: int, read: Callable[[], Tensor]) -> str:
        self.entries.setdefault(key, StoredData(key, size_bytes, read))
        return key

    def mean_constants(self, width: int) -> tuple[str, str]:
        """Keys of the (1, width) matrix of 1 / width and of eps (1,), which RMSNorm is made of."""
        key = MEAN_KEY if width == self._config.hidden_size else f"{MEAN_KEY}.{width}"
        eps = self._config.rms_norm_eps
        self._put(key, 4 * width, lambda: torch.full((1, width), 1 / width))
        self._put(EPS_KEY, 4, lambda: torch.tensor([eps], dtype=torch.float32))
        return key, EPS_KEY

    def head_rotation(self) -> str:
        """Key of the head's rotation, float32 (D, D)."""
        size_bytes = 4 * self._config.hidden_size**2
        return self._put(HEAD_ROTATION, size_bytes, lambda: self._weights.vector(HEAD_ROTATION))

    def hadamard(self, order: int) -> str:
        """Key of an orthogonal Hadamard matrix, float32 (order, order)."""
        return self._put(f"hadamard.{order}", 4 * order**2, lambda: hadamard(order))

    def vector(self, name: str) -> str:
        """Key of a norm weight, float32 (D,) or (H,)."""
        (width,) = float_shapes(self._config)[name]
        return self._put(name, 4 * width, lambda: self._weights.vector(name))

    def bias(self, names: list[str]) -> tuple[str, int]:
        """Key and length of biases, float32, stacked as their matrices are."""
        rows = stacked_rows(self._config, names)
        total = sum(map(len, rows.values()))

        def read() -> Tensor:
            values = torch.cat([self._weights.vector(name) for name in names])
            return values[torch.cat(list(rows.values())).argsort()]

        return self._put(stacked_key(names), 4 * total, read), total

    def is_int8(self, names: list[str]) -> bool:
        """Whether stacked matrices have int8 codes with one scale per row, or int4 ones in groups.

        Raises:
            QuantizeError: Some have and some have not (when their bytes are read).
        """
        return self._layout.bits(names[0]) == 8

    def int4(self, names: list[str]) -> tuple[FilterKeys, tuple[int, int], int]:
        """Keys, stacked (O, I) and group size of block linears that share their input."""
        rows, columns = self._stacked_shape(names)
        group_size = self._layout.group_size(names[0])
        key = stacked_key(names)

        groups = columns // group_size
        keys = FilterKeys(
            codes=self._put(key + CODES, rows * columns // 2, lambda: self._packed(names)),
            scales=self._put(key + SCALES, rows * groups * 2, lambda: self._stacked(names).scales),
            codes_bytes=rows * columns // 2,
            scales_bytes=rows * groups * 2,
        )
        return keys, (rows, columns), group_size

    def _stacked_shape(self, names: list[str]) -> tuple[int, int]:
        shapes = [matrix_shape(self._config, name) for name in names]
        return sum(shape[0] for shape in shapes), shapes[0][1]

    def _stacked(self, names: list[str]) -> QuantizedTensor:
        """Kept until the next one is asked for: codes and scales follow each other in the file."""
        if self._last is None or self._last[0] != names:
            tensors = [self._weights.quantized(name) for name in names]
            places = torch.cat(list(stacked_rows(self._config, names).values()))
            self._last = names, concatenate_rows(tensors).rows(places.argsort())
        return self._last[1]

    def _packed(self, names: list[str]) -> Tensor:
        return pack_uint4(self._stacked(names).codes)

    def int8(self, names: list[str]) -> tuple[FilterKeys, tuple[int, int]]:
        """Keys and stacked (O, I) of matrices with one float32 scale per row."""
        rows, columns = self._stacked_shape(names)
        key = stacked_key(names)
        keys = FilterKeys(
            codes=self._put(key + CODES, rows * columns, lambda: self._stacked(names).codes),
            scales=self._put(key + SCALES, rows * 4, lambda: self._stacked(names).scales.float()),
            codes_bytes=rows * columns,
            scales_bytes=rows * 4,
        )
        return keys, (rows, columns)

    def shares_table(self) -> bool:
        """Whether head and embedding are one table, so that the file can hold it once."""
        embedding, head = self._weights.quantized(EMBEDDING), self._weights.quantized(LM_HEAD)
        return torch.equal(embedding.codes, head.codes) and torch.equal(
            embedding.scales, head.scales
        )
