"""Sums in bfloat16, tile by tile, against float64 ones."""

import pytest
import torch

from llama_edge.quantize import moments
from llama_edge.quantize.moments import Drift, Hessian, of_like_size

CPU = torch.device("cpu")


def inputs(width: int, seed: int) -> torch.Tensor:
    """More tokens than are summed at once; the first is as large as a model's first token is."""
    found = torch.randn(700, width, generator=torch.Generator().manual_seed(seed))
    found[0] *= 300
    return found.bfloat16()


def hessian_error(x: torch.Tensor) -> float:
    """Relative to what ordinary tokens have."""
    hessian = Hessian(x.shape[1], CPU)
    for (alike,) in of_like_size(x):
        hessian.add(alike)
    exact, ordinary = (some.double().T @ some.double() for some in (x, x[1:]))
    return float((hessian.total() - exact).norm() / ordinary.norm())


def test_one_large_token_does_not_drown_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    x = inputs(64, seed=0)
    assert hessian_error(x) < 5e-3
    monkeypatch.setattr(moments, "_LARGE", float("inf"))
    assert hessian_error(x) > 0.1


def test_tiles_make_up_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "_TILE", 48)
    assert hessian_error(inputs(160, seed=0)) < 5e-3


@pytest.mark.parametrize("products", [torch.float32, torch.bfloat16])
def test_moved_weights_are_those_of_the_definition(
    products: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moments, "_TILE", 48)
    x = inputs(160, seed=0).to(products)
    full = (x + 0.1 * inputs(160, seed=1)).to(products)
    weight = torch.randn(200, 160, generator=torch.Generator().manual_seed(2))
    drift = Drift(160, CPU)
    for both in zip(torch.split(x, 400), torch.split(full, 400), strict=True):
        for some, wanted in of_like_size(*both):
            drift.add(some, wanted)
    damped = x.double().T @ x.double() + 500 * torch.eye(160, dtype=torch.float64)
    moved = weight.double() @ (full.double() - x.double()).T @ x.double() @ damped.inverse()
    found = drift.made_up_for(weight, torch.linalg.cholesky(damped).float(), products) - weight
    tolerance = 1e-3 if products is torch.float32 else 2e-2
    assert float((found - moved).norm() / moved.norm()) < tolerance
