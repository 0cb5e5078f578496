"""What differs between two quantized matrices of one name."""

from dataclasses import dataclass
from typing import Self

import torch

from llama_edge.core.packing import QuantizedTensor


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixDifference:
    """Counts over one matrix."""

    codes: int
    codes_differ: int
    #: the first of them, (row, column); None where all are equal
    first_code: tuple[int, int] | None
    scales: int
    scales_differ: int
    #: (row, group) of the first
    first_scale: tuple[int, int] | None
    #: the largest distance in bfloat16 steps, and as a ratio
    scale_steps: int
    scale_ratio: float

    @classmethod
    def between(cls, wanted: QuantizedTensor, found: QuantizedTensor) -> Self | None:
        """None where shapes or widths differ, so that nothing can be counted."""
        if (wanted.shape, wanted.bits, wanted.group_size) != (
            found.shape,
            found.bits,
            found.group_size,
        ):
            return None
        codes = wanted.codes != found.codes
        scales = wanted.scales != found.scales
        # Positive bfloat16 numbers are ordered as their bits are.
        steps = wanted.scales.view(torch.int16).int() - found.scales.view(torch.int16).int()
        ratio = found.scales.float() / wanted.scales.float()
        return cls(
            codes=codes.numel(),
            codes_differ=int(codes.sum()),
            first_code=_first(codes),
            scales=scales.numel(),
            scales_differ=int(scales.sum()),
            first_scale=_first(scales),
            scale_steps=int(steps.abs().max()),
            scale_ratio=float(torch.maximum(ratio, 1 / ratio).max()),
        )

    @property
    def equal(self) -> bool:
        """No code and no scale differs."""
        return not self.codes_differ and not self.scales_differ

    def describe(self) -> str:
        """For a person, in one line."""
        parts = []
        if self.codes_differ:
            assert self.first_code is not None
            row, column = self.first_code
            parts.append(
                f"{self.codes_differ} of {self.codes} values differ (first: row {row}, input "
                f"{column})"
            )
        if self.scales_differ:
            assert self.first_scale is not None
            row, group = self.first_scale
            parts.append(
                f"{self.scales_differ} of {self.scales} scales differ, by up to "
                f"{self.scale_steps} bfloat16 steps (x {self.scale_ratio:.4g}; first: row {row}, "
                f"group {group})"
            )
        return "; ".join(parts) or "equal"


def _first(differs: torch.Tensor) -> tuple[int, int] | None:
    places = torch.nonzero(differs)
    return None if not len(places) else (int(places[0, 0]), int(places[0, 1]))
