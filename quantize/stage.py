"""Checkpoint -> QuantizedCheckpoint, one tensor at a time."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from llama_edge.core.errors import QuantizeError
from llama_edge.core.packing import tensor_bytes
from llama_edge.core.progress import Progress
from llama_edge.core.quantized_checkpoint import (
    QuantizedEntry,
    float_shapes,
    matrix_bits,
    matrix_group_size,
    matrix_shape,
    quantized_names,
    stored_names,
    write_quantized_checkpoint,
)
from llama_edge.core.types import Checkpoint, QuantizedCheckpoint, Recipe
from llama_edge.quantize.groupwise import quantize_groupwise


class _SourceDigest:
    """SHA-256 over every weight as it streams by: name, shape and float32 values."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def update(self, name: str, tensor: Tensor) -> None:
        self._digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        self._digest.update(tensor_bytes(tensor))

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def check_widths(checkpoint: Checkpoint, recipe: Recipe) -> None:
    """Fail before any work when a group does not divide a width.

    Raises:
        QuantizeError: Naming the tensor.
    """
    for name in quantized_names(checkpoint.config):
        columns = matrix_shape(checkpoint.config, name)[1]
        group_size = matrix_group_size(checkpoint.config, recipe, name)
        if columns % group_size:
            raise QuantizeError(
                f"{name}: in_features {columns} is not divisible by group_size {group_size}; "
                "choose a recipe whose group size divides it"
            )


def quantize_checkpoint(
    checkpoint: Checkpoint, recipe: Recipe, folder: Path, progress: Progress
) -> QuantizedCheckpoint:
    """Quantize every matrix by `recipe` and write the folder; holds one tensor at a time.

    Raises:
        QuantizeError: A width or a value does not fit the recipe.
        CheckpointError: A weight is damaged or not finite.
    """
    check_widths(checkpoint, recipe)
    config = checkpoint.config
    names = tuple(stored_names(config))
    progress.start(f"quantize ({recipe.name})", len(names))
    digest = _SourceDigest()
    floats = float_shapes(config)

    def entry(name: str) -> QuantizedEntry:
        tensor = checkpoint.weights.read(name)
        digest.update(name, tensor)
        if name in floats:
            return QuantizedEntry(name, tensor)
        bits, group_size = matrix_bits(recipe, name), matrix_group_size(config, recipe, name)
        return QuantizedEntry(
            name, quantize_groupwise(name, tensor, bits=bits, group_size=group_size)
        )

    def entries() -> Iterator[QuantizedEntry]:
        for name in names:
            yield entry(name)
            progress.advance()

    return write_quantized_checkpoint(
        folder, config, recipe, checkpoint.text, entries(), digest.hexdigest
    )
