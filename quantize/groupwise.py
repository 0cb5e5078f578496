"""Symmetric integer codes per group of inputs, through torchao's quantization primitives."""

import torch
from torch import Tensor
from torchao.quantization.quant_primitives import (
    MappingType,
    choose_qparams_affine,
    quantize_affine,
)

from llama_edge.core.errors import QuantizeError
from llama_edge.core.packing import MAX_SCALE, MIN_SCALE, QuantizedTensor


def choose_scales(weight_OI: Tensor, bits: int, group_size: int) -> Tensor:
    """One positive scale per group, bfloat16 (O, I // group_size).

    max|w| / (2^(bits-1) - 0.5), so that neither end of the code range is clipped by more than half
    a step. It is rounded to bfloat16 before any code is chosen, because XNNPACK keeps bfloat16:
    a scale that is rounded afterwards no longer belongs to its codes.
    """
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
    rounded: Tensor = scale.to(torch.bfloat16).view(weight_OI.shape[0], -1)
    return rounded


def quantize_groupwise(
    name: str, weight_OI: Tensor, *, bits: int, group_size: int
) -> QuantizedTensor:
    """Round a float32 matrix to the nearest codes.

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
    scales = choose_scales(weight_OI, bits, group_size)
    if scales.max() > MAX_SCALE:
        raise QuantizeError(
            f"{name}: a weight of {weight_OI.abs().max():.4g} needs a scale of {scales.max():.4g}; "
            f"fp16 holds at most {MAX_SCALE:.0f}, so the checkpoint is damaged or not a Llama"
        )
    codes = quantize_affine(
        weight_OI,
        (1, group_size),
        scales.float(),
        torch.zeros_like(scales, dtype=torch.float32),
        torch.int8,
        quant_min=-(2 ** (bits - 1)),
        quant_max=2 ** (bits - 1) - 1,
    )
    return QuantizedTensor(codes=codes, scales=scales, bits=bits, group_size=group_size)
