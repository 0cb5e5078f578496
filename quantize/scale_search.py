"""Scales that lose least: a few candidates per group, by the squared error of rounding."""

from typing import Final

import torch
from torch import Tensor

from llama_edge.core.packing import MIN_SCALE
from llama_edge.core.recipe import Scales
from llama_edge.formats.quantized_checkpoint import Layout
from llama_edge.quantize.groupwise import check_scales, choose_scales, rows_at_once

#: Candidates relative to the scale that clips nothing. Below 0.6 clipping always lost more on
#: normal and on heavy-tailed groups of 32; above 1 rounding only grows.
LOWEST: Final = 0.6
CANDIDATES: Final = 24


def search_scales(weight_OI: Tensor, bits: int, group_size: int) -> Tensor:
    """One positive scale per group, bfloat16 (O, G), with the least squared rounding error."""
    pieces = torch.split(weight_OI, rows_at_once(weight_OI))
    return torch.cat([_search(piece, bits, group_size) for piece in pieces])


def _search(weight_OI: Tensor, bits: int, group_size: int) -> Tensor:
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    groups = weight_OI.view(weight_OI.shape[0], -1, group_size)
    widest = choose_scales(weight_OI, bits, group_size).float()
    best, least = widest, torch.full_like(widest, torch.inf)
    for factor in torch.linspace(LOWEST, 1.0, CANDIDATES).tolist():
        # Rounded before its error is measured: the scale that is stored is the one that counts.
        scale = (widest * factor).clamp(min=MIN_SCALE).to(torch.bfloat16).float()
        rounded = (groups / scale[..., None]).round_().clamp_(low, high).mul_(scale[..., None])
        error = rounded.sub_(groups).square_().sum(-1)
        better = error < least
        best, least = torch.where(better, scale, best), torch.where(better, error, least)
    return best.to(torch.bfloat16)


def recipe_scales(name: str, weight_OI: Tensor, layout: Layout) -> Tensor:
    """A block linear's scales (O, G) as its recipe wants them chosen.

    Raises:
        QuantizeError: One leaves the range that every backend holds exactly.
    """
    choose = search_scales if layout.recipe.scales is Scales.MSE else choose_scales
    scales = choose(weight_OI, layout.bits(name), layout.group_size(name))
    return check_scales(name, weight_OI, scales)
