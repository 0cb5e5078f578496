import importlib

import pytest
import scipy
import torch

from llama_edge.core.errors import ConfigError
from llama_edge.core.hadamard import (
    _signs,
    hadamard,
    hadamard_factors,
    has_hadamard,
    r4_orders,
    rotate_product,
    times_hadamard,
    transposed_times,
    walsh_hadamard_order,
)


@pytest.mark.parametrize("order", [1, 2, 4, 12, 20, 24, 28, 36, 48, 64, 576, 1536, 2048, 3072])
def test_rows_are_orthonormal_and_flat(order: int) -> None:
    matrix = hadamard(order)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(order), atol=3e-6, rtol=0)
    torch.testing.assert_close(matrix.abs(), torch.full((order, order), order**-0.5))


@pytest.mark.parametrize("order", [1, 2, 12, 20, 64, 576, 960, 1024, 2048, 3072])
def test_products_are_those_of_the_whole_matrix(order: int) -> None:
    x = torch.randn(7, order, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix = hadamard(order).double()
    torch.testing.assert_close(times_hadamard(x), x @ matrix, atol=1e-13, rtol=0)
    torch.testing.assert_close(transposed_times(x.T), matrix.T @ x.T, atol=1e-13, rtol=0)


@pytest.mark.parametrize("order", [4, 8, 32, 128])
def test_a_power_of_two_is_the_walsh_hadamard_transform(order: int) -> None:
    """Paley has matrices of orders 4, 8, 32 and 128 too, and they are others."""
    signs = [
        [(-1.0) ** (row & column).bit_count() for column in range(order)] for row in range(order)
    ]
    torch.testing.assert_close(hadamard(order), torch.tensor(signs) / order**0.5)


def test_a_matrix_stays_on_the_cpu_whatever_device_asks_for_it_first() -> None:
    """It is kept, and the next one to ask may compute elsewhere."""
    _signs.cache_clear()
    with torch.device("meta"):
        rotate_product(torch.empty(2, 1536), (32, 48))
    matrix = hadamard(96)
    assert matrix.device.type == hadamard(48).device.type == "cpu"
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(96), atol=1e-6, rtol=0)


@pytest.mark.parametrize("order", [3, 6, 18, 34, 92])
def test_an_order_without_a_construction(order: int) -> None:
    assert not has_hadamard(order)
    with pytest.raises(ConfigError, match=f"order {order}"):
        hadamard(order)


@pytest.mark.parametrize(
    ("width", "factors"),
    [(1536, (32, 48)), (8192, (64, 128)), (160, (8, 20)), (576, (24, 24)), (12, (1, 12))],
)
def test_factors_are_as_square_as_can_be(width: int, factors: tuple[int, int]) -> None:
    assert hadamard_factors(width) == factors


def test_a_width_without_factors() -> None:
    with pytest.raises(ConfigError, match="width 33"):
        hadamard_factors(33)


def test_rotate_product_is_one_orthogonal_matrix() -> None:
    matrix = rotate_product(torch.eye(96), (8, 12))
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(96), atol=1e-5, rtol=0)
    x = torch.randn(2, 3, 96, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rotate_product(x, (8, 12)), x @ matrix, atol=1e-5, rtol=0)


def test_rotate_product_by_hand() -> None:
    x = torch.tensor([1.0, 2.0, 3.0, 4.0])  # [[1, 2], [3, 4]]; Ha X Hb.T = [[5, -1], [-2, 0]]
    torch.testing.assert_close(rotate_product(x, (2, 2)), torch.tensor([5.0, -2.0, -1.0, 0.0]))


@pytest.mark.parametrize(("width", "block"), [(64, 16), (160, 32), (192, 64), (16, 16), (6, 2)])
def test_one_order_is_a_block_diagonal_matrix(width: int, block: int) -> None:
    ours = rotate_product(torch.eye(width, dtype=torch.float64), (block,))
    blocks = [scipy.linalg.hadamard(block) / block**0.5] * (width // block)
    theirs = torch.from_numpy(scipy.linalg.block_diag(*blocks))
    torch.testing.assert_close(ours.T, theirs, atol=1e-7, rtol=0)


def test_one_order_rotates_by_the_matrixs_rows() -> None:
    """Paley's matrix of order 12 is not symmetric, so a forgotten transpose shows."""
    matrix, x = hadamard(12), torch.randn(3, 36, generator=torch.Generator().manual_seed(0))
    theirs = x @ torch.from_numpy(scipy.linalg.block_diag(matrix, matrix, matrix)).T
    torch.testing.assert_close(rotate_product(x, (12,)), theirs, atol=1e-5, rtol=0)
    assert not torch.allclose(matrix, matrix.T)


def test_orders_of_r4() -> None:
    assert r4_orders(8192, None) == hadamard_factors(8192)
    assert r4_orders(8192, 16) == (16,)
    assert r4_orders(160, 20) == (20,)


@pytest.mark.parametrize(("width", "block"), [(160, 64), (160, 10), (96, 3)])
def test_a_block_that_does_not_fit_the_width(width: int, block: int) -> None:
    message = rf"r4_block is {block}; .* divides the width {width} is needed, such as 16"
    with pytest.raises(ConfigError, match=message):
        r4_orders(width, block)


@pytest.mark.executorch
@pytest.mark.parametrize("factors", [(1, 2), (2, 4), (16, 16), (8, 32), (64, 128)])
def test_behind_this_order_r4_is_the_transform_of_executorch(factors: tuple[int, int]) -> None:
    """ExecuTorch runs Meta's SpinQuant checkpoints with this operator before `down_proj`."""
    importlib.import_module("executorch.extension.llm.custom_ops.custom_ops")
    width = factors[0] * factors[1]
    x = torch.randn(3, width, generator=torch.Generator().manual_seed(0))
    theirs = torch.ops.llama.fast_hadamard_transform(x)
    ours = rotate_product(x[:, walsh_hadamard_order(factors)], factors)
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)
    if width > 2:
        assert not torch.allclose(rotate_product(x, factors), theirs, atol=0.1)
