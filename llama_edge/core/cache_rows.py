"""Rows of an int8 KV cache: asymmetric codes, one float32 step and one zero point per row.

A row is one token of one head. Source: `choose_qparams_per_token_asymmetric` and
`quantize_per_token` in ExecuTorch (`kernels/quantized/cpu`), which write such a cache.
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

_LOW: Final = -128
_HIGH: Final = 127
#: ExecuTorch takes no smaller step (float32, as there).
_SMALLEST_STEP: Final = torch.tensor(6.1e-5).double().item()


@dataclass(frozen=True, slots=True)
class CacheRows:
    """What an int8 cache holds of float rows (..., H)."""

    #: whole numbers from -128 to 127, float32 (..., H)
    codes: Tensor
    #: float32 (..., 1)
    steps: Tensor
    #: whole numbers from -128 to 127, float32 (..., 1)
    zero_points: Tensor

    def dequantize(self) -> Tensor:
        """float32 (..., H)."""
        return (self.codes - self.zero_points) * self.steps


def row_parameters(x: Tensor) -> tuple[Tensor, Tensor]:
    """Steps and zero points, float64 (..., 1), of float32 rows (..., H).

    The range of a row includes zero. Zero points are not rounded yet.
    """
    low = x.amin(-1, keepdim=True).clamp(max=0.0).double()
    high = x.amax(-1, keepdim=True).clamp(min=0.0).double()
    steps = (high - low) / (_HIGH - _LOW)
    # A row of zeros has no step of its own.
    steps = torch.where(steps.float() == 0, torch.full_like(steps, 0.1), steps)
    stretch = (_SMALLEST_STEP / steps).clamp(min=1.0)
    steps, low, high = steps * stretch, low * stretch, high * stretch
    # The two agree but for rounding errors: the one of smaller terms has the smaller error.
    from_low, from_high = _LOW - low / steps, _HIGH - high / steps
    takes_low = abs(_LOW) - (low / steps).abs() < abs(_HIGH) - (high / steps).abs()
    return steps, torch.where(takes_low, from_low, from_high)


def quantize_rows(x: Tensor) -> CacheRows:
    """Round float32 (..., H) to the nearest codes."""
    wide_steps, wide_zero_points = row_parameters(x)
    steps = wide_steps.float()
    zero_points = wide_zero_points.round().clamp(_LOW, _HIGH).float()
    codes = ((x * (1.0 / steps)).round() + zero_points).clamp(_LOW, _HIGH)
    return CacheRows(codes, steps, zero_points)
