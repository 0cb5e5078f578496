import subprocess
import sys

import pytest
import torch
from torch import Tensor

from llama_edge.core.errors import QuantizeError
from llama_edge.core.packing import MAX_SCALE, MIN_SCALE
from llama_edge.quantize.groupwise import choose_scales, quantize_groupwise


def heavy_tailed(rows: int, columns: int, seed: int = 0) -> Tensor:
    """Weights over nine decades, so that scales meet every rounding of bfloat16."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(rows, columns, generator=generator)
    return noise * 10.0 ** torch.empty(rows, 1).uniform_(-3, 3, generator=generator)


def test_int4_by_hand() -> None:
    # max|w| / 7.5 is 0.5 and exact. 3.75 is half way between 7 and 8 and stays in the range;
    # -3.75 may take -8. Ties go to the even code: 0.25 -> 0, 0.75 -> 2.
    weight = torch.tensor([[3.75, -3.75, 0.25, 0.75, -0.3, 1.6, 0.0, -2.2]])
    result = quantize_groupwise("w", weight, bits=4, group_size=8)
    assert result.scales.tolist() == [[0.5]]
    assert result.codes.tolist() == [[7, -8, 0, 2, -1, 3, 0, -4]]
    assert result.dequantize().tolist() == [[3.5, -4.0, 0.0, 1.0, -0.5, 1.5, 0.0, -2.0]]


def test_int8_by_hand() -> None:
    # max|w| / 127.5 is 2.
    weight = torch.tensor([[255.0, -255.0, 3.0, 5.0, -1.2, 100.9, 0.0, -200.0]])
    result = quantize_groupwise("w", weight, bits=8, group_size=8)
    assert result.scales.tolist() == [[2.0]]
    assert result.codes.tolist() == [[127, -128, 2, 2, -1, 50, 0, -100]]


def test_each_group_has_its_own_scale() -> None:
    weight = torch.tensor([[7.5, 0.0, 15.0, 0.0], [0.0, 3.75, -60.0, 4.0]])
    result = quantize_groupwise("w", weight, bits=4, group_size=2)
    assert result.scales.tolist() == [[1.0, 2.0], [0.5, 8.0]]
    assert result.codes.tolist() == [[7, 0, 7, 0], [0, 7, -8, 0]]


@pytest.mark.parametrize("bits", [4, 8])
def test_scales_are_the_smallest_bfloat16_that_reaches_the_largest_weight(bits: int) -> None:
    weight = heavy_tailed(512, 64)
    scales = choose_scales(weight, bits, 32)
    exact = weight.view(512, 2, 32).abs().amax(-1) / (2 ** (bits - 1) - 0.5)
    assert scales.dtype == torch.bfloat16
    assert (scales.float() >= exact).all()
    below = torch.nextafter(scales, torch.zeros_like(scales))
    assert ((below.float() < exact) | (scales == MIN_SCALE)).all()


@pytest.mark.parametrize(("bits", "group_size"), [(4, 8), (4, 32), (8, 64)])
def test_no_weight_is_further_than_half_a_step_from_its_code(bits: int, group_size: int) -> None:
    weight = heavy_tailed(1000, 64)
    result = quantize_groupwise("w", weight, bits=bits, group_size=group_size)
    error = (result.dequantize() - weight).abs().view(*result.scales.shape, group_size)
    # float32's own rounding of the quotient adds some 1e-5 of a step at 8 bits.
    assert (error <= 0.50003 * result.scales.float()[..., None]).all()


def test_a_scale_rounded_down_would_break_that_bound() -> None:
    # 127.5 * 1.0039 is nearest to a scale of 1: the largest weight would lie 1 step off.
    weight = torch.tensor([[127.5 * (1 + 2**-8 - 2**-14), 0.0]])
    scales = choose_scales(weight, 8, 2)
    assert scales.item() == 1 + 2**-7
    assert weight[0, 0] / weight.new_tensor(1.0) - 127 > 0.97


@pytest.mark.parametrize("bits", [4, 8])
def test_codes_are_the_nearest_to_the_rounded_scale(bits: int) -> None:
    weight = heavy_tailed(200, 64, seed=1)
    result = quantize_groupwise("w", weight, bits=bits, group_size=32)
    candidates = torch.arange(-(2 ** (bits - 1)), 2 ** (bits - 1), dtype=torch.float64)
    steps = (weight.view(200, 2, 32) / result.scales.double()[..., None]).view(200, 64)
    best = (steps[..., None] - candidates).abs().amin(-1)
    taken = (steps - result.codes).abs()
    # Where two codes are equally near (within float32), either is right.
    assert (taken - best <= 1e-4).all()


def test_a_smaller_group_has_a_smaller_error() -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(2))
    errors = [
        (quantize_groupwise("w", weight, bits=4, group_size=size).dequantize() - weight)
        .square()
        .mean()
        .item()
        for size in (16, 32, 64, 128, 256)
    ]
    assert errors == sorted(errors)
    assert errors[0] < 0.7 * errors[-1]
    # The largest of 32 normal numbers is 2.45 (root mean square), and rounding to a step s costs
    # s^2 / 12.
    assert errors[1] == pytest.approx((2.45 / 7.5) ** 2 / 12, rel=0.1)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-42, 2.0**-13])
def test_tiny_and_zero_groups_keep_a_positive_normal_scale(size: float) -> None:
    weight = torch.full((2, 64), size)
    weight[1, 32:] = 1.0
    result = quantize_groupwise("w", weight, bits=4, group_size=32)
    assert result.scales[0].tolist() == [MIN_SCALE, MIN_SCALE]
    # From bf16 to fp16 and back without loss: what Core ML keeps.
    assert torch.equal(result.scales.to(torch.float16).to(torch.bfloat16), result.scales)
    assert (result.codes[0] == round(size / MIN_SCALE)).all()


def test_rows_do_not_depend_on_each_other() -> None:
    # 3000 rows are several of the pieces in which a matrix is rounded.
    weight = heavy_tailed(3000, 256, seed=3)
    whole = quantize_groupwise("w", weight, bits=4, group_size=32)
    alone = quantize_groupwise("w", weight[2047:2050], bits=4, group_size=32)
    assert torch.equal(whole.codes[2047:2050], alone.codes)
    assert torch.equal(whole.scales[2047:2050], alone.scales)


def test_torchaos_tensor_of_these_codes_has_the_same_values() -> None:
    from torchao.quantization.quantize_.workflows.intx.intx_unpacked_to_int8_tensor import (
        IntxUnpackedToInt8Tensor,
    )

    result = quantize_groupwise("w", heavy_tailed(48, 96), bits=4, group_size=32)
    theirs = IntxUnpackedToInt8Tensor(
        result.codes,
        result.scales.float(),
        torch.zeros_like(result.scales, dtype=torch.int8),
        torch.int4,  # type: ignore[attr-defined]
        (1, 32),
        torch.float32,
        None,
    )
    assert torch.equal(theirs.dequantize(), result.dequantize())


def test_a_width_that_the_group_does_not_divide_names_the_tensor() -> None:
    with pytest.raises(QuantizeError, match=r"model\.x\.weight: in_features 48 .* group_size 32"):
        quantize_groupwise("model.x.weight", torch.zeros(2, 48), bits=4, group_size=32)


@pytest.mark.parametrize("value", [MAX_SCALE * 8, float("inf"), float("nan")])
def test_a_weight_that_no_scale_holds_names_the_tensor(value: float) -> None:
    weight = torch.zeros(2, 32)
    weight[1, 5] = value
    with pytest.raises(QuantizeError, match=r"model\.x\.weight: a weight of"):
        quantize_groupwise("model.x.weight", weight, bits=4, group_size=32)


#: Imports what exports and bisects, then chooses codes; says each time what that has imported.
CHOOSE = """
import sys
import torch
from llama_edge.debug import bisect
from llama_edge.pipeline import export
from llama_edge.quantize.groupwise import quantize_groupwise

def show():
    print([name for name in ("sympy", "torch._dynamo", "torchao") if name in sys.modules])

show()
quantize_groupwise("x", torch.ones(1, 32), bits=4, group_size=32)
show()
"""


def test_torchao_comes_with_the_first_codes_that_are_chosen() -> None:
    """It takes longer to import than torch; bisecting, or exporting given codes, needs none."""
    command = [sys.executable, "-c", CHOOSE]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    before, after = done.stdout.splitlines()
    assert before == "[]"
    assert "torchao" in after
