"""Rounding boundaries: a flipped code is found and taken back; what is no boundary is no excuse."""

import numpy as np
import pytest
import torch
from torch import Tensor

from llama_edge.core.artifact import ActivationQuantization
from llama_edge.core.quantized import QuantizedCheckpoint
from llama_edge.gate.block_errors import attention_errors, head_errors, mlp_errors
from llama_edge.gate.rounding import border_flips, rounding_steps
from llama_edge.gate.teacher import empty_cache
from llama_edge.models.reference import Reference
from llama_edge.models.sources import CachedSource, DequantizedSource
from tests.gate.conftest import Judge

LIMIT = 1e-4
INT8 = (ActivationQuantization.INT8_PER_TOKEN, ActivationQuantization.INT8_PER_BLOCK)


@pytest.fixture(scope="module", params=INT8)
def model(debug_quantized: QuantizedCheckpoint, request: pytest.FixtureRequest) -> Reference:
    source = CachedSource(DequantizedSource(debug_quantized.weights))
    return Reference(debug_quantized.config, source, request.param)


@pytest.fixture(scope="module", name="x_TD")
def stream() -> Tensor:
    return torch.randn(12, 96, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module", name="attention_TQ")
def attended() -> Tensor:
    return torch.randn(12, 96, generator=torch.Generator().manual_seed(6))


class Nudged(Reference):
    """One value of token 4's rounded input is a code away, as if float rounding had tipped it."""

    def __init__(self, model: Reference, index: int) -> None:
        super().__init__(model.config, model.source, model.activation)
        self.index = index

    def _nudge(self, rounded: Tensor) -> Tensor:
        nudged = rounded.clone()
        nudged[4, self.index] += rounding_steps(rounded, self.activation)[4, self.index]
        return nudged

    def attention_input(self, layer: int, x_TD: Tensor) -> Tensor:
        return self._nudge(super().attention_input(layer, x_TD))

    def mlp_input(self, layer: int, x_TD: Tensor) -> Tensor:
        return self._nudge(super().mlp_input(layer, x_TD))

    def head_input(self, x_TD: Tensor) -> Tensor:
        return self._nudge(super().head_input(x_TD))


def place_on_border(model: Reference, norm: str, x_TD: Tensor, index: int) -> Tensor:
    """x_TD with token 4's value moved until the norm's output is just below a boundary."""
    exact = Reference(model.config, model.source, ActivationQuantization.NONE)
    stage = {
        "attention": lambda x: exact.attention_input(0, x),
        "mlp": lambda x: exact.mlp_input(0, x),
        "head": exact.head_input,
    }[norm]
    x_TD = x_TD.clone()
    for _ in range(60):
        value = stage(x_TD)[4, index]
        step = rounding_steps(stage(x_TD), model.activation)[4, index]
        wanted = (torch.floor(value / step) + 0.5 - 4e-4) * step
        x_TD[4, index] += 0.7 * (wanted - value) * x_TD[4].square().mean().sqrt()
    return x_TD


def calm_index(x_TD: Tensor) -> int:
    """An element that is neither near zero nor the largest of its token or block."""
    magnitudes = x_TD[4].abs().view(-1, 32)
    return int(magnitudes[0].argsort()[16])


def test_attention_takes_a_flip_back_for_all_later_tokens(model: Reference, x_TD: Tensor) -> None:
    index = calm_index(x_TD)
    x_TD = place_on_border(model, "attention", x_TD, index)
    found = Nudged(model, index).attention_block(0, x_TD, empty_cache(model.config, 0))
    errors = attention_errors(model, 0, x_TD, found, LIMIT)
    assert errors.flips == 1
    assert errors.raw[4] > LIMIT
    assert errors.raw[5:].max() > LIMIT
    assert errors.raw[:4].max() < 1e-6
    assert errors.explained.max() < 1e-5


def test_mlp_and_head_take_a_flip_back(
    model: Reference, x_TD: Tensor, attention_TQ: Tensor
) -> None:
    index = calm_index(x_TD)
    nothing = torch.zeros_like(attention_TQ)  # so that the norm's input is x itself
    on_border = place_on_border(model, "mlp", x_TD, index)
    found = Nudged(model, index).mlp_block(0, on_border, nothing)
    errors = mlp_errors(model, 0, on_border, nothing, found, LIMIT)
    assert np.flatnonzero(errors.raw > LIMIT).tolist() == [4]
    assert errors.flips == 1
    assert errors.explained.max() < 1e-5
    on_border = place_on_border(model, "head", x_TD, index)
    found = Nudged(model, index).head(on_border)
    errors = head_errors(model, on_border, found, LIMIT)
    assert np.flatnonzero(errors.raw > LIMIT).tolist() == [4]
    assert errors.flips == 1
    assert errors.explained.max() < 1e-5


def test_a_code_that_is_on_no_border_stays_an_error(
    model: Reference, x_TD: Tensor, attention_TQ: Tensor
) -> None:
    """The same one-code change, in the middle between two boundaries."""
    index = calm_index(x_TD)
    exact = Reference(model.config, model.source, ActivationQuantization.NONE)
    on_border = {flip.index for flip in border_flips(model, 0, exact.head_input(x_TD)[4], 1e-2)}
    index = next(i for i in range(index, 96) if i not in on_border)
    errors = head_errors(model, x_TD, Nudged(model, index).head(x_TD), LIMIT)
    assert errors.flips == 0
    assert errors.explained[4] == pytest.approx(errors.raw[4], rel=1e-3)
    assert errors.explained[4] > LIMIT


def test_a_wrong_weight_is_not_explained(
    model: Reference, x_TD: Tensor, attention_TQ: Tensor
) -> None:
    found = model.mlp_block(0, x_TD, attention_TQ)
    found[:, 3] *= 1.01
    errors = mlp_errors(model, 0, x_TD, attention_TQ, found, LIMIT)
    assert errors.flips == 0
    np.testing.assert_array_equal(errors.explained, errors.raw)


def test_one_wrong_row_is_not_explained(
    model: Reference, x_TD: Tensor, attention_TQ: Tensor
) -> None:
    found = model.mlp_block(0, x_TD, attention_TQ)
    found[4] *= 1.001
    errors = mlp_errors(model, 0, x_TD, attention_TQ, found, LIMIT)
    assert errors.flips == 0
    assert errors.explained[4] == pytest.approx(1e-3, rel=0.01)


def test_the_debug_models_flips_are_all_explained(judge: Judge) -> None:
    """Another order of float operations tips real codes; nothing but those is left out."""
    for activation in INT8:
        blocks = judge("none", activation).blocks.blocks
        assert sum(block.flips for block in blocks) > 0
        raw = max(block.prefill.raw_max for block in blocks)
        left = max(block.prefill.max for block in blocks)
        assert raw > 1e-3
        assert left < LIMIT


def test_steps_and_borders_by_hand() -> None:
    x = torch.zeros(32)
    x[0], x[1], x[2], x[3] = 127.0, 3.5 - 1e-4, 7.2, -128.0
    per_block = rounding_steps(x, ActivationQuantization.INT8_PER_BLOCK)
    torch.testing.assert_close(per_block, torch.full((32,), 128 / 127))
    per_token = rounding_steps(x, ActivationQuantization.INT8_PER_TOKEN)
    torch.testing.assert_close(per_token, torch.ones(32))
    model = Reference.__new__(Reference)
    model.activation = ActivationQuantization.INT8_PER_TOKEN
    (flip,) = [flip for flip in border_flips(model, 2, x, 1e-3) if flip.index < 3]
    assert (flip.place, flip.index, flip.value) == (2, 1, 4.0)
