"""Files of `torch.save`: where the tensors are is told by a confined child, which unpickles.

`torch.load` has no part in it. The child's answer is checked here against the file, and a tensor's
bytes are mapped when it is read.
"""

import math
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from llama_edge.checkpoints import pickle_child
from llama_edge.confined import ConfinedError, Limits, Worker
from llama_edge.core.errors import CheckpointError
from llama_edge.core.regular import FileState, open_regular

#: The pickle of a model's file takes 10 ms and a few megabytes.
_LIMITS: Final = Limits(memory_bytes=512 << 20, cpu_s=20, wall_s=120)
_DTYPES: Final[Mapping[str, torch.dtype]] = {
    name: getattr(torch, name)
    for name in (
        *("float64", "float32", "float16", "bfloat16"),
        *("int64", "int32", "int16", "int8", "uint8", "bool"),
    )
}
#: Two names may be one tensor, as a tied head and its embedding; more is a bomb.
_MOST_OF_FILE: Final = 2


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor is."""

    #: torch's name of it
    dtype: str
    shape: tuple[int, ...]
    #: in elements
    strides: tuple[int, ...]
    #: of the first element, in bytes from the file's start
    first: int
    #: of bytes from the first element to the end of the last one
    length: int

    @property
    def size_bytes(self) -> int:
        """Of the tensor's elements, without gaps between them."""
        return math.prod(self.shape) * pickle_child.DTYPE_BYTES[self.dtype]


class TorchFile:
    """The state dict in a file, wherever in the pickled object it is.

    Raises:
        CheckpointError: It is no such file; or a tensor in it is not in the file as it should be.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_regular(path, CheckpointError) as stream:
            self._state = FileState.of(stream)
            worker = Worker(pickle_child.__name__, _LIMITS, descriptors=(stream.fileno(),))
            try:
                found = worker.ask({"descriptor": stream.fileno()})
            except ConfinedError as error:
                said = str(error) if error.refused else f"the pickle in it was stopped: {error}"
                raise CheckpointError(f"{path}: {said}") from error
            finally:
                worker.close()
        for name, kind in found["others"].items():
            raise CheckpointError(
                f"{path}: {name} is {kind}; a state dict holds nothing but named tensors"
            )
        self._places = {name: self._place(name, *told) for name, told in found["tensors"].items()}
        read_bytes = sum(place.size_bytes for place in self._places.values())
        if read_bytes > _MOST_OF_FILE * self._state.size_bytes:
            raise CheckpointError(
                f"{path}: its tensors have {read_bytes} bytes and the file "
                f"{self._state.size_bytes}; more than two names share one tensor's values"
            )

    def _place(  # noqa: PLR0913, as the child tells it
        self,
        name: str,
        dtype: str,
        shape: Sequence[int],
        strides: Sequence[int],
        first: int,
        start: int,
        end: int,
    ) -> _Place:
        """Check one tensor: inside its storage, which is inside the file, and no element twice."""
        size = pickle_child.DTYPE_BYTES[dtype]
        last = sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        length = (last + 1) * size if all(shape) else 0
        if not 0 <= start <= first <= first + length <= end <= self._state.size_bytes:
            raise CheckpointError(
                f"{self.path}: {name} reaches from byte {first} to {first + length} of the file, "
                f"its storage from {start} to {min(end, self._state.size_bytes)}: the file is "
                "truncated or damaged; download or copy it again"
            )
        if _overlaps(shape, strides):
            raise CheckpointError(
                f"{self.path}: {name} has shape {tuple(shape)} and strides {tuple(strides)}, so "
                "one stored value is several of its elements; save it after .contiguous()"
            )
        return _Place(dtype, tuple(shape), tuple(strides), first, length)

    def entries(self) -> Mapping[str, tuple[str, tuple[int, ...]]]:
        """dtype, in torch's name, and shape of every tensor."""
        return {name: (place.dtype, place.shape) for name, place in self._places.items()}

    def load(self, name: str) -> Tensor:
        """The tensor, mapped for as long as it lives.

        Raises:
            CheckpointError: The file was changed since it was opened, or its dtype is not known
                here.
        """
        place = self._places[name]
        if place.dtype not in _DTYPES:
            raise CheckpointError(f"{self.path}: {name} is {place.dtype}, which is not read")
        dtype = _DTYPES[place.dtype]
        if not place.length:
            return torch.empty(place.shape, dtype=dtype)
        with open_regular(self.path, CheckpointError) as stream:
            if FileState.of(stream) != self._state:
                raise CheckpointError(f"{self.path}: was changed while it was read; start anew")
            page = place.first // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
            skipped = place.first - page
            # Private and writable: torch wants memory that it could write to.
            mapped = mmap.mmap(
                stream.fileno(), skipped + place.length, access=mmap.ACCESS_COPY, offset=page
            )
        count = place.length // dtype.itemsize
        if skipped % dtype.itemsize:  # in the old form
            data = bytearray(memoryview(mapped)[skipped:])
            flat = torch.frombuffer(data, dtype=dtype, count=count)
        else:
            flat = torch.frombuffer(mapped, dtype=dtype, count=count, offset=skipped)
        return flat.as_strided(place.shape, place.strides)


def _overlaps(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether one place in memory may be two elements, as in an expanded tensor."""
    span = 1
    for step, n in sorted(zip(strides, shape, strict=True)):
        if n > 1 and step < span:
            return True
        span += max(n - 1, 0) * step
    return False
