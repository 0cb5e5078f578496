"""Packages: tied, with a table of its own for the head, rotated, with int4 tables, int8 linears."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llama_edge.backends.base import LowerOptions
from llama_edge.backends.coreml.exporter import CoreMLExporter
from llama_edge.core.artifact import Artifact
from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.packing import QuantizedTensor
from llama_edge.core.progress import SilentProgress
from llama_edge.core.quantized import QuantizedCheckpoint, QuantizedWeights
from llama_edge.core.recipe import Rotation, Scales
from llama_edge.quantize import W4A8_RTN
from llama_edge.quantize.stage import quantize_checkpoint
from tests.conftest import DEBUG_CONFIG, MemoryWeights

UP = "model.layers.1.mlp.up_proj.weight"
#: Any class of `Model_pb2` or `MIL_pb2`; protobuf generates them without types.
Message = Any
Quantized = Callable[[str], QuantizedCheckpoint]
Package = Callable[[str], Artifact]


def lower(checkpoint: QuantizedCheckpoint, folder: Path, max_context: int = 256) -> Artifact:
    folder.mkdir(exist_ok=True)
    options = LowerOptions(max_context=max_context)
    return CoreMLExporter().lower(checkpoint, folder, options, SilentProgress())


class ReplacedMatrix:
    """Another's weights, but for one matrix."""

    def __init__(self, weights: QuantizedWeights, name: str, matrix: QuantizedTensor) -> None:
        self._weights = weights
        self._name = name
        self._matrix = matrix

    def quantized_names(self) -> tuple[str, ...]:
        return self._weights.quantized_names()

    def quantized(self, name: str) -> QuantizedTensor:
        return self._matrix if name == self._name else self._weights.quantized(name)

    def vector(self, name: str) -> Tensor:
        return self._weights.vector(name)


def with_matrix(
    checkpoint: QuantizedCheckpoint, name: str, matrix: QuantizedTensor
) -> QuantizedCheckpoint:
    return replace(checkpoint, weights=ReplacedMatrix(checkpoint.weights, name, matrix))


@pytest.fixture(scope="session")
def quantized(
    debug_quantized: QuantizedCheckpoint,
    debug_checkpoint: Checkpoint,
    tmp_path_factory: pytest.TempPathFactory,
) -> Quantized:
    """By name: tied, untied, rotated, small or mixed."""

    def quantize(name: str) -> QuantizedCheckpoint:
        folder = tmp_path_factory.mktemp(f"{name}-quantized")
        if name == "untied":
            config = replace(DEBUG_CONFIG, tie_word_embeddings=False)
            checkpoint = replace(debug_checkpoint, config=config, weights=MemoryWeights(config))
            return quantize_checkpoint(checkpoint, W4A8_RTN, folder, SilentProgress())
        if name == "rotated":
            recipe = replace(W4A8_RTN, rotations=(Rotation.R1, Rotation.R2, Rotation.R4))
            return quantize_checkpoint(debug_checkpoint, recipe, folder, SilentProgress())
        if name == "small":
            recipe = replace(W4A8_RTN, table_bits=4, scales=Scales.MSE)
            return quantize_checkpoint(debug_checkpoint, recipe, folder, SilentProgress())
        if name == "mixed":
            four = debug_quantized.weights.quantized(UP)
            eight = QuantizedTensor(
                codes=four.codes * 16,
                scales=torch.full((four.shape[0], 1), 2.0**-10, dtype=torch.bfloat16),
                bits=8,
                group_size=four.shape[1],
            )
            return with_matrix(debug_quantized, UP, eight)
        assert name == "tied"
        return debug_quantized

    made: dict[str, QuantizedCheckpoint] = {}
    return lambda name: made.setdefault(name, made.get(name) or quantize(name))


@pytest.fixture(scope="session")
def package(quantized: Quantized, tmp_path_factory: pytest.TempPathFactory) -> Package:
    """The same by name, lowered once."""
    made: dict[str, Artifact] = {}

    def lowered(name: str) -> Artifact:
        if name not in made:
            made[name] = lower(quantized(name), tmp_path_factory.mktemp(f"{name}-package"))
        return made[name]

    return lowered
