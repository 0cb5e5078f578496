"""How many rows flips may touch, at the widths of real models; shifted boundaries touch more."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from llama_edge.core.artifact import ActivationQuantization
from llama_edge.gate import block_errors
from llama_edge.gate.block_errors import RowErrors, mlp_errors, most_suspects, unrounded
from llama_edge.gate.rounding import border_flips, rounding_steps, with_flips
from llama_edge.models.reference import Reference
from llama_edge.models.sources import CachedSource, FullPrecisionSource
from tests.conftest import DEBUG_CONFIG, MemoryWeights
from tests.gate.faulty_models import OtherOrder

LIMIT = 1e-4
ROWS = 96
PER_BLOCK = ActivationQuantization.INT8_PER_BLOCK


class ShiftedBorders(OtherOrder):
    """down_proj's input is rounded up from a little below each boundary on.

    Each code that differs lies on a boundary and each row has few of them: nothing but their number
    tells it from a right artifact.
    """

    def __init__(self, model: Reference, shift_steps: float) -> None:
        super().__init__(model.config, model.source, model.activation)
        self._shift = shift_steps

    def mlp_product(self, layer: int, normed_TD: Tensor) -> Tensor:
        product = unrounded(self).mlp_product(layer, normed_TD)
        return self.quantize_activation(
            product + self._shift * rounding_steps(product, self.activation)
        )


def mlp_of(intermediate: int) -> Reference:
    config = replace(DEBUG_CONFIG, intermediate_size=intermediate, num_hidden_layers=1)
    source = FullPrecisionSource(config, MemoryWeights(config))
    return Reference(config, CachedSource(source), PER_BLOCK)


class ManyRoundings(Reference):
    """SwiGLU with the float error that ONNX Runtime's has in 3B's shape: the median row's."""

    def mlp_product(self, layer: int, normed_TD: Tensor) -> Tensor:
        product = unrounded(self).mlp_product(layer, normed_TD)
        draw = torch.Generator().manual_seed(1)
        return self.quantize_activation(
            product * (1 + 1.4e-6 * torch.randn(product.shape, generator=draw))
        )


class OtherSums(Reference):
    """As BLAS does: several rows at once are summed in another order than one by itself."""

    moved = torch.zeros(0)

    def after_attention(self, layer: int, x_TD: Tensor, rounded_TQ: Tensor) -> Tensor:
        out = super().after_attention(layer, x_TD, rounded_TQ)
        return out if len(out) == 1 else out + self.moved


def one_block(intermediate: int, kind: type[Reference] = Reference) -> Reference:
    config = replace(DEBUG_CONFIG, intermediate_size=intermediate, num_hidden_layers=1)
    source = FullPrecisionSource(config, MemoryWeights(config))
    return kind(config, CachedSource(source), PER_BLOCK)


@pytest.fixture(scope="module")
def narrow() -> Reference:
    return one_block(160)


@pytest.fixture(scope="module")
def wide() -> Reference:
    """16576 codes a row; Llama 3.2 3B has 14336."""
    return one_block(16384)


def stream() -> tuple[Tensor, Tensor]:
    """Residual stream and attention's output (ROWS, 96): small, so that the MLP shows."""
    draw = torch.Generator().manual_seed(7)
    return 0.1 * torch.randn(ROWS, 96, generator=draw), 0.1 * torch.randn(ROWS, 96, generator=draw)


@torch.no_grad()
def judged(model: Reference, candidate: Reference) -> RowErrors:
    x_TD, attention_TQ = stream()
    found = candidate.mlp_block(0, x_TD, attention_TQ)
    return mlp_errors(model, 0, x_TD, attention_TQ, found, LIMIT)


def suspects(errors: RowErrors) -> int:
    return int((errors.raw > LIMIT).sum())


def test_a_right_artifact_of_a_wide_model_has_flips_in_many_rows(wide: Reference) -> None:
    errors = judged(wide, ManyRoundings(wide.config, wide.source, wide.activation))
    assert suspects(errors) > 0.3 * ROWS
    assert errors.explained.max() <= LIMIT
    assert errors.flips >= suspects(errors)


def test_shifted_borders_touch_more_rows_than_flips_do(wide: Reference) -> None:
    errors = judged(wide, ShiftedBorders(wide, 3e-4))
    assert errors.flips == 0
    np.testing.assert_array_equal(errors.explained, errors.raw)


def test_shifted_borders_of_a_narrow_model_are_told_by_their_number_alone(
    narrow: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row in five, each with a flip or two that by itself would be excused."""
    candidate = ShiftedBorders(narrow, 1e-3)
    errors = judged(narrow, candidate)
    assert 0.1 * ROWS < suspects(errors) < 0.3 * ROWS
    assert errors.flips == 0
    assert errors.explained.max() > 10 * LIMIT
    monkeypatch.setattr(block_errors, "MAX_FLIP_RATE", 1.0)
    excused = judged(narrow, candidate)
    assert excused.flips >= suspects(errors)
    assert excused.explained.max() < LIMIT


def test_how_many_rows_flips_may_touch() -> None:
    for codes, measured, rows in ((2688, 8, 106), (12288, 47, 229), (14336, 63, 229)):
        assert measured < most_suspects(rows, codes) < 0.9 * rows
    assert most_suspects(24, 14336) > 8
    assert most_suspects(1, 10) == 1.0
    # By hand: 1 - exp(-1) of 100 rows, and three deviations.
    assert most_suspects(100, 10000) == pytest.approx(63.21 + 3 * 4.822, abs=0.01)


@torch.no_grad()
def test_a_flip_is_found_where_sums_depend_on_the_rows_beside() -> None:
    """A value of the norm tips with the number of trials; the artifact's own flip is elsewhere."""
    model = one_block(160, OtherSums)
    assert isinstance(model, OtherSums)
    x_TD, attention_TQ = stream()
    row = slice(4, 5)
    middle = model.after_attention(0, x_TD[row], model.quantize_activation(attention_TQ[row]))
    normed = unrounded(model).mlp_input(0, middle)
    nearest = min(
        border_flips(model, 1, normed[0], 2e-2),
        key=lambda flip: abs(flip.value - float(normed[0, flip.index])),
    )
    rounded = model.mlp_input(0, middle)
    product = unrounded(model).mlp_product(0, rounded)
    flip = border_flips(model, 2, product[0], 9e-3)[0]
    turned = with_flips(model.quantize_activation(product), 2, [(flip,)])
    own = model.after_mlp(0, middle, turned)
    # What tips the norm's value: twice its distance from the boundary.
    value, step = normed[0, nearest.index], rounding_steps(normed, PER_BLOCK)[0, nearest.index]
    border = (rounded[0, nearest.index] + nearest.value) / 2
    model.moved = torch.zeros(96)
    model.moved[nearest.index] = 2 * (border - value) * middle[0, nearest.index] / value
    assert abs(float((border - value) / step)) < 2e-2

    found = model.mlp_block(0, x_TD, attention_TQ)
    found[row] = own
    errors = mlp_errors(model, 0, x_TD, attention_TQ, found, LIMIT)
    assert np.flatnonzero(errors.raw > LIMIT).tolist() == [4]
    assert errors.flips == 1
    assert errors.explained.max() < 1e-6
