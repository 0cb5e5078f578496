"""Scales and codes that are made better after GPTQ."""

import numpy
import pytest
import torch
from torch import Tensor

from llama_edge.quantize.gptq import Curvature, gptq_codes
from llama_edge.quantize.refine import SCALE_RIDGE, refine
from llama_edge.quantize.scale_search import search_scales

ROWS, COLUMNS, GROUP = 40, 128, 32


def problem() -> tuple[Tensor, Curvature, Tensor, Tensor]:
    """A matrix, its inputs' curvature, and GPTQ's codes with the searched scales."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(ROWS, COLUMNS, generator=generator)
    mix = torch.randn(COLUMNS, COLUMNS, generator=generator) / COLUMNS**0.5
    inputs = torch.randn(900, COLUMNS, generator=generator) @ (mix + 0.3 * torch.eye(COLUMNS))
    curvature = Curvature.of("w", inputs.T @ inputs)
    scales = search_scales(weight, 4, GROUP)
    return weight, curvature, gptq_codes(weight, curvature, scales, 4), scales


def losses(weight: Tensor, curvature: Curvature, codes: Tensor, scales: Tensor) -> Tensor:
    """Of each output, float64 (O,)."""
    rounded = codes.double() * scales.double().repeat_interleave(GROUP, dim=1)
    error = weight.double() - rounded
    return (error @ curvature.hessian.double() * error).sum(1)


def test_every_sweep_loses_less() -> None:
    weight, curvature, codes, scales = problem()
    found = [
        losses(weight, curvature, *refine(weight, curvature, codes, scales, 4, sweeps))
        for sweeps in range(4)
    ]
    assert torch.equal(found[0], losses(weight, curvature, codes, scales))
    assert found[1].sum() < 0.95 * found[0].sum()
    assert found[2].sum() < found[1].sum()
    assert found[3].sum() < found[2].sum()


def test_no_single_code_could_be_better() -> None:
    """After many sweeps each code is the best one for all the others."""
    weight, curvature, codes, scales = problem()
    codes, scales = refine(weight, curvature, codes, scales, 4, sweeps=30)
    best = losses(weight, curvature, codes, scales)
    for column in range(0, COLUMNS, 7):
        for step in (-1, 1):
            other = codes.clone()
            other[:, column] = (other[:, column] + step).clamp(-8, 7)
            assert (losses(weight, curvature, other, scales) >= best * (1 - 1e-4)).all()


def test_a_scale_is_the_least_squares_one() -> None:
    """One group, whose codes fit exactly with another scale: numpy finds the same one."""
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(-7, 8, (ROWS, GROUP), generator=generator)
    weight = 0.9 * codes.float()
    curvature = Curvature.of("w", torch.eye(GROUP))
    scales = torch.ones(ROWS, 1, dtype=torch.bfloat16)
    kept, found = refine(weight, curvature, codes.to(torch.int8), scales, 4, sweeps=8)
    assert torch.equal(kept, codes.to(torch.int8))
    for row in range(ROWS):
        wanted = numpy.linalg.lstsq(codes[row, :, None].numpy(), weight[row].numpy(), rcond=None)
        assert float(found[row, 0]) == pytest.approx(float(wanted[0][0]), rel=2**-8)
    assert SCALE_RIDGE < 0.1


def test_a_scale_stays_near_its_first_value() -> None:
    weight, curvature, codes, scales = problem()
    _, found = refine(1000 * weight, curvature, codes, scales, 4)
    assert (found.float() <= 1.5 * scales.float() * (1 + 2**-8)).all()


def test_codes_stay_in_their_range_and_scales_are_bfloat16() -> None:
    weight, curvature, codes, scales = problem()
    codes, scales = refine(weight, curvature, codes, scales, 4)
    assert (codes.dtype, scales.dtype) == (torch.int8, torch.bfloat16)
    assert int(codes.min()) >= -8
    assert int(codes.max()) <= 7
    assert (scales > 0).all()


def test_a_row_of_zeros_stays_zero() -> None:
    weight, curvature, codes, scales = problem()
    weight[3], codes[3] = 0, 0
    found, _ = refine(weight, curvature, codes, scales, 4)
    assert not found[3].any()
