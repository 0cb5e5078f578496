"""GPTQ: round column by column, and let the columns still to come make up for each error.

Frantar et al., "GPTQ", 2023, algorithm 1, with the order of falling Hessian diagonal. Its updates
are those of Babai's nearest plane (Chen et al., "The geometry of LLM quantization", 2025), which
need one Cholesky factor of the Hessian itself and no inverse. Scales are chosen before and belong
to the columns' own groups, so the order never mixes groups. Columns are rows here, because a row
lies together in memory. Shape suffixes: O out_features, I in_features, G groups of inputs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from llama_edge.core.errors import QuantizeError
from llama_edge.quantize.device import factoring_device

#: Added to the Hessian's diagonal, relative to its mean (the paper's 1 %).
DAMPING: Final = 0.01
#: A Hessian that even this much does not make positive definite is damaged.
_LARGEST_DAMPING: Final = 1.0
#: Columns whose updates are kept together, those inside a pass over the rest, and outputs that are
#: rounded together, so that all of it stays in the caches; only speed depends on them.
_INNER: Final = 32
_OUTER: Final = 256
_OUTPUTS: Final = 1024


@dataclass(frozen=True, slots=True)
class Curvature:
    """What inputs x have done, for all linears that multiply them.

    With H the damped Hessian in `order` and H = R R^T, R upper triangular, what a row's rounding
    errors d lose is |R^T d|^2: column by column each error is made up for by the next ones.
    """

    #: damped sum over tokens of x x^T, float32 (I, I)
    hessian: Tensor
    #: columns by falling diagonal, int64 (I,)
    order: Tensor
    #: R, each column divided by what it has on the diagonal, float32 (I, I)
    factor: Tensor
    #: of R, squared: what an error in each column costs once the others have made up for it (I,)
    pivots: Tensor
    #: what factors of large products are rounded to
    products: torch.dtype

    @classmethod
    def of(
        cls, name: str, hessian_II: Tensor, products: torch.dtype = torch.float32
    ) -> "Curvature":
        """Of a sum over tokens of x x^T; a zero diagonal is an input that never came.

        Args:
            name: A weight, for messages.
            hessian_II: float32.
            products: What factors of large products are rounded to.

        Raises:
            QuantizeError: It holds NaN or infinity, or is degenerate.
        """
        if not hessian_II.isfinite().all():
            raise QuantizeError(
                f"{name}: its calibration activations are not finite; the weights are damaged or "
                "overflow float32"
            )
        diagonal = hessian_II.diagonal()
        # A silent input gets curvature of its own: rounded to nearest, without touching others.
        added = (diagonal == 0).float() * diagonal.mean().clamp(min=1.0)
        order = torch.argsort(diagonal + added, descending=True, stable=True)
        mean = (diagonal + added).mean()
        damping = DAMPING
        while damping <= _LARGEST_DAMPING:
            hessian = hessian_II.clone()
            hessian.diagonal().add_(added + damping * mean)
            factor = _upper_factor(hessian, order)
            if factor is not None:
                pivots = factor.diagonal().clone()
                return cls(hessian, order, factor.div_(pivots), pivots.square(), products)
            damping *= 10
        raise QuantizeError(
            f"{name}: its calibration Hessian is not positive definite even with a damping of "
            f"{_LARGEST_DAMPING:g}; use more calibration text"
        )

    def costs(self) -> Tensor:
        """What a squared rounding error in each column costs `tr(dW H dW^T)` under GPTQ, (I,)."""
        return self.pivots[torch.argsort(self.order)]


def _upper_factor(hessian_II: Tensor, order: Tensor) -> Tensor | None:
    """R of H = R R^T in that order, or None where H is not positive definite."""
    back = order.flip(0)
    turned = hessian_II[back][:, back].to(factoring_device(hessian_II.device))
    lower, failed = torch.linalg.cholesky_ex(turned)
    return None if failed else lower.flip(0, 1).to(hessian_II.device)


def output_chunks(weight_OI: Tensor) -> Iterator[slice]:
    """Rows of a matrix that are worked on together: they do not depend on each other.

    A GPU takes all at once: each step of it costs the same for many rows as for few.
    """
    outputs = len(weight_OI)
    size = _OUTPUTS if weight_OI.device.type == "cpu" else outputs
    for start in range(0, outputs, size):
        yield slice(start, min(start + size, outputs))


def gptq_codes(weight_OI: Tensor, curvature: Curvature, scales_OG: Tensor, bits: int) -> Tensor:
    """Codes int8 (O, I) that keep `weight @ x` for the inputs x that the curvature is of.

    Args:
        weight_OI: float32.
        curvature: Of the inputs.
        scales_OG: Positive, one per group of inputs.
        bits: Of the codes, symmetric.
    """
    outputs, columns = weight_OI.shape
    codes = torch.empty(outputs, columns, dtype=torch.int8, device=weight_OI.device)
    groups = curvature.order // (columns // scales_OG.shape[1])
    back = torch.argsort(curvature.order)
    factor = curvature.factor.to(curvature.products)
    for rows in output_chunks(weight_OI):
        weight_IO = weight_OI[rows].T[curvature.order]
        scales_IO = scales_OG[rows].float().T[groups]
        found = _rounded(weight_IO, scales_IO, curvature.factor, factor, bits)
        codes[rows] = found[back].T.to(torch.int8)
    return codes


def _rounded(
    weight_IO: Tensor, scales_IO: Tensor, near_II: Tensor, far_II: Tensor, bits: int
) -> Tensor:
    """Codes (I, O) float32; the factor twice, for columns nearby and as large products take it."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    columns = len(weight_IO)
    codes, errors = torch.empty_like(weight_IO), torch.empty_like(weight_IO)
    wanted = weight_IO.clone()
    for outer in range(0, columns, _OUTER):
        last = min(outer + _OUTER, columns)
        for start in range(outer, last, _INNER):
            end = min(start + _INNER, last)
            for i in range(start, end):
                code = torch.div(wanted[i], scales_IO[i], out=codes[i])
                code.round_().clamp_(low, high)
                error = torch.addcmul(weight_IO[i], code, scales_IO[i], value=-1, out=errors[i])
                wanted[i + 1 : end].addr_(near_II[i, i + 1 : end], error)
            wanted[end:last].addmm_(near_II[start:end, end:last].T, errors[start:end])
        wanted[last:] += far_II[outer:last, last:].T @ errors[outer:last].to(far_II.dtype)
    return codes
