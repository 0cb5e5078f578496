import dataclasses
from pathlib import Path

import pytest
import torch

from llama_edge.core.artifact import ActivationQuantization
from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.errors import QuantizeError
from llama_edge.core.model_shapes import SHAPES
from llama_edge.core.progress import SilentProgress
from llama_edge.core.quantized import QuantizedCheckpoint
from llama_edge.core.recipe import Recipe, Rotation, Rounding
from llama_edge.models.network import network_of
from llama_edge.models.reference import Reference
from llama_edge.models.sources import DequantizedSource, FullPrecisionSource
from llama_edge.quantize import RECIPES, W4_HADAMARD, W4A8_GPTQ, W4A8_HADAMARD, W4A8_RTN
from llama_edge.quantize.calibration import CalibrationSet
from llama_edge.quantize.sequential import makes_up_for_drift
from llama_edge.quantize.stage import quantize_checkpoint
from tests.conftest import DEBUG_CONFIG, MemoryWeights


def tokens(seed: int, sequences: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (sequences, 64), generator=generator)


CALIBRATION = CalibrationSet(tokens=tokens(0), origin="random ids")


def quantize(checkpoint: Checkpoint, recipe: Recipe, folder: Path) -> QuantizedCheckpoint:
    folder.mkdir()
    calibration = CALIBRATION if recipe.rounding is Rounding.GPTQ else None
    return quantize_checkpoint(checkpoint, recipe, folder, SilentProgress(), calibration)


def divergence(checkpoint: Checkpoint, quantized: QuantizedCheckpoint) -> float:
    """Mean KL to full precision on ids that calibration never saw, with int8 activations."""
    full = Reference(checkpoint.config, FullPrecisionSource(checkpoint.config, checkpoint.weights))
    source = DequantizedSource(quantized.weights)
    found = Reference(quantized.config, source, ActivationQuantization.INT8_PER_TOKEN)
    total = 0.0
    for row in tokens(1, sequences=3):
        wanted = full.logits(row).double().log_softmax(-1)
        other = found.logits(row).double().log_softmax(-1)
        total += float((wanted.exp() * (wanted - other)).sum(-1).mean())
    return total / 3


def with_outliers(checkpoint: Checkpoint) -> Checkpoint:
    """The same function, but a few channels of its normed activations are 40 times larger.

    A norm's weight is scaled up and the columns after it down, as a trained Llama has them.
    """
    weights = MemoryWeights(checkpoint.config)
    parts: dict[str, tuple[str, ...]] = {
        "input_layernorm": ("q_proj", "k_proj", "v_proj"),
        "post_attention_layernorm": ("gate_proj", "up_proj"),
    }
    for name, tensor in weights.tensors.items():
        norm = name.split(".")[-2]
        if norm in parts:
            tensor[::24] *= 40
            for other, matrix in weights.tensors.items():
                same_layer = other.split(".")[2:3] == name.split(".")[2:3]
                if same_layer and other.split(".")[-2] in parts[norm]:
                    matrix[:, ::24] /= 40
    return dataclasses.replace(checkpoint, weights=weights)


def test_gptq_comes_nearer_than_rounding(debug_checkpoint: Checkpoint, tmp_path: Path) -> None:
    plain, found = (
        divergence(debug_checkpoint, quantize(debug_checkpoint, recipe, tmp_path / recipe.name))
        for recipe in (W4A8_RTN, W4A8_GPTQ)
    )
    assert found < 0.97 * plain


def test_rotations_tame_outlier_channels(debug_checkpoint: Checkpoint, tmp_path: Path) -> None:
    planted = with_outliers(debug_checkpoint)
    plain = divergence(planted, quantize(planted, W4A8_GPTQ, tmp_path / "plain"))
    rotated = divergence(planted, quantize(planted, W4A8_HADAMARD, tmp_path / "rotated"))
    assert rotated < 0.5 * plain


@pytest.mark.parametrize("tied", [True, False])
def test_the_text_is_recorded_and_the_bytes_repeat(
    tied: bool, debug_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    config = dataclasses.replace(debug_checkpoint.config, tie_word_embeddings=tied)
    checkpoint = dataclasses.replace(debug_checkpoint, config=config, weights=MemoryWeights(config))
    first = quantize(checkpoint, W4A8_HADAMARD, tmp_path / "first")
    second = quantize(checkpoint, W4A8_HADAMARD, tmp_path / "second")
    assert first.calibration == CALIBRATION.record()
    assert first.source_sha256 == second.source_sha256
    for name in ("weights.safetensors", "quantization.json"):
        assert (first.root / name).read_bytes() == (second.root / name).read_bytes()
    assert first.recipe == RECIPES["w4a8-hadamard"]
    assert first.recipe.rotations == (Rotation.R1, Rotation.R2, Rotation.R4)


def test_a_weight_only_recipe_calibrates_on_unrounded_activations(
    debug_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(x: torch.Tensor) -> torch.Tensor:
        raise AssertionError("an activation was rounded")

    monkeypatch.setattr("llama_edge.models.reference.quantize_per_token", refuse)
    quantize(debug_checkpoint, W4_HADAMARD, tmp_path / "weight-only")
    with pytest.raises(AssertionError, match="was rounded"):
        quantize(debug_checkpoint, W4A8_HADAMARD, tmp_path / "int8")


def test_large_activations_lie_in_files(
    debug_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_memory = quantize(debug_checkpoint, W4A8_GPTQ, tmp_path / "memory")
    monkeypatch.setattr("llama_edge.quantize.resume.SPILL_BYTES", 1)
    spilled = quantize(debug_checkpoint, W4A8_GPTQ, tmp_path / "files")
    name = "weights.safetensors"
    assert (in_memory.root / name).read_bytes() == (spilled.root / name).read_bytes()


def test_gptq_without_text_and_text_without_gptq(
    debug_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    with pytest.raises(QuantizeError, match="w4a8-gptq: rounding is gptq"):
        quantize_checkpoint(debug_checkpoint, W4A8_GPTQ, tmp_path, SilentProgress())
    with pytest.raises(QuantizeError, match="w4a8-rtn: rounding is nearest"):
        quantize_checkpoint(debug_checkpoint, W4A8_RTN, tmp_path, SilentProgress(), CALIBRATION)


def test_activations_that_overflow_are_named(debug_checkpoint: Checkpoint, tmp_path: Path) -> None:
    weights = MemoryWeights(debug_checkpoint.config)
    weights.tensors["model.layers.1.post_attention_layernorm.weight"] *= 1e30
    checkpoint = dataclasses.replace(debug_checkpoint, weights=weights)
    with pytest.raises(QuantizeError, match=r"layers\.1\.mlp\.gate_proj.*are not finite"):
        quantize(checkpoint, W4A8_GPTQ, tmp_path / "out")


def test_drift_is_left_where_it_would_cost_most() -> None:
    def corrected(name: str) -> list[str]:
        groups = network_of(SHAPES[name].config).linears_by_input(0)
        return [group[0].part for group in groups if makes_up_for_drift(group)]

    assert corrected("llama-3.2-1b") == ["q_proj", "o_proj", "gate_proj"]
    small = network_of(DEBUG_CONFIG).linears_by_input(0)
    assert all(makes_up_for_drift(group) for group in small)
