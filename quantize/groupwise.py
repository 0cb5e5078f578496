"""Symmetric integer codes per group of inputs, through torchao's quantization primitives.

torchao, which takes seconds to import, comes with the first codes that are chosen: an export of
codes that a checkpoint brings, and whoever only reads codes, do without it.
"""

from typing import Final

import torch
from torch import Tensor

from llama_edge.core.errors import QuantizeError
from llama_edge.core.packing import MAX_SCALE, MIN_SCALE, QuantizedTensor

#: Elements that are worked on at a time, so that their copies stay in the caches; on a GPU, so that
#: it is not the calls that take the time.
_ON_CPU: Final = 2**18
_ON_GPU: Final = 2**25


def rows_at_once(weight_OI: Tensor) -> int:
    """Rows of a matrix that are worked on at a time."""
    elements = _ON_CPU if weight_OI.device.type == "cpu" else _ON_GPU
    return max(1, elements // weight_OI.shape[1])


def choose_scales(weight_OI: Tensor, bits: int, group_size: int) -> Tensor:
    """One positive scale per group, bfloat16 (O, I // group_size).

    max|w| / (2^(bits-1) - 0.5), so that the codes of both signs reach the same distance and no
    value is further than half a step from its code. It becomes bfloat16 before any code is chosen,
    because XNNPACK keeps bfloat16 and a scale that is rounded afterwards no longer belongs to its
    codes; it is rounded up, because a smaller scale would clip the largest weight (by half a step
    more at 8 bits).
    """
    from torchao.quantization.quant_primitives import MappingType, choose_qparams_affine

    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    scale, _ = choose_qparams_affine(
        weight_OI,
        MappingType.SYMMETRIC,
        (1, group_size),
        torch.int8,
        quant_min=low,
        quant_max=high,
        eps=MIN_SCALE,
        scale_dtype=torch.float32,
    )
    nearest = scale.to(torch.bfloat16)
    above = torch.nextafter(nearest, torch.full_like(nearest, torch.inf))
    return torch.where(nearest < scale, above, nearest).view(weight_OI.shape[0], -1)


def check_scales(name: str, weight_OI: Tensor, scales: Tensor) -> Tensor:
    """The scales, if every backend holds them exactly.

    Raises:
        QuantizeError: One is too large, or NaN.
    """
    if not scales.max() <= MAX_SCALE:  # false for NaN too
        raise QuantizeError(
            f"{name}: a weight of {weight_OI.abs().max():.4g} needs a scale of {scales.max():.4g}; "
            f"fp16 holds at most {MAX_SCALE:.0f}, so the checkpoint is damaged or not a Llama"
        )
    return scales


def round_to_nearest(name: str, weight_OI: Tensor, scales_OG: Tensor, bits: int) -> QuantizedTensor:
    """Round a float32 matrix to the codes nearest to it, given one scale per group.

    Raises:
        QuantizeError: A scale leaves the range that every backend holds exactly.
    """
    from torchao.quantization.quant_primitives import quantize_affine

    check_scales(name, weight_OI, scales_OG)
    rows, columns = weight_OI.shape
    group_size = columns // scales_OG.shape[1]
    codes = torch.empty(rows, columns, dtype=torch.int8, device=weight_OI.device)
    step = rows_at_once(weight_OI)
    for start in range(0, rows, step):
        piece = slice(start, start + step)
        codes[piece] = quantize_affine(
            weight_OI[piece],
            (1, group_size),
            scales_OG[piece].float(),
            torch.zeros_like(scales_OG[piece], dtype=torch.float32),
            torch.int8,
            quant_min=-(2 ** (bits - 1)),
            quant_max=2 ** (bits - 1) - 1,
        )
    return QuantizedTensor(codes=codes, scales=scales_OG, bits=bits, group_size=group_size)


def quantize_groupwise(
    name: str, weight_OI: Tensor, *, bits: int, group_size: int
) -> QuantizedTensor:
    """Round a float32 matrix to nearest with scales that clip nothing.

    Raises:
        QuantizeError: The width is not a multiple of the group, or a scale leaves the range that
            every backend holds exactly.
    """
    columns = weight_OI.shape[1]
    if columns % group_size:
        raise QuantizeError(
            f"{name}: in_features {columns} is not divisible by group_size {group_size}; "
            "this model's widths need a recipe with a group size that divides them"
        )
    return round_to_nearest(name, weight_OI, choose_scales(weight_OI, bits, group_size), bits)
