"""What calibration inputs have done: sums of products that decide how a linear is rounded.

Products are summed in float32, some tokens and a tile of the sum at a time. Shape suffixes:
M tokens of all sequences, O out_features, I in_features.
"""

from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor

#: Tokens whose products are summed at once: in bfloat16 a sum is as coarse as its terms.
_TOKENS: Final = 512
#: Squared length, in medians, of inputs whose products are float32: in bfloat16 the first token,
#: whose activations are a hundred times larger, would leave noise that drowns all the others.
_LARGE: Final = 16.0
#: Rows and columns of a sum that stay in the caches while all tokens pass.
_TILE: Final = 1024


class Hessian:
    """Sum over tokens of x x^T, float32 (I, I); half of it is computed, and mirrored.

    Args:
        width: I.
        device: Where it is.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        self._lower = torch.zeros(width, width, device=device)

    def add(self, x_MI: Tensor) -> None:
        """Inputs of like size."""
        for rows in _tiles(len(self._lower)):
            for columns in _tiles(rows.stop):
                _add_products(self._lower[rows, columns], x_MI[:, rows], x_MI[:, columns])

    def total(self) -> Tensor:
        """Both halves; the sum is used up."""
        return self._lower.tril_().add_(self._lower.tril(-1).T)


class Drift:
    """How far the weights of some linears have to move, for inputs x that have drifted from x_full.

    With D the sum over tokens of (x_full - x) x^T, `W + W D (H + ridge)^-1` comes nearest on x to
    what W gives on x_full.

    Args:
        width: I.
        device: Where it is.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        self._sum = torch.zeros(width, width, device=device)

    def add(self, x_MI: Tensor, full_MI: Tensor) -> None:
        """Inputs of like size."""
        difference = full_MI - x_MI
        for rows in _tiles(len(self._sum)):
            for columns in _tiles(len(self._sum)):
                _add_products(self._sum[rows, columns], difference[:, rows], x_MI[:, columns])

    def made_up_for(self, weight_OI: Tensor, lower_II: Tensor, products: torch.dtype) -> Tensor:
        """The moved weights, float32 (O, I).

        Args:
            weight_OI: W, of all linears that multiply x, float32.
            lower_II: Cholesky factor of `H + ridge`.
            products: What factors of a large product are rounded to.
        """
        moves = torch.cholesky_solve(self._sum.T.to(lower_II.device), lower_II).T
        moves = moves.to(weight_OI.device, products)
        return (weight_OI.to(products) @ moves).float().add_(weight_OI)


def _tiles(size: int) -> Iterator[slice]:
    for start in range(0, size, _TILE):
        yield slice(start, min(start + _TILE, size))


def _add_products(tile: Tensor, left: Tensor, right: Tensor) -> None:
    """Add `left.T @ right`."""
    if left.dtype == torch.float32:
        tile.addmm_(left.T, right)
        return
    for some, other in zip(torch.split(left, _TOKENS), torch.split(right, _TOKENS), strict=True):
        tile += some.T @ other


def of_like_size(x_MI: Tensor, *others_MI: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tokens that can be summed together, with the same tokens of others.

    Args:
        x_MI: Inputs as products take them; they decide.
        others_MI: Of the same shape.
    """
    all_of = (x_MI, *others_MI)
    sizes = torch.linalg.vector_norm(x_MI, dim=-1, dtype=torch.float32).square()
    is_large = sizes > _LARGE * sizes.median()
    if not is_large.any():
        yield all_of
        return
    yield tuple(some[~is_large] for some in all_of)
    yield tuple(some[is_large].float() for some in all_of)
