import torch

from llama_edge.core.packing import MAX_SCALE, MIN_SCALE
from llama_edge.quantize.groupwise import choose_scales
from llama_edge.quantize.scale_search import search_scales


def rounding_error(weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    groups, wide = weight.view(weight.shape[0], -1, 32), scales.float()[..., None]
    return ((groups / wide).round().clamp(-8, 7) * wide - groups).square().sum(-1)


def test_no_group_loses_more_than_with_the_widest_scale() -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    searched = rounding_error(weight, search_scales(weight, 4, 32))
    widest = rounding_error(weight, choose_scales(weight, 4, 32))
    assert (searched <= widest + 1e-6).all()
    assert searched.sum() < 0.9 * widest.sum()


def test_one_outlier_is_clipped_when_that_is_cheaper() -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.rand(1, 32, generator=generator) * 0.5 + 0.5
    weight[0, 0] = 1.2
    assert search_scales(weight, 4, 32) < choose_scales(weight, 4, 32)


def test_scales_are_positive_bfloat16_in_range() -> None:
    weight = torch.zeros(3, 64)
    weight[1] = 1e-9
    weight[2] = 400.0
    scales = search_scales(weight, 4, 32)
    assert scales.dtype == torch.bfloat16
    assert (scales.float() >= MIN_SCALE).all()
    assert (scales.float() <= MAX_SCALE).all()
