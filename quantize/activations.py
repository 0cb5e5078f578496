"""Calibration activations: in memory while they are small, in a file that is mapped when large."""

import math
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from llama_edge.core.unfinished import empty

#: Activations above this many bytes lie in a temporary file that the system may write out.
SPILL_BYTES: Final = 512 * 2**20


def activation_buffer(shape: Sequence[int], path: Path) -> Tensor:
    """Uninitialized float32 activations: in memory, or in the file `path` where they are large."""
    count = math.prod(shape)
    if 4 * count <= SPILL_BYTES:
        return torch.empty(*shape)
    return torch.from_file(str(path), shared=True, size=count, dtype=torch.float32).view(*shape)


@contextmanager
def scratch_folder(place: Path | None) -> Iterator[Path]:
    """For large activations: in `place`, where an interrupted run left its own, or anywhere."""
    if place is None:
        with tempfile.TemporaryDirectory() as name:
            yield Path(name)
        return
    folder = empty(place / "activations")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
