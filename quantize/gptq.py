"""GPTQ: round column by column, and let the columns still to come make up for each error.

Frantar et al., "GPTQ", 2023, algorithm 1, with the order of falling Hessian diagonal. Scales are
chosen before and belong to the columns' own groups, so the order never mixes groups. Shape
suffixes: O out_features, I in_features, G groups of inputs.
"""

from typing import Final

import torch
from torch import Tensor

from llama_edge.core.errors import QuantizeError

#: Added to the Hessian's diagonal, relative to its mean (the paper's 1 %).
DAMPING: Final = 0.01
#: A Hessian that even this much does not make positive definite is damaged.
_LARGEST_DAMPING: Final = 1.0
#: Columns whose updates are kept together; only speed depends on it.
_BLOCK: Final = 128


def _inverse_factor(name: str, hessian_II: Tensor) -> Tensor:
    """Upper Cholesky factor of the damped Hessian's inverse."""
    damping = DAMPING
    mean = hessian_II.diagonal().mean()
    while damping <= _LARGEST_DAMPING:
        damped = hessian_II + torch.diag(torch.full_like(hessian_II[0], float(damping * mean)))
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            inverse = torch.cholesky_inverse(lower)
            factor: Tensor
            factor, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if not failed:
                return factor
        damping *= 10
    raise QuantizeError(
        f"{name}: its calibration Hessian is not positive definite even with a damping of "
        f"{_LARGEST_DAMPING:g}; use more calibration text"
    )


def _ordered_factor(name: str, hessian_II: Tensor) -> tuple[Tensor, Tensor]:
    """Columns in the order of falling diagonal, and the inverse's factor in that order."""
    if not hessian_II.isfinite().all():
        raise QuantizeError(
            f"{name}: its calibration activations are not finite; the weights are damaged or "
            "overflow float32"
        )
    dead = hessian_II.diagonal() == 0
    # A silent input gets curvature of its own: rounded to nearest, without touching the others.
    hessian = hessian_II + torch.diag(dead.float() * hessian_II.diagonal().mean().clamp(min=1.0))
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    return order, _inverse_factor(name, hessian[order][:, order])


def rounding_costs(name: str, hessian_II: Tensor) -> Tensor:
    """What a squared rounding error in each column costs `tr(dW H dW^T)` under GPTQ, float32 (I,).

    That is 1 / U_jj^2 for the inverse's factor U (Frantar et al., equation 3): what is left once
    the columns still to come have made up for what they can.

    Raises:
        QuantizeError: The Hessian holds NaN or infinity, or is degenerate.
    """
    order, factor = _ordered_factor(name, hessian_II)
    return factor.diagonal().square().reciprocal()[torch.argsort(order)]


def gptq_codes(
    name: str, weight_OI: Tensor, hessian_II: Tensor, scales_OG: Tensor, bits: int
) -> Tensor:
    """Codes int8 (O, I) that keep `weight @ x` for the inputs x that the Hessian has seen.

    Args:
        name: The weight, for messages.
        weight_OI: float32.
        hessian_II: Sum over tokens of x x^T, float32; a zero diagonal is an input that never came.
        scales_OG: Positive, one per group of inputs.
        bits: Of the codes, symmetric.

    Raises:
        QuantizeError: The Hessian holds NaN or infinity, or is degenerate.
    """
    columns = weight_OI.shape[1]
    order, factor = _ordered_factor(name, hessian_II)
    scales = scales_OG.float().repeat_interleave(columns // scales_OG.shape[1], dim=1)[:, order]
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    weight = weight_OI[:, order].clone()
    codes = torch.empty(weight.shape, dtype=torch.int8)
    for start in range(0, columns, _BLOCK):
        end = min(start + _BLOCK, columns)
        errors = torch.empty_like(weight[:, start:end])
        for column in range(start, end):
            value, scale = weight[:, column], scales[:, column]
            code = (value / scale).round().clamp(low, high)
            codes[:, column] = code.to(torch.int8)
            error = (value - code * scale) / factor[column, column]
            weight[:, column + 1 : end].addr_(error, factor[column, column + 1 : end], alpha=-1)
            errors[:, column - start] = error
        weight[:, end:] -= errors @ factor[start:end, end:]
    return codes[:, torch.argsort(order)]
