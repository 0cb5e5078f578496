"""Large constants, which stay as the package holds them until an operator asks for their numbers.

A 3B model's weights take 1.8 GB in the package and 12.8 GB in float32, so what has been turned into
float32 is kept within a budget of bytes, and everything beyond it is made anew in chunks of rows.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final, Self

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from llama_edge.core.errors import ArtifactError
from llama_edge.formats.mlpackage import StoredTensor

#: Elements that are in float32 at a time when a weight is not kept: 4 MiB, which caches hold.
CHUNK_ELEMENTS: Final = 1 << 20
FLOAT32_BYTES: Final = 4
#: Float32 weights that are kept, in all. All of SmolLM2-135M's fit (513 MiB), so the models of
#: tests and first steps are made once. Of a 3B's 12.8 GB hardly any do, but to make a weight anew
#: takes 0.3 ns: a second for all of them. It is no share of the machine's memory, since the program
#: that holds the reference takes 3.3 GiB next to a 1B shape's interpreter, on a laptop of 8 GB.
BUDGET_BYTES: Final = 640 << 20


class MemoryBudget:
    """Bytes that weights may keep in float32.

    The first that ask get them: a model reads its weights in turn, and whatever makes place for
    the next would be missed in the next round.
    """

    def __init__(self, size_bytes: int) -> None:
        self._left = size_bytes

    def take(self, size_bytes: int) -> bool:
        """Whether that many bytes were left; they are taken."""
        if size_bytes > self._left:
            return False
        self._left -= size_bytes
        return True


class WeightStore:
    """The weights that functions of a package share, and the budget of them all.

    Weights know the budget and not the store: a cycle of references would keep all of them alive
    after the session is closed, next to those of the next one.
    """

    def __init__(self, size_bytes: int) -> None:
        self.budget = MemoryBudget(size_bytes)
        self._weights: dict[bytes, Weight] = {}

    def shared(self, place: bytes, make: Callable[[], "Weight"]) -> "Weight":
        """The weight that is stored at `place`, made at the first call for it."""
        if place not in self._weights:
            self._weights[place] = make()
        return self._weights[place]


class Weight(ABC):
    """A constant of float32 numbers, read by rows of its first axis."""

    def __init__(self, shape: tuple[int, ...], budget: MemoryBudget) -> None:
        self.shape = shape
        self._budget = budget
        self._kept: Tensor | None = None

    @abstractmethod
    def rows(self, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop`, float32."""

    def rounded_to_half(self) -> Self:
        """The same, each number of it rounded to float16."""
        return self

    def read(self) -> Tensor:
        """All of it, float32; kept where the budget allows."""
        if self._kept is not None:
            return self._kept
        whole = self.rows(0, self.shape[0])
        if self._budget.take(whole.numel() * FLOAT32_BYTES):
            self._kept = whole
        return whole

    def select(self, indices: Tensor) -> Tensor:
        """The rows at `indices` (N,) of non-negative integers; no other row is read."""
        if self._kept is not None:
            return self._kept[indices]
        if not indices.numel():
            return torch.empty(0, *self.shape[1:])
        return torch.cat([self._row(int(index)) for index in indices])

    def linear(self, inputs: Tensor, bias: Tensor | None) -> Tensor:
        """`inputs` (..., I) times this weight (O, I), transposed, plus `bias` (O,)."""
        rows, columns = self.shape
        if self._kept is None and self._budget.take(rows * columns * FLOAT32_BYTES):
            self._kept = self.rows(0, rows)
        if self._kept is not None:
            return F.linear(inputs, self._kept, bias)
        chunk = max(1, CHUNK_ELEMENTS // columns)
        product = torch.empty(*inputs.shape[:-1], rows)
        for start in range(0, rows, chunk):
            stop = min(start + chunk, rows)
            product[..., start:stop] = F.linear(inputs, self.rows(start, stop))
        return product if bias is None else product.add_(bias)

    def _row(self, index: int) -> Tensor:
        if not 0 <= index < self.shape[0]:
            raise IndexError(f"row {index} of {self.shape[0]}")
        return self.rows(index, index + 1)


class PlainWeight(Weight):
    """A `const` of floating-point numbers."""

    def __init__(self, stored: StoredTensor, budget: MemoryBudget) -> None:
        super().__init__(stored.shape, budget)
        self._stored = stored

    def rows(self, start: int, stop: int) -> Tensor:
        """See `Weight`."""
        return torch.from_numpy(self._stored.rows(start, stop)).float()


class BlockwiseWeight(Weight):
    """`constexpr_blockwise_shift_scale`: scale * (data - offset), one scale and offset per block.

    Args:
        name: For the error's text.
        data: Integers of any shape.
        scale: As many axes; along each, its length divides that of `data`.
        offset: Shaped as `scale`; None is zero.
        budget: Shared by all weights of a model.

    Raises:
        ArtifactError: The shapes do not fit together.
    """

    def __init__(
        self,
        name: str,
        data: StoredTensor,
        scale: Tensor,
        offset: Tensor | None,
        budget: MemoryBudget,
    ) -> None:
        super().__init__(data.shape, budget)
        pairs = list(zip(data.shape, scale.shape, strict=False))
        if len(data.shape) != scale.dim() or any(not n or size % n for size, n in pairs):
            raise ArtifactError(
                f"{name}: data {data.shape} cannot be cut into blocks for {tuple(scale.shape)} "
                "scales"
            )
        if offset is not None and offset.shape != scale.shape:
            raise ArtifactError(
                f"{name}: {tuple(offset.shape)} offsets for {tuple(scale.shape)} scales"
            )
        self._data = data
        self._rows_per_block = data.shape[0] // scale.shape[0]
        #: data's axes but the first, each as (blocks, numbers of one block)
        self._blocks = [part for size, n in pairs[1:] for part in (n, size // n)]
        spread = [part for n in scale.shape[1:] for part in (n, 1)]
        self._scale = scale.reshape(-1, *spread)
        self._offset = None if offset is None else offset.reshape(-1, *spread)
        self._half = False

    def rounded_to_half(self) -> Self:
        """See `Weight`."""
        self._half = True
        return self

    def rows(self, start: int, stop: int) -> Tensor:
        """See `Weight`."""
        block = self._block_rows(start, stop)
        values = torch.from_numpy(self._data.rows(start, stop)).float()
        values = values.reshape(stop - start, *self._blocks)
        if self._offset is not None:
            values -= self._offset[block]
        values *= self._scale[block]
        if self._half:
            values = values.half().float()
        return values.reshape(stop - start, *self.shape[1:])

    def _block_rows(self, start: int, stop: int) -> slice | Tensor:
        """Where each row's scales are."""
        if self._rows_per_block == 1:
            return slice(start, stop)
        return torch.arange(start, stop) // self._rows_per_block
