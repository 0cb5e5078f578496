"""Rotations merged into the weights: the network computes the same, its activations lose outliers.

SpinQuant (Liu et al., 2024, section 3) and QuaRot (Ashkboos et al., 2024, section 4): norm weights
are folded into the linears after them, R1 (D, D) turns the residual stream, R2 (H, H) each head
between v_proj and o_proj, R4 the input of down_proj while the network runs. Shape suffixes: O out,
I in, D hidden, F intermediate, H head_dim.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from llama_edge.core.checkpoint import Checkpoint, Weights
from llama_edge.core.hadamard import (
    hadamard,
    r4_orders,
    rotate_product,
    times_hadamard,
    transposed_times,
)
from llama_edge.core.model_config import ModelConfig
from llama_edge.core.recipe import Recipe, Rotation
from llama_edge.models.blocks import (
    Add,
    Attention,
    Embedding,
    HeadNorm,
    RMSNorm,
    SwiGLU,
)
from llama_edge.models.network import VALUES, Node, network_of
from llama_edge.models.weight_names import FINAL_NORM, HEAD_ROTATION

#: Rows that are turned together, so that their float64 stays in the caches: four times as fast.
_ROWS: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class RotationMatrices:
    """R1 (D, D), R2 per layer (H, H), and the orders of R4's Hadamard matrices, or None."""

    r1: Tensor
    r2: Sequence[Tensor]
    r4: tuple[int, ...] | None
    #: (D,) where R1 is `hadamard(D)` whose rows have these signs: it is multiplied faster
    r1_signs: Tensor | None = None

    def turned(self, weight_OD: Tensor) -> Tensor:
        """`weight @ R1`."""
        if self.r1_signs is None:
            return weight_OD @ self.r1
        return times_hadamard(weight_OD * self.r1_signs)

    def turned_back(self, weight_DI: Tensor) -> Tensor:
        """Of a matrix that writes to the residual stream: `R1^T @ weight`."""
        if self.r1_signs is None:
            return self.r1.T @ weight_DI
        return transposed_times(weight_DI * self.r1_signs[:, None])


def tie_breaker(width: int) -> Tensor:
    """Weights (D,) within 2 % of one for the first norm, taken back by the linears after it.

    What comes first is a row of the int8 table: whole numbers times one scale. Under a uniform norm
    many of them lie exactly on a rounding boundary of the int8 activations, where the last bit of
    a runtime's norm decides, and every runtime decides otherwise. Uneven weights leave no ties.
    """
    # On the CPU whatever device is computing: Apple's GPU has no float64.
    steps = torch.arange(width, dtype=torch.float64, device="cpu") * ((5**0.5 - 1) / 2)
    return (0.98 + 0.04 * steps.frac()).float()


def _random_signs(order: int, generator: torch.Generator) -> Tensor:
    """Of the rows of a Hadamard matrix (QuaRot, section 3), float64."""
    return (torch.randint(0, 2, (order,), generator=generator) * 2 - 1).double()


def check_rotations(config: ModelConfig, recipe: Recipe) -> None:
    """Fail before any work where `choose_rotations` would.

    Raises:
        ConfigError: A width has no Hadamard matrix.
    """
    if Rotation.R1 in recipe.rotations:
        hadamard(config.hidden_size)
    if Rotation.R2 in recipe.rotations:
        hadamard(config.head_dim)
    _r4(config, recipe)


def _r4(config: ModelConfig, recipe: Recipe) -> tuple[int, ...] | None:
    if Rotation.R4 not in recipe.rotations:
        return None
    return r4_orders(config.intermediate_size, recipe.r4_block)


def choose_rotations(config: ModelConfig, recipe: Recipe) -> RotationMatrices:
    """The recipe's rotations: seeded Hadamard matrices, and the identity where it has none.

    Raises:
        ConfigError: A width has no Hadamard matrix.
    """
    generator = torch.Generator().manual_seed(recipe.seed)

    def signs(name: Rotation, order: int) -> Tensor | None:
        return _random_signs(order, generator) if name in recipe.rotations else None

    def matrix(signs: Tensor | None, order: int) -> Tensor:
        if signs is None:
            return torch.eye(order, dtype=torch.float64)
        return hadamard(order).double() * signs[:, None]

    hidden, head = config.hidden_size, config.head_dim
    r1_signs = signs(Rotation.R1, hidden)
    return RotationMatrices(
        r1=matrix(r1_signs, hidden),
        r2=[matrix(signs(Rotation.R2, head), head) for _ in range(config.num_hidden_layers)],
        r4=_r4(config, recipe),
        r1_signs=r1_signs,
    )


class RotatedWeights:
    """`Weights` of the rotated network, each turned when it is read.

    A tied table stays tied: rotated rows `E R1` serve the embedding as they are and the head
    through `lm_head_rotation`, R1^T diag(final norm) R1, which turns its input.
    """

    def __init__(self, config: ModelConfig, weights: Weights, matrices: RotationMatrices) -> None:
        self._config = config
        self._weights = weights
        self._matrices = matrices
        #: before rotation: no online Hadamard matrices, no rotation before the head
        self._network = network_of(config)
        self._first_norm = next(self._network.of_kind(RMSNorm))

    def __iter__(self) -> Iterator[str]:
        yield from self._weights
        if self._config.tie_word_embeddings:
            yield HEAD_ROTATION

    def shape(self, name: str) -> tuple[int, ...]:
        """See `Weights`."""
        if name == HEAD_ROTATION:
            return self._config.hidden_size, self._config.hidden_size
        return self._weights.shape(name)

    def read(self, name: str) -> Tensor:
        """See `Weights`; float64 matrices give products whose rounding stays that of float32."""
        if name == HEAD_ROTATION:
            norm = self._weights.read(FINAL_NORM).to(self._matrices.r1)
            return self._matrices.turned_back(norm[:, None] * self._matrices.r1).float()
        weight = self._weights.read(name)
        node = self._network.by_name[name.rpartition(".")[0]]
        if isinstance(node.block, RMSNorm):
            is_first = node is self._first_norm
            return tie_breaker(len(weight)).to(weight) if is_first else torch.ones_like(weight)
        if isinstance(node.block, HeadNorm):
            return weight
        if name == node.bias:
            column = weight.to(self._matrices.r1)[:, None]
            return self._rotate_outputs(node, column)[:, 0].float()
        if self._matrices.r1_signs is None or self._mixes_rows(node):
            return self._rotate(name, weight.to(self._matrices.r1)).float()
        turned = torch.empty_like(weight, dtype=torch.float32)
        for start in range(0, len(weight), _ROWS):
            rows = slice(start, start + _ROWS)
            turned[rows] = self._rotate(name, weight[rows].to(self._matrices.r1))
        return turned

    def _mixes_rows(self, node: Node) -> bool:
        """Whether what the matrix writes is turned."""
        return any(
            isinstance(user.block, Add)
            or (isinstance(user.block, Attention) and user.inputs[VALUES] == node.name)
            for user in self._network.users(node.name)
        ) and not isinstance(node.block, Embedding)

    def _fold(self, weight_OD: Tensor, norm: Node) -> Tensor:
        """Of a matrix after a norm: W diag(norm) R1."""
        folded = self._matrices.turned(weight_OD * self._weights.read(norm.weight).to(weight_OD))
        if norm is self._first_norm:
            folded = folded / tie_breaker(folded.shape[1]).to(folded)
        return folded

    def _rotate(self, name: str, weight: Tensor) -> Tensor:
        """What a matrix reads and writes, by the graph, says which sides of it turn."""
        node = self._network.by_name[name.removesuffix(".weight")]
        if isinstance(node.block, Embedding):
            return self._matrices.turned(weight)
        before, users = self._network.by_name[node.inputs[0]], self._network.users(node.name)
        if isinstance(before.block, RMSNorm):
            weight = self._fold(weight, before)
        if isinstance(before.block, Attention):
            weight = self._turn_heads_in(weight, self._r2(before))
        if any(isinstance(user.block, Add) for user in users):
            weight = self._matrices.turned_back(weight)
        if isinstance(before.block, SwiGLU) and self._matrices.r4 is not None:
            weight = rotate_product(weight, self._matrices.r4)
        return self._rotate_values(node, weight)

    def _rotate_outputs(self, node: Node, weight_OI: Tensor) -> Tensor:
        """The rows alone: of a bias, which is one column."""
        if any(isinstance(user.block, Add) for user in self._network.users(node.name)):
            weight_OI = self._matrices.turned_back(weight_OI)
        return self._rotate_values(node, weight_OI)

    def _rotate_values(self, node: Node, weight_OI: Tensor) -> Tensor:
        """R2 of what attention takes for values."""
        for user in self._network.users(node.name):
            if isinstance(user.block, Attention) and user.inputs[VALUES] == node.name:
                heads = weight_OI.view(-1, self._config.head_dim, weight_OI.shape[1])
                weight_OI = (self._r2(user).T @ heads).view_as(weight_OI)
        return weight_OI

    def _r2(self, attention: Node) -> Tensor:
        assert attention.layer is not None
        return self._matrices.r2[attention.layer]

    def _turn_heads_in(self, weight_OI: Tensor, r2_HH: Tensor) -> Tensor:
        heads = weight_OI.view(weight_OI.shape[0], -1, self._config.head_dim)
        return (heads @ r2_HH).reshape(weight_OI.shape)


def apply_rotations(checkpoint: Checkpoint, matrices: RotationMatrices) -> Checkpoint:
    """The same network with these rotations merged in; nothing is read yet."""
    config = replace(
        checkpoint.config,
        down_proj_rotation=matrices.r4,
        head_rotation=checkpoint.config.tie_word_embeddings,
    )
    return replace(
        checkpoint,
        config=config,
        weights=RotatedWeights(checkpoint.config, checkpoint.weights, matrices),
    )


def rotate(checkpoint: Checkpoint, recipe: Recipe) -> Checkpoint:
    """The same network with the recipe's Hadamard rotations merged in; nothing is read yet.

    Raises:
        ConfigError: A width has no Hadamard matrix.
    """
    return apply_rotations(checkpoint, choose_rotations(checkpoint.config, recipe))
