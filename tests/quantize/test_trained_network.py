import dataclasses
from collections.abc import Iterator

import pytest
import torch

from llama_edge.core.model_config import ModelConfig
from llama_edge.core.packing import MAX_SCALE, MIN_SCALE, QuantizedTensor
from llama_edge.core.recipe import Distillation, Rotation
from llama_edge.formats.quantized_checkpoint import (
    TABLES,
    Layout,
    QuantizedEntry,
    stored_names,
)
from llama_edge.models.weight_names import EMBEDDING, HEAD_ROTATION, LM_HEAD, block_weight
from llama_edge.models.weights import float_shapes
from llama_edge.quantize import W4A8_DISTILLED
from llama_edge.quantize.rotate import rotate, tie_breaker
from llama_edge.quantize.stage import nearest_codes
from llama_edge.quantize.trained_network import TrainedNetwork
from tests.conftest import DEBUG_CONFIG
from tests.quantize.test_stage import checkpoint_of

assert W4A8_DISTILLED.distillation is not None
RATES = dataclasses.replace(
    W4A8_DISTILLED.distillation, scale_rate=1e-3, norm_rate=1e-4, rotation_rate=1e-5
)
UP = block_weight(1, "mlp.up_proj")
NORM = block_weight(1, "post_attention_layernorm")
FIRST_NORM = block_weight(0, "input_layernorm")


def layout_of(config: ModelConfig) -> Layout:
    return Layout(config, W4A8_DISTILLED)


def rounded(config: ModelConfig) -> Iterator[QuantizedEntry]:
    """As a recipe that rounds to nearest leaves it, rotated where the config has a rotation."""
    checkpoint = checkpoint_of(dataclasses.replace(config, head_rotation=False))
    if config.head_rotation:
        recipe = dataclasses.replace(W4A8_DISTILLED, rotations=(Rotation.R1,))
        checkpoint = rotate(checkpoint, recipe)
    floats = float_shapes(config)
    for name in stored_names(config):
        if name in floats:
            yield QuantizedEntry(name, checkpoint.weights.read(name))
        else:
            yield QuantizedEntry(name, nearest_codes(checkpoint, layout_of(config), name))


def quantized(config: ModelConfig, name: str) -> QuantizedTensor:
    value = {entry.name: entry.value for entry in rounded(config)}[name]
    assert isinstance(value, QuantizedTensor)
    return value


ROTATED = dataclasses.replace(DEBUG_CONFIG, head_rotation=True)
UNTIED = dataclasses.replace(DEBUG_CONFIG, tie_word_embeddings=False)


def network_of(config: ModelConfig = ROTATED, rates: Distillation = RATES) -> TrainedNetwork:
    return TrainedNetwork(layout_of(config), rounded(config), rates, torch.device("cpu"))


@pytest.mark.parametrize("config", [DEBUG_CONFIG, ROTATED, UNTIED], ids=["tied", "rotated", "own"])
def test_without_training_everything_is_as_it_was(config: ModelConfig) -> None:
    network = network_of(config)
    for before, after in zip(rounded(config), network.entries(), strict=True):
        assert before.name == after.name
        if isinstance(before.value, QuantizedTensor):
            assert isinstance(after.value, QuantizedTensor)
            assert torch.equal(before.value.codes, after.value.codes)
            assert torch.equal(before.value.scales, after.value.scales)
            if before.name not in TABLES:
                assert torch.equal(network.matrix(before.name), before.value.dequantize())
        else:
            assert isinstance(after.value, torch.Tensor)
            assert torch.equal(before.value, after.value)
    head = quantized(config, EMBEDDING if config.tie_word_embeddings else LM_HEAD)
    assert torch.equal(network.matrix(LM_HEAD), head.dequantize())
    rows = torch.tensor([[3, 0], [7, 3]])
    table = quantized(config, EMBEDDING).dequantize()
    assert torch.equal(network.embedding_rows(rows), table[rows])


def test_scales_norms_and_the_rotation_move_and_nothing_else() -> None:
    network = network_of()
    network.shifts.normal_(0, 0.01, generator=torch.Generator().manual_seed(0))
    for before, after in zip(rounded(ROTATED), network.entries(), strict=True):
        old, new = before.value, after.value
        if isinstance(old, QuantizedTensor):
            assert isinstance(new, QuantizedTensor)
            assert torch.equal(old.codes, new.codes)
            moved = (new.scales.float() / old.scales.float()).log()
            assert moved.any() == (before.name not in TABLES)
            assert moved.abs().max() < 0.07
            if before.name not in TABLES:  # what was trained is what is stored
                assert torch.equal(network.matrix(before.name), new.dequantize())
        else:
            assert isinstance(new, torch.Tensor)
            assert 0 < (new - old).abs().max() < 0.1


def test_a_rate_of_zero_keeps_norms_and_the_rotation() -> None:
    network = network_of(rates=dataclasses.replace(RATES, norm_rate=0.0, rotation_rate=0.0))
    network.shifts.fill_(0.1)
    for before, after in zip(rounded(ROTATED), network.entries(), strict=True):
        if isinstance(before.value, torch.Tensor):
            assert isinstance(after.value, torch.Tensor)
            assert torch.equal(before.value, after.value)


def test_scales_stay_where_every_backend_holds_them() -> None:
    network = network_of()
    for shift, limit in ((-60.0, MIN_SCALE), (60.0, MAX_SCALE)):
        network.shifts.fill_(shift)
        trained = {entry.name: entry.value for entry in network.entries()}[UP]
        assert isinstance(trained, QuantizedTensor)
        assert (trained.scales == limit).all()


def test_each_number_has_the_rate_of_its_kind() -> None:
    network = network_of()
    linears = sum(
        entry.value.scales.numel()
        for entry in rounded(ROTATED)
        if isinstance(entry.value, QuantizedTensor) and entry.name not in TABLES
    )
    expected = {1e-3: linears, 1e-4: 5 * 96, 1e-5: 96 * 96}
    counts = {rate: int((network.rates == rate).sum()) for rate in expected}
    assert counts == expected
    assert len(network.shifts) == sum(expected.values())


def test_gradients_are_added_up_in_the_vector() -> None:
    """By hand: of the sum of a matrix's elements, those of its scales' logarithms and of a norm."""
    network = network_of()
    value = network.matrix(UP).sum() + 3 * network.vector(NORM).sum()
    torch.autograd.backward(value)
    torch.autograd.backward(network.matrix(HEAD_ROTATION).sum())
    tensor = quantized(ROTATED, UP)
    by_group = tensor.dequantize().view(*tensor.scales.shape, -1).sum(-1)
    expected = torch.cat([by_group.flatten(), torch.full((96,), 3.0), torch.ones(96 * 96)])
    found = network.gradient[network.gradient != 0]
    torch.testing.assert_close(found, expected[expected != 0])
    torch.autograd.backward(network.matrix(HEAD_ROTATION).sum())
    assert torch.equal(network.gradient[-96 * 96 :], torch.full((96 * 96,), 2.0))


def test_the_first_norm_stays_uneven() -> None:
    """`tie_breaker` keeps the embedding's rows off the boundaries of rounding."""
    network = network_of()
    network.shifts.fill_(0.05)
    even = network.vector(FIRST_NORM).detach() / tie_breaker(96)
    assert even.std() < 1e-6
    assert network.vector(FIRST_NORM).std() > 0.01
