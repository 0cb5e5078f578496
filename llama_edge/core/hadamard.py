"""Hadamard matrices of every order that a Llama's widths need, normalized to be orthogonal.

Sylvester's construction for powers of two, so that these are the Walsh-Hadamard transform that
published checkpoints expect; Paley's two constructions (R. Paley, "On orthogonal matrices", 1933);
and Kronecker products of these: 576 = 16 x 36, 1536 = 32 x 48, 3072 = 256 x 12.
"""

import math
from functools import cache

import torch
from torch import Tensor

from llama_edge.core.errors import ConfigError


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, math.isqrt(number) + 1))


def _jacobsthal(prime: int) -> Tensor:
    """(q, q) of the quadratic character of row minus column: 0, 1 or -1."""
    squares = {number * number % prime for number in range(1, prime)}
    character = torch.tensor([0] + [1 if n in squares else -1 for n in range(1, prime)])
    index = torch.arange(prime)
    return character[(index[:, None] - index[None, :]) % prime].float()


def _paley(order: int) -> Tensor | None:
    """Paley's first construction (order q + 1, q = 3 mod 4) or second (2q + 2, q = 1 mod 4)."""
    first, second = order - 1, order // 2 - 1
    if _is_prime(first) and first % 4 == 3:
        core = torch.zeros(order, order)
        core[0, 1:], core[1:, 0] = 1, -1
        core[1:, 1:] = _jacobsthal(first)
        return core + torch.eye(order)
    if order % 4 == 0 and _is_prime(second) and second % 4 == 1:
        core = torch.zeros(second + 1, second + 1)
        core[0, 1:], core[1:, 0] = 1, 1
        core[1:, 1:] = _jacobsthal(second)
        signs = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
        diagonal = torch.tensor([[1.0, -1.0], [-1.0, -1.0]])
        return torch.kron(core, signs) + torch.kron(torch.eye(second + 1), diagonal)
    return None


@cache
def _signs(order: int) -> Tensor | None:
    """A matrix of +1 and -1 with orthogonal rows, or None where none is known here."""
    # It is kept for all later calls, whatever device the first one's network is computed on.
    with torch.device("cpu"):
        if order in (1, 2):
            return torch.tensor([[1.0, 1.0], [1.0, -1.0]])[:order, :order]
        found = None if order.bit_count() == 1 else _paley(order)
        if found is None and order % 2 == 0:
            half = _signs(order // 2)
            found = None if half is None else torch.kron(_known(2), half)
        return found


def _known(order: int) -> Tensor:
    matrix = _signs(order)
    assert matrix is not None
    return matrix


def has_hadamard(order: int) -> bool:
    """Whether `hadamard(order)` exists."""
    return order >= 1 and _signs(order) is not None


def hadamard(order: int) -> Tensor:
    """An orthogonal float32 (n, n) matrix whose entries are all +-1 / sqrt(n).

    Raises:
        ConfigError: No construction here gives this order.
    """
    matrix = _signs(order)
    if matrix is None:
        raise ConfigError(
            f"no Hadamard matrix of order {order} is known here; this width cannot be rotated: "
            "choose a recipe without rotations"
        )
    return matrix * _scale(order)


def _scale(order: int) -> Tensor:
    """Of the entries +-1 of an orthogonal matrix, float32."""
    return torch.ones((), device="cpu") / math.sqrt(order)


def times_hadamard(x: Tensor) -> Tensor:
    """`x @ hadamard(n)` over the last axis, by two small products; there is such a matrix."""
    order = x.shape[-1]
    first, last = _kronecker_orders(order)
    turned = x.reshape(*x.shape[:-1], first, last) @ _known(last).to(x)
    return (_known(first).T.to(x) @ turned).view(x.shape).mul_(_scale(order).to(x))


def transposed_times(x: Tensor) -> Tensor:
    """`hadamard(n).T @ x` of a matrix (n, columns), likewise."""
    order = len(x)
    first, last = _kronecker_orders(order)
    turned = _known(last).T.to(x) @ x.reshape(first, last, -1)
    return (_known(first).T.to(x) @ turned.view(first, -1)).view(x.shape).mul_(_scale(order).to(x))


@cache
def _kronecker_orders(order: int) -> tuple[int, int]:
    """Orders (a, b) of `kron(hadamard(a), hadamard(b))`, which is `hadamard(order)`."""
    if order.bit_count() == 1:
        first = 1 << (order.bit_length() - 1) // 2
        return first, order // first
    last = order
    while _paley(last) is None:
        last //= 2
    return order // last, last


def hadamard_factors(width: int) -> tuple[int, int]:
    """The split of `width` into two orders, both with a Hadamard matrix, nearest to square.

    A rotation by their Kronecker product is two small matrix products.

    Raises:
        ConfigError: There is no such split.
    """
    for small in range(math.isqrt(width), 0, -1):
        if width % small == 0 and has_hadamard(small) and has_hadamard(width // small):
            return small, width // small
    raise ConfigError(
        f"width {width} is no product of two Hadamard orders; choose a recipe without rotations"
    )


def r4_orders(width: int, block: int | None) -> tuple[int, ...]:
    """The orders of R4's Hadamard matrices, as `rotate_product` takes them.

    Args:
        width: What is rotated: the intermediate size.
        block: How many neighbours are rotated among themselves; None: all of them.

    Raises:
        ConfigError: The block does not divide the width, or there are no such Hadamard matrices.
    """
    if block is None:
        return hadamard_factors(width)
    if width % block or not has_hadamard(block):
        raise ConfigError(
            f"r4_block is {block}; the order of a Hadamard matrix that divides the width {width} "
            "is needed, such as 16"
        )
    return (block,)


def rotate_product(x: Tensor, orders: tuple[int, ...]) -> Tensor:
    """R4 of the last axis, by one Hadamard matrix or two.

    Orders (b,) rotate each run of b neighbours: a block-diagonal matrix, one small product. Orders
    (a, b) rotate a * b values together: as an (a, b) matrix X they become the transpose of
    `Ha @ X @ Hb.T`. The transpose saves every backend one: two small products around a transpose.
    """
    *others, last = orders
    turned = x.reshape(*x.shape[:-1], -1, last) @ hadamard(last).T.to(x)
    for order in others:
        turned = turned.transpose(-1, -2) @ hadamard(order).T.to(x)
    return turned.reshape(x.shape)


def walsh_hadamard_order(factors: tuple[int, int]) -> Tensor:
    """Which input goes where, int64 (a * b,), so that R4 is the plain Walsh-Hadamard transform.

    With a and b powers of two, `rotate_product(x[order], (a, b))` is `hadamard(a * b) @ x`: turning
    the bits of an input's place undoes what `rotate_product`'s transpose does to the output's.
    """
    first, second = factors
    return torch.arange(first * second).view(second, first).T.reshape(-1)
