"""Checkpoint -> QuantizedCheckpoint: rotate, round, write; one tensor or one layer at a time.

A recipe that distills has all rounded tensors in memory before they are written.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from llama_edge.core.checkpoint import Checkpoint, Weights
from llama_edge.core.errors import QuantizeError
from llama_edge.core.model_config import ModelConfig
from llama_edge.core.packing import QuantizedTensor, tensor_bytes
from llama_edge.core.progress import Progress
from llama_edge.core.quantized import QuantizedCheckpoint
from llama_edge.core.recipe import Recipe, Rounding
from llama_edge.formats.quantized_checkpoint import (
    TABLES,
    Layout,
    QuantizedEntry,
    SourceDescription,
    matrix_shape,
    quantized_names,
    stored_names,
    write_quantized_checkpoint,
)
from llama_edge.models.network import network_of
from llama_edge.models.weight_names import EMBEDDING
from llama_edge.models.weights import block_linear_names, float_shapes
from llama_edge.quantize.arithmetic import Arithmetic
from llama_edge.quantize.calibration import CalibrationSet
from llama_edge.quantize.distillation import distill
from llama_edge.quantize.groupwise import quantize_groupwise, round_to_nearest
from llama_edge.quantize.learned_rotations import learn_rotations
from llama_edge.quantize.mixed_precision import choose_int8
from llama_edge.quantize.resume import ON_CPU, KeptLayers, WorkPlace
from llama_edge.quantize.rotate import apply_rotations, check_rotations, choose_rotations
from llama_edge.quantize.scale_search import recipe_scales
from llama_edge.quantize.sequential import round_blocks
from llama_edge.quantize.steps import rounding_steps


class HashedWeights:
    """Full-precision weights that are hashed when they are first read, and never again."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._digests: dict[str, str] = {}

    @classmethod
    def of(cls, weights: Weights) -> "HashedWeights":
        """These, if they are hashed ones already."""
        return weights if isinstance(weights, cls) else cls(weights)

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def shape(self, name: str) -> tuple[int, ...]:
        """See `Weights`."""
        return self._weights.shape(name)

    def read(self, name: str) -> Tensor:
        """See `Weights`."""
        tensor = self._weights.read(name)
        if name not in self._digests:
            self._digests[name] = hashlib.sha256(tensor_bytes(tensor)).hexdigest()
        return tensor

    def hexdigest(self) -> str:
        """SHA-256 over every weight's name, shape and hash, in the order of names.

        What was not read yet, since an earlier run had rounded it, is read now.
        """
        for name in self:
            if name not in self._digests:
                self.read(name)
        lines = [f"{n} {self.shape(n)} {self._digests[n]}\n" for n in sorted(self._digests)]
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def hash_weights(weights: Weights) -> str:
    """`QuantizedCheckpoint.source_sha256` of weights; reads those that were not read yet.

    Raises:
        CheckpointError: One is damaged or not finite.
    """
    return HashedWeights.of(weights).hexdigest()


def check_widths(checkpoint: Checkpoint, recipe: Recipe) -> None:
    """Fail before any work when a group does not divide a width, or none can be rotated.

    Raises:
        QuantizeError: Naming the tensor.
        ConfigError: A width that the recipe rotates has no Hadamard matrix.
    """
    check_rotations(checkpoint.config, recipe)
    check_groups(checkpoint.config, recipe)


def check_groups(config: ModelConfig, recipe: Recipe) -> None:
    """Fail where a group of the recipe does not divide a width.

    Raises:
        QuantizeError: Naming the tensor.
    """
    layout = Layout(config, recipe)
    for name in quantized_names(config):
        columns = matrix_shape(config, name)[1]
        group_size = layout.group_size(name)
        if columns % group_size:
            raise QuantizeError(
                f"{name}: in_features {columns} is not divisible by group_size {group_size}; "
                "choose a recipe whose group size divides it"
            )


def nearest_codes(checkpoint: Checkpoint, layout: Layout, name: str) -> QuantizedTensor:
    """One matrix as a recipe without calibration or rotations rounds it."""
    weight = checkpoint.weights.read(name)
    bits, group_size = layout.bits(name), layout.group_size(name)
    if name in TABLES and bits == 8:
        return quantize_groupwise(name, weight, bits=bits, group_size=group_size)
    return round_to_nearest(name, weight, recipe_scales(name, weight, layout), bits)


def _entries(
    checkpoint: Checkpoint,
    layout: Layout,
    calibration: CalibrationSet | None,
    kept: KeptLayers,
    arithmetic: Arithmetic,
) -> Iterator[QuantizedEntry]:
    """Everything that is stored, in its order: floats, embedding, blocks, an untied head."""
    floats = float_shapes(checkpoint.config)
    blocks = set(block_linear_names(checkpoint.config))
    rounded: Iterator[QuantizedEntry] = iter(())
    for name in stored_names(checkpoint.config):
        if name in floats:
            yield QuantizedEntry(name, checkpoint.weights.read(name))
        elif name in blocks and calibration is not None:
            yield next(rounded)
        else:
            tensor = nearest_codes(checkpoint, layout, name)
            yield QuantizedEntry(name, tensor)
            if name == EMBEDDING and calibration is not None:
                rounded = round_blocks(
                    checkpoint, layout, tensor, calibration.tokens, kept, arithmetic
                )
    if layout.recipe.distillation is not None:
        # Nothing is left, but the last layer is kept only now; training takes longer than rounding.
        yield from rounded


def quantize_checkpoint(
    checkpoint: Checkpoint,
    recipe: Recipe,
    folder: Path,
    progress: Progress,
    calibration: CalibrationSet | None = None,
    place: WorkPlace = ON_CPU,
) -> QuantizedCheckpoint:
    """Quantize every matrix by `recipe` and write the folder.

    Args:
        checkpoint: Full precision; it is hashed while it is read.
        recipe: What to do.
        folder: Exists, and is empty.
        progress: Advances once a matrix.
        calibration: Needed by GPTQ, and by nothing else.
        place: Where to; a run that was killed there is resumed.

    Raises:
        QuantizeError: A width or a value does not fit the recipe.
        CheckpointError: A weight is damaged or not finite.
        MissingComponentError: The recipe is to learn on a device that is not here.
        OutputError: What is done cannot be kept, or what was kept is damaged.
    """
    check_widths(checkpoint, recipe)
    if (recipe.rounding is Rounding.GPTQ) is not (calibration is not None):
        raise QuantizeError(
            f"recipe {recipe.name}: rounding is {recipe.rounding.value}; calibration text goes "
            "with gptq and with nothing else"
        )
    hashed = HashedWeights.of(checkpoint.weights)
    full = replace(checkpoint, weights=hashed)
    source = full
    if recipe.rotations:
        matrices = choose_rotations(source.config, recipe)
        if recipe.rotation_learning is not None and calibration is not None:
            matrices = learn_rotations(
                source, recipe, matrices, calibration.tokens, place.learning, progress
            )
        source = apply_rotations(source, matrices)
    layout = Layout(source.config, recipe)
    if recipe.extra_bytes and calibration is not None:
        between = place.subfolder("sensitivity")
        mixed = choose_int8(source, layout, calibration.tokens, between, place.arithmetic, progress)
        layout = replace(layout, mixed=mixed)
    kept = KeptLayers(place.subfolder("layers"), layout)
    text = None if calibration is None else (len(calibration.tokens), calibration.tokens.shape[1])
    entries = _counted(
        _entries(source, layout, calibration, kept, place.arithmetic),
        layout,
        text,
        kept.finished(),
        progress,
    )
    if recipe.distillation is not None and calibration is not None:
        entries = distill(full, layout, entries, calibration.tokens, place.distillation, progress)
    return write_quantized_checkpoint(
        folder,
        layout,
        checkpoint.text,
        entries,
        lambda: SourceDescription(
            hashed.hexdigest(),
            None if calibration is None else calibration.record(),
            note=checkpoint.note,
        ),
    )


def _counted(
    entries: Iterator[QuantizedEntry],
    layout: Layout,
    text: tuple[int, int] | None,
    finished: int,
    progress: Progress,
) -> Iterator[QuantizedEntry]:
    """The entries, matrices counted; those of finished layers took no time."""
    steps = rounding_steps(layout, text)
    network = network_of(layout.config)
    done = {node.weight for layer in range(finished) for node in network.linears(layer)}
    order = sorted(steps, key=lambda name: name not in done)
    progress.start(
        f"quantize ({layout.recipe.name})", [steps[name] for name in order], done=len(done)
    )
    for entry in entries:
        yield entry
        if entry.name in steps and entry.name not in done:
            progress.advance()
