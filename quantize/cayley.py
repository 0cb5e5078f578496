"""Descent over orthogonal matrices: SGD with momentum and the Cayley transform.

Li et al., "Efficient Riemannian Optimization on the Stiefel Manifold via the Cayley Transform",
2020, algorithm 1. Shape suffixes: B matrices of one order, D order.
"""

from typing import Final

import torch
from torch import Tensor

#: The paper's q: a step is cut to `2 q / |W|`, which makes the fixed-point iteration a contraction
#: by q and keeps a large gradient from turning further than the transform follows it.
CONTRACTION: Final = 0.5
#: The fixed point is found when entries, which are at most one, change by no more than this; a
#: contraction of one half needs at most 52 rounds.
_SETTLED: Final = 1e-15
_MAX_ROUNDS: Final = 60


def cayley_step(
    matrix_BDD: Tensor, gradient_BDD: Tensor, momentum_BDD: Tensor, rate: float, decay: float
) -> tuple[Tensor, Tensor]:
    """One step downhill that stays orthogonal; returns the new matrices and momenta.

    The paper stops its fixed-point iteration after two rounds; here it runs until nothing changes
    any more: a step costs little beyond the gradient, and the matrices stay orthogonal to float64's
    last digits.

    Args:
        matrix_BDD: Orthogonal, float64, with any leading axes.
        gradient_BDD: The loss's Euclidean gradient there.
        momentum_BDD: As the last step left it; zeros before the first.
        rate: The learning rate: an upper bound of the step along the tangent.
        decay: What is kept of the momentum, 0 up to 1.
    """
    towards = decay * momentum_BDD - gradient_BDD
    # Of square matrices the paper's W-hat - W-hat^T, which projects on the tangent, is this.
    skew = 0.5 * (towards @ matrix_BDD.mT - matrix_BDD @ towards.mT)
    norms = torch.linalg.matrix_norm(skew)[..., None, None]
    step = (2 * CONTRACTION / norms.clamp(min=torch.finfo(norms.dtype).tiny)).clamp(max=rate)
    momentum = skew @ matrix_BDD
    turned = matrix_BDD + step * momentum
    for _ in range(_MAX_ROUNDS):
        before = turned
        turned = matrix_BDD + step / 2 * (skew @ (matrix_BDD + before))
        if (turned - before).abs().max() <= _SETTLED:
            break
    return turned, momentum


def nearest_orthogonal(matrix_BDD: Tensor) -> Tensor:
    """The orthogonal factor of the polar decomposition: takes back what rounding has added."""
    left, _, right = torch.linalg.svd(matrix_BDD)
    nearest: Tensor = left @ right
    return nearest
