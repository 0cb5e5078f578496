import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from llama_edge.backends import get_exporter
from llama_edge.backends.base import LowerOptions
from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.errors import ConfigError
from llama_edge.core.model_config import ModelConfig, RopeScaling
from llama_edge.core.model_shapes import get_shape
from llama_edge.core.progress import SilentProgress
from llama_edge.core.recipe import Recipe, Rotation
from llama_edge.models.reference import Reference
from llama_edge.models.sources import DequantizedSource, FullPrecisionSource
from llama_edge.models.weight_names import LM_HEAD
from llama_edge.quantize import W4A8_RTN
from llama_edge.quantize.rotate import check_rotations, rotate, tie_breaker
from llama_edge.quantize.stage import check_widths, quantize_checkpoint
from llama_edge.runtimes import get_runtime
from tests.conftest import DEBUG_CONFIG, MemoryWeights

ALL = (Rotation.R1, Rotation.R2, Rotation.R4)
ROTATED = dataclasses.replace(W4A8_RTN, rotations=ALL)
#: R4 of each 16, 32 or 20 neighbours; Paley's matrix of order 20 is not symmetric.
BLOCKS = {block: dataclasses.replace(ROTATED, r4_block=block) for block in (16, 32, 20)}
RECIPES = [
    *(
        dataclasses.replace(W4A8_RTN, rotations=names)
        for names in ((), (Rotation.R1,), (Rotation.R2,), (Rotation.R4,))
    ),
    ROTATED,
    BLOCKS[16],
    BLOCKS[32],
]
TOKENS = torch.tensor([3, 17, 41, 99, 200, 7, 7, 63, 128, 5] * 4)

#: Head ratios, widths' factors and RoPE scaling of the named models, with fewer and thinner layers.
LLAMA_3_2_1B = dataclasses.replace(
    DEBUG_CONFIG,
    hidden_size=128,
    num_attention_heads=8,
    num_key_value_heads=2,
    intermediate_size=512,
    rope_scaling=RopeScaling(
        factor=32.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    ),
)
LLAMA_3_2_3B = dataclasses.replace(
    LLAMA_3_2_1B, hidden_size=96, num_attention_heads=6, head_dim=32, intermediate_size=256
)


def checkpoint_of(config: ModelConfig, like: Checkpoint) -> Checkpoint:
    return dataclasses.replace(like, config=config, weights=MemoryWeights(config))


def logits(checkpoint: Checkpoint) -> torch.Tensor:
    source = FullPrecisionSource(checkpoint.config, checkpoint.weights)
    return Reference(checkpoint.config, source).logits(TOKENS).double()


def kl(reference: torch.Tensor, found: torch.Tensor) -> float:
    wanted = reference.log_softmax(-1)
    return float((wanted.exp() * (wanted - found.log_softmax(-1))).sum(-1).mean())


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: f"{'+'.join(r.rotations)}-{r.r4_block}")
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("config", [LLAMA_3_2_1B, LLAMA_3_2_3B, DEBUG_CONFIG])
def test_the_rotated_network_is_the_same(
    config: ModelConfig, tied: bool, recipe: Recipe, debug_checkpoint: Checkpoint
) -> None:
    config = dataclasses.replace(config, tie_word_embeddings=tied)
    checkpoint = checkpoint_of(config, debug_checkpoint)
    rotated = rotate(checkpoint, recipe)
    assert rotated.config.head_rotation is tied
    assert (LM_HEAD in rotated.weights) is not tied
    found, reference = logits(rotated), logits(checkpoint)
    assert kl(reference, found) < 1e-9
    torch.testing.assert_close(found, reference, atol=2e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shape", ["llama-3.2-1b", "llama-3.2-3b"])
def test_one_layer_of_the_real_width_is_the_same(
    shape: str, tied: bool, debug_checkpoint: Checkpoint
) -> None:
    config = dataclasses.replace(
        get_shape(shape).config, num_hidden_layers=1, vocab_size=256, tie_word_embeddings=tied
    )
    checkpoint = checkpoint_of(config, debug_checkpoint)
    assert kl(logits(checkpoint), logits(rotate(checkpoint, ROTATED))) < 1e-6


def test_a_forgotten_part_is_seen(debug_checkpoint: Checkpoint) -> None:
    """The check above fails when the head of a tied model is turned twice, or R4 is left out."""
    changes: list[dict[str, Any]] = [{"head_rotation": False}, {"down_proj_rotation": None}]
    for recipe, other in ((ROTATED, (16,)), (BLOCKS[16], (8, 20)), (BLOCKS[20], (16,))):
        rotated = rotate(debug_checkpoint, recipe)
        for change in (*changes, {"down_proj_rotation": other}):
            config = dataclasses.replace(rotated.config, **change)
            wrong = dataclasses.replace(rotated, config=config)
            assert kl(logits(debug_checkpoint), logits(wrong)) > 1e-3


def borders(x: torch.Tensor) -> float:
    """Share of values within a thousandth of a step of a per-token int8 rounding boundary."""
    steps = (x.amax(-1, keepdim=True) - x.amin(-1, keepdim=True)) / 255.0
    return float((((x / steps) % 1 - 0.5).abs() < 1e-3).float().mean())


def test_the_first_norm_leaves_no_ties() -> None:
    """Whole numbers, as rows of an int8 table are, against the same under uneven weights."""
    codes = torch.randint(-100, 101, (400, 96), generator=torch.Generator().manual_seed(0)).float()
    assert borders(codes) > 0.01
    assert borders(codes * tie_breaker(96)) < 0.004


def test_the_seed_decides(debug_checkpoint: Checkpoint) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    first, again, other = (
        rotate(debug_checkpoint, dataclasses.replace(ROTATED, seed=seed)).weights.read(name)
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_width_without_a_hadamard_matrix(debug_checkpoint: Checkpoint) -> None:
    config = dataclasses.replace(DEBUG_CONFIG, intermediate_size=2 * 47)
    with pytest.raises(ConfigError, match="width 94"):
        rotate(checkpoint_of(config, debug_checkpoint), ROTATED)


def test_a_block_that_no_rotation_fits_is_refused_before_any_work(
    debug_checkpoint: Checkpoint,
) -> None:
    recipe = dataclasses.replace(ROTATED, r4_block=64)
    with pytest.raises(ConfigError, match=r"r4_block is 64; .* divides the width 160"):
        check_rotations(DEBUG_CONFIG, recipe)
    with pytest.raises(ConfigError, match="r4_block is 64"):
        check_widths(debug_checkpoint, recipe)


@pytest.mark.parametrize(
    ("backend", "accuracy_level"), [("executorch", None), ("onnx", 0), ("onnx", 4)]
)
@pytest.mark.parametrize(
    ("tied", "recipe"),
    [(True, ROTATED), (False, ROTATED), (True, BLOCKS[16]), (False, BLOCKS[20])],
    ids=["tied", "untied", "tied-16", "untied-20"],
)
def test_every_backend_runs_the_online_parts(
    backend: str,
    accuracy_level: int | None,
    tied: bool,
    recipe: Recipe,
    debug_checkpoint: Checkpoint,
    tmp_path: Path,
) -> None:
    config = dataclasses.replace(DEBUG_CONFIG, tie_word_embeddings=tied)
    rotated = rotate(checkpoint_of(config, debug_checkpoint), recipe)
    folder, out = tmp_path / "quantized", tmp_path / "out"
    folder.mkdir()
    out.mkdir()
    quantized = quantize_checkpoint(rotated, W4A8_RTN, folder, SilentProgress())
    exporter = get_exporter(backend)
    options = LowerOptions(max_context=128, accuracy_level=accuracy_level)
    artifact = exporter.lower(quantized, out, options, SilentProgress())
    weights = exporter.open(artifact.path).weights()
    reference = Reference(artifact.config, DequantizedSource(weights), artifact.activation)
    trace = get_runtime(backend).trace(artifact, [TOKENS.tolist()])
    hidden = [torch.from_numpy(array) for array in trace.hidden]
    with torch.no_grad():
        for layer, attended in enumerate(trace.attention):
            block = reference.mlp_block(layer, hidden[layer], torch.from_numpy(attended))
            # A token whose code lies on a rounding boundary may differ; most must not.
            error = (hidden[layer + 1] - block).norm(dim=-1) / block.norm(dim=-1)
            assert float(error.quantile(0.75)) < 1e-5
        logits_V = reference.head(hidden[-1][-1:])[0]
    torch.testing.assert_close(torch.from_numpy(trace.logits)[0], logits_V, atol=1e-4, rtol=0)
