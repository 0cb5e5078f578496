"""Scales and codes made better together, after GPTQ has chosen the codes.

GPTQ looks at each column once and never at a scale again. What both leave of
`tr((W - Q) H (W - Q)^T)` falls further by exact steps in turn: over the groups of inputs, first the
group's scale for its codes, then each of its codes for that scale, all others as they are. Columns
are rows here. Shape suffixes: O out_features, I in_features, G groups of inputs.
"""

from typing import Final

import torch
from torch import Tensor

from llama_edge.core.packing import MAX_SCALE, MIN_SCALE
from llama_edge.quantize.gptq import Curvature, output_chunks

#: Passes over all groups. On SmolLM2 a third changed nothing that can be told from chance.
SWEEPS: Final = 2
#: How strongly a scale holds to what it was, relative to the curvature of its group.
SCALE_RIDGE: Final = 0.02
#: How far it goes from there at most, in both directions.
SCALE_RANGE: Final = (0.5, 1.5)
#: Columns between two updates of all the others; only speed depends on it.
_OUTER: Final = 256


def refine(
    weight_OI: Tensor,
    curvature: Curvature,
    codes_OI: Tensor,
    scales_OG: Tensor,
    bits: int,
    sweeps: int = SWEEPS,
) -> tuple[Tensor, Tensor]:
    """Codes int8 (O, I) and scales bfloat16 (O, G) that lose less than those that are given.

    Args:
        weight_OI: What to come near, float32.
        curvature: Of its inputs.
        codes_OI: int8.
        scales_OG: bfloat16.
        bits: Of the codes, symmetric.
        sweeps: Passes over all groups.
    """
    codes, scales = torch.empty_like(codes_OI), torch.empty_like(scales_OG)
    factor = curvature.hessian.to(curvature.products)
    for rows in output_chunks(weight_OI):
        descent = _Descent(curvature.hessian, factor, codes_OI[rows], scales_OG[rows], bits)
        descent.start(weight_OI[rows])
        for left in reversed(range(sweeps)):
            descent.sweep(last=not left)
        codes[rows], scales[rows] = descent.codes.T, descent.scales.T
    return codes, scales


class _Descent:
    """Some outputs' codes (I, O) and scales (G, O), float32, on their way."""

    def __init__(
        self,
        hessian_II: Tensor,
        factor_II: Tensor,
        codes_OI: Tensor,
        scales_OG: Tensor,
        bits: int,
    ) -> None:
        self._hessian = hessian_II
        #: the same, as large products take it
        self._factor = factor_II
        self._low, self._high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        self.codes = codes_OI.T.float().contiguous()
        self.scales = scales_OG.T.float().contiguous()
        self._group = len(self.codes) // len(self.scales)
        self._first_scales = self.scales.clone()

    def start(self, weight_OI: Tensor) -> None:
        """Half the downward gradient of the loss, H (W - Q), for each column and output."""
        rounded = self.codes * self.scales.repeat_interleave(self._group, dim=0)
        self._pull = (self._factor @ (weight_OI.T - rounded).to(self._factor.dtype)).float()

    def sweep(self, *, last: bool) -> None:
        """Every group once; after the last sweep nobody needs what it pulls behind it."""
        columns = len(self.codes)
        outer = max(_OUTER // self._group, 1) * self._group
        for begin in range(0, columns, outer):
            end = min(begin + outer, columns)
            moved = torch.empty_like(self._pull[begin:end])
            for start in range(begin, end, self._group):
                stop = start + self._group
                group = slice(start, stop)
                moved[start - begin : stop - begin] = self._improve(group)
                later = slice(stop, end)
                self._pull[later].addmm_(
                    self._hessian[later, group], moved[start - begin : stop - begin], alpha=-1
                )
            factor = moved.to(self._factor.dtype)
            if not last:
                self._pull[:begin] -= self._factor[:begin, begin:end] @ factor
                # What the groups of this block did to those before them in it.
                for start in range(begin, end, self._group):
                    rest = slice(start + self._group, end)
                    part = moved[rest.start - begin :]
                    rows = slice(start, start + self._group)
                    self._pull[rows].addmm_(self._hessian[rows, rest], part, alpha=-1)
            self._pull[end:] -= self._factor[end:, begin:end] @ factor

    def _improve(self, group: slice) -> Tensor:
        """One group's scale, then its codes; how far its values moved (group, O)."""
        hessian, pull = self._hessian[group, group], self._pull[group]
        codes, row = self.codes[group], group.start // self._group
        before = codes * self.scales[row]
        scale = self._better_scale(codes, pull, hessian, row)
        pull.addmm_(hessian, codes * scale - before, alpha=-1)
        self.scales[row] = scale
        for i in range(len(codes)):
            curvature = hessian[i, i]
            code = (codes[i] + pull[i] / (curvature * scale)).round_()
            code.clamp_(self._low, self._high)
            step = (code - codes[i]) * scale
            codes[i] = code
            pull.addr_(hessian[i], step, alpha=-1)
        moved: Tensor = codes * scale - before
        return moved

    def _better_scale(self, codes: Tensor, pull: Tensor, hessian: Tensor, row: int) -> Tensor:
        scale, first = self.scales[row], self._first_scales[row]
        curvature = (codes * (hessian @ codes)).sum(0) * (1 + SCALE_RIDGE)
        change = (codes * pull).sum(0) / curvature.clamp(min=torch.finfo(torch.float32).tiny)
        shortest, longest = (first * factor for factor in SCALE_RANGE)
        new = torch.minimum(torch.maximum(scale + change, shortest), longest)
        return new.clamp(min=MIN_SCALE, max=MAX_SCALE).to(torch.bfloat16).float()
