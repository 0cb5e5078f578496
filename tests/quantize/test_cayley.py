import pytest
import torch
from torch import Tensor

from llama_edge.quantize.cayley import cayley_step, nearest_orthogonal


def orthogonal(order: int, seed: int, count: int = 1) -> Tensor:
    """Seeded rotations (B, D, D), float64."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, order, order, generator=generator, dtype=torch.float64)
    return nearest_orthogonal(noise)


def rotations(order: int, seed: int, count: int = 1) -> Tensor:
    """The same with determinant one: the transform never leaves a determinant's half."""
    found = orthogonal(order, seed, count)
    found[..., 0] *= torch.linalg.det(found)[..., None].sign()
    return found


def distance(matrix: Tensor) -> float:
    """From the manifold: the largest entry of R^T R - 1."""
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype)
    return float((matrix.mT @ matrix - identity).abs().max())


@pytest.mark.parametrize("order", [2, 16, 96])
def test_finds_a_rotation_that_is_known(order: int) -> None:
    """min |A R - A Q|^2 over rotations R: the orthogonal Procrustes problem, solved by Q."""
    generator = torch.Generator().manual_seed(0)
    given = torch.randn(1, 2 * order, order, generator=generator, dtype=torch.float64)
    wanted = rotations(order, seed=1)
    found, momentum = rotations(order, seed=2), torch.zeros(1, order, order, dtype=torch.float64)
    gram = given.mT @ given / given.shape[1]
    for step in range(1200):
        gradient = gram @ (found - wanted)
        found, momentum = cayley_step(found, gradient, momentum, 0.3 * (1 - step / 1200), 0.9)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


def test_every_iterate_is_orthogonal() -> None:
    """Three matrices at once, under gradients that are noise, tiny or huge."""
    matrix, momentum = orthogonal(48, seed=3, count=3), torch.zeros(3, 48, 48, dtype=torch.float64)
    generator = torch.Generator().manual_seed(4)
    for size in (1e-12, 1.0, 1e6) * 20:
        gradient = size * torch.randn(3, 48, 48, generator=generator, dtype=torch.float64)
        matrix, momentum = cayley_step(matrix, gradient, momentum, 1.5, 0.9)
        assert distance(matrix) < 1e-12


def test_the_fixed_point_is_the_cayley_transform() -> None:
    """Against the paper's closed form (I - a/2 W)^-1 (I + a/2 W) X, by a linear solve."""
    matrix, gradient = orthogonal(24, seed=5)[0], 1e-2 * orthogonal(24, seed=6)[0]
    found, momentum = cayley_step(matrix, gradient, torch.zeros_like(matrix), 1.5, 0.9)
    skew = 0.5 * (matrix @ gradient.T - gradient @ matrix.T)
    identity = torch.eye(24, dtype=torch.float64)
    wanted = torch.linalg.solve(identity - 0.75 * skew, (identity + 0.75 * skew) @ matrix)
    torch.testing.assert_close(found, wanted, atol=1e-14, rtol=0)
    torch.testing.assert_close(momentum, skew @ matrix, atol=1e-14, rtol=0)


def test_plain_descent_would_leave_the_manifold() -> None:
    """The check above can fail: a step along the tangent alone is not orthogonal."""
    matrix = orthogonal(24, seed=5)[0]
    _, momentum = cayley_step(matrix, orthogonal(24, seed=6)[0], torch.zeros_like(matrix), 1.5, 0.9)
    assert distance(matrix + 0.1 * momentum) > 1e-4


def test_no_gradient_no_step() -> None:
    matrix, nothing = orthogonal(8, seed=7), torch.zeros(1, 8, 8, dtype=torch.float64)
    found, momentum = cayley_step(matrix, nothing, nothing, 1.5, 0.9)
    assert torch.equal(found, matrix)
    assert not momentum.any()


def test_the_nearest_orthogonal_matrix_takes_noise_back() -> None:
    matrix = orthogonal(32, seed=8)
    found = nearest_orthogonal(matrix + 1e-6 * orthogonal(32, seed=9))
    assert distance(found) < 1e-13
    torch.testing.assert_close(found, matrix, atol=2e-6, rtol=0)
