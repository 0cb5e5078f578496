"""The building blocks of a network: leaves of its graph, each with its reference arithmetic.

Weights are on the `meta` device: a block says which it has and of what shape, and who runs or
lowers the graph reads them under the block's own name.

Shape legend: T tokens, D width, N query heads, K key/value heads, H head_dim, S tokens in the
cache, F intermediate.
"""

import math
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from llama_edge.core.hadamard import rotate_product


class Block(nn.Module):
    """A leaf of the graph."""


def _weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, device="meta"), requires_grad=False)


class Embedding(Block):
    """Rows of a table (V, D)."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = _weight(rows, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """int64 (T,) to (T, D)."""
        return self.weight[tokens]


class Linear(Block):
    """A matrix (out_features, in_features), which a recipe quantizes; its bias, if any, is not."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = _weight(out_features, in_features)
        self.bias = _weight(out_features) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(T, in_features) to (T, out_features)."""
        return F.linear(x, self.weight, self.bias)


class Rotation(Block):
    """A rotation (D, D) that no matrix next to it could take up; it stays in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = _weight(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(T, D) to the same."""
        return F.linear(x, self.weight)


class RMSNorm(Block):
    """`x / rms(x) * weight` over the last dimension."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = _weight(width)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(T, D) to the same."""
        return rms_norm(x, self.weight, self.eps)


class HeadNorm(Block):
    """RMSNorm of each head (H,), before RoPE."""

    def __init__(self, heads: int, head_dim: int, eps: float) -> None:
        super().__init__()
        self.weight = _weight(head_dim)
        self.heads = heads
        self.head_dim = head_dim
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(T, heads * H) to the same."""
        return head_norm(x, self.weight, self.eps)


class Rope(Block):
    """Rotary position embedding of every head, its first half against its second."""

    def __init__(self, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = head_dim

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(T, heads * H) to (heads, T, H); cos and sin are (T, H / 2)."""
        return apply_rope(split_heads(x, self.head_dim), cos, sin)


class Attention(Block):
    """Causal grouped-query attention over the cache, to which it adds this call's keys and values.

    The cache is not the model's: who runs the graph keeps it.
    """

    def __init__(self, heads: int, key_value_heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.key_value_heads = key_value_heads
        self.head_dim = head_dim

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """(N, T, H), (K, T, H) and (T, K * H), of a call with an empty cache, to (T, N * H)."""
        return attention(queries, keys, split_heads(values, self.head_dim))


class SwiGLU(Block):
    """`silu(gate) * up`."""

    def forward(self, gate: Tensor, up: Tensor) -> Tensor:
        """Two of (T, F) to one."""
        return F.silu(gate) * up


class Hadamard(Block):
    """SpinQuant's R4, computed online: one Hadamard matrix or two, see `rotate_product`."""

    def __init__(self, orders: tuple[int, ...]) -> None:
        super().__init__()
        self.orders = orders

    def forward(self, x: Tensor) -> Tensor:
        """(T, F) to the same."""
        return rotate_product(x, self.orders)


#: The logit of a token that a head with `output_rows` does not compute: never chosen, and a number
#: that fp16 holds. An infinity would make every divergence NaN.
NOT_COMPUTED: Final = -1e4


class OutputRows(Block):
    """Logits of some tokens, put in their places among all; ExecuTorch's `output_prune_map`."""

    def __init__(self, rows: tuple[int, ...], vocab_size: int) -> None:
        super().__init__()
        self.rows = rows
        self.vocab_size = vocab_size

    def forward(self, x: Tensor) -> Tensor:
        """(T, R) to (T, V)."""
        out = x.new_full((*x.shape[:-1], self.vocab_size), NOT_COMPUTED)
        out[..., list(self.rows)] = x
        return out

    def places(self) -> Tensor:
        """For each token its row, or R, int64 (V,): a gather after one more column."""
        places = torch.full((self.vocab_size,), len(self.rows))
        places[list(self.rows)] = torch.arange(len(self.rows))
        return places


class Add(Block):
    """The residual stream and a branch."""

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        """Two of (T, D) to one."""
        return x + branch


def split_heads(x: Tensor, head_dim: int) -> Tensor:
    """(..., T, heads * H) to (..., heads, T, H)."""
    return x.view(*x.shape[:-1], -1, head_dim).transpose(-3, -2)


def apply_rope(x_NTH: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first half of each head against its second half; cos and sin are (T, H / 2)."""
    first, second = x_NTH.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x / rms(x) * weight` over the last dimension."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def head_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`rms_norm` of each head of (..., heads * H), for a weight (H,)."""
    heads = x.view(*x.shape[:-1], -1, len(weight))
    return rms_norm(heads, weight, eps).flatten(-2)


def attention(q_NTH: Tensor, k_KSH: Tensor, v_KSH: Tensor) -> Tensor:
    """Causal grouped-query attention; the last T of S positions ask. Returns (T, N * H)."""
    heads, tokens, head_dim = q_NTH.shape[-3:]
    groups, length = k_KSH.shape[-3:-1]
    # The query heads of one key head ask together, so that no key or value is copied.
    queries = q_NTH.reshape(*q_NTH.shape[:-3], groups, heads // groups * tokens, head_dim)
    scores = queries @ k_KSH.transpose(-1, -2) / math.sqrt(head_dim)
    if tokens > 1:
        asks = torch.arange(length - tokens, length).repeat(heads // groups)[:, None]
        scores = scores.masked_fill(torch.arange(length)[None, :] > asks, -torch.inf)
    out_NTH = (scores.softmax(-1) @ v_KSH).view(q_NTH.shape)
    return out_NTH.transpose(-3, -2).flatten(-2)
