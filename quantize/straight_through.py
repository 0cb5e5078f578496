"""The network that rotations are learned on: rotated and rounded, with gradients all the way.

It is `core.model.Llama` over `RotatedWeights`, so what is learned on is what is written later.
Rounding passes gradients straight through (Bengio et al., 2013). A layer's weights are turned when
it is reached and again on the way back, so one layer's are in memory beside the checkpoint's own.

Shape legend: B sequences, T tokens, D hidden, H head_dim, L layers, V vocab.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recomputed

from llama_edge.core.model import FullPrecisionSource, KVCache, Llama, rms_norm
from llama_edge.core.types import ActivationQuantization, Checkpoint, Recipe, Weights
from llama_edge.core.weight_names import EMBEDDING, FINAL_NORM, LM_HEAD
from llama_edge.quantize.rotate import RotationMatrices, apply_rotations

#: By bits, what a group's scale is relative to one that clips nothing: near the least squared error
#: of normal groups of 32, without the search, which would cost more than the network.
CLIP: Final[Mapping[int, float]] = {4: 0.9, 8: 1.0}


class ResidentWeights:
    """`Weights` that are read once and kept, float32, on the device that computes."""

    def __init__(self, weights: Weights, device: torch.device) -> None:
        self._weights = weights
        self._device = device
        self._kept: dict[str, Tensor] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def shape(self, name: str) -> tuple[int, ...]:
        """See `Weights`."""
        return self._weights.shape(name)

    def read(self, name: str) -> Tensor:
        """See `Weights`."""
        if name not in self._kept:
            self._kept[name] = self._weights.read(name).to(self._device)
        return self._kept[name]


def fake_quantize(weight_OI: Tensor, bits: int, group_size: int) -> Tensor:
    """Rounded to nearest and back, per group of inputs; the gradient is that of the identity."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    with torch.no_grad():
        groups = weight_OI.view(weight_OI.shape[0], -1, group_size)
        scale = groups.abs().amax(-1, keepdim=True) * (CLIP[bits] / (high + 0.5))
        scale = scale.clamp(min=torch.finfo(scale.dtype).tiny)
        error = (groups / scale).round_().clamp_(low, high).mul_(scale).sub_(groups)
    rounded: Tensor = weight_OI + error.view_as(weight_OI)
    return rounded


class _Source:
    """`MatrixSource`: rotated weights, fake-quantized; tables in full precision."""

    def __init__(
        self, checkpoint: Checkpoint, rotated: Weights, r1_DD: Tensor, recipe: Recipe
    ) -> None:
        self._weights = checkpoint.weights
        self._rotated = rotated
        self._r1 = r1_DD
        self._recipe = recipe

    def matrix(self, name: str) -> Tensor:
        weight = self._rotated.read(name)
        if not name.startswith("model.layers."):
            return weight
        return fake_quantize(weight, self._recipe.weight_bits, self._recipe.group_size)

    def vector(self, name: str) -> Tensor:
        return self._rotated.read(name)

    def embedding_rows(self, tokens_BT: Tensor) -> Tensor:
        return self._weights.read(EMBEDDING)[tokens_BT] @ self._r1


class _StraightThrough(Llama):
    """The reference, whose rounding of activations passes gradients."""

    def quantize_activation(self, x: Tensor) -> Tensor:
        return x + (super().quantize_activation(x) - x).detach()


class RotationLoss:
    """How far the rotated and rounded network is from the full-precision one.

    Args:
        checkpoint: Not rotated, float32; `weights` lie where the computing is done.
        recipe: Bits and group size.
        r4: As `RotationMatrices.r4`.
    """

    def __init__(self, checkpoint: Checkpoint, recipe: Recipe, r4: tuple[int, int] | None) -> None:
        self._checkpoint = checkpoint
        self._recipe = recipe
        self._r4 = r4

    @torch.no_grad()
    def _full_hidden(self, tokens_BT: Tensor) -> Tensor:
        """The full-precision network's last hidden states (B, T, D)."""
        config = self._checkpoint.config
        full = Llama(config, FullPrecisionSource(config, self._checkpoint.weights))
        with tokens_BT.device:
            return full.hidden(full.embed(tokens_BT), KVCache())

    def __call__(self, r1_DD: Tensor, r2_LHH: Tensor, tokens_BT: Tensor) -> Tensor:
        """Mean over tokens of KL(full || rotated and rounded), nats.

        Args:
            r1_DD: Float64, orthogonal; so is `r2_LHH`. Both get gradients.
            r2_LHH: One per layer.
            tokens_BT: Int64.
        """
        r1 = r1_DD.float()
        matrices = RotationMatrices(r1=r1, r2=list(r2_LHH.float()), r4=self._r4)
        rotated = apply_rotations(self._checkpoint, matrices)
        source = _Source(self._checkpoint, rotated.weights, r1, self._recipe)
        weight_only = self._recipe.activation_bits is None
        activation = (
            ActivationQuantization.NONE if weight_only else ActivationQuantization.INT8_PER_TOKEN
        )
        model = _StraightThrough(rotated.config, source, activation)

        def block(layer: int, x_BTD: Tensor) -> Tensor:
            config = rotated.config
            shape = (len(x_BTD), config.num_key_value_heads, 0, config.head_dim)
            # The tensors that the network makes on its way, such as positions, lie there too. It
            # is said here, not further out: on the way back another thread comes by.
            with x_BTD.device:
                nothing = [torch.empty(shape)] * (layer + 1)
                cache = KVCache(keys=[*nothing], values=[*nothing])
                return model.mlp_block(layer, x_BTD, model.attention_block(layer, x_BTD, cache))

        x_BTD = model.embed(tokens_BT)
        for layer in range(rotated.config.num_hidden_layers):
            x_BTD = recomputed(block, layer, x_BTD, use_reentrant=False)
        # Turned back behind its rounding, the head's input multiplies the table as it was.
        back_BTD = model.head_input(x_BTD) @ r1.T
        rows = zip(back_BTD, self._full_hidden(tokens_BT), strict=True)
        parts = [recomputed(self._divergence, *row, use_reentrant=False) for row in rows]
        return torch.stack(parts).sum() / tokens_BT.numel()

    def _divergence(self, found_TD: Tensor, full_TD: Tensor) -> Tensor:
        """Sum over tokens of KL(full || found), logits of one sequence at a time."""
        config, weights = self._checkpoint.config, self._checkpoint.weights
        norm = weights.read(FINAL_NORM)
        table = weights.read(EMBEDDING if config.tie_word_embeddings else LM_HEAD)
        if not config.tie_word_embeddings:
            found_TD = found_TD * norm
        wanted = F.linear(rms_norm(full_TD, norm, config.rms_norm_eps), table)
        found = F.linear(found_TD, table).log_softmax(-1)
        return F.kl_div(found, wanted.log_softmax(-1), reduction="sum", log_target=True)


def resident(checkpoint: Checkpoint, device: torch.device) -> Checkpoint:
    """The same checkpoint, whose weights are read once and then stay on `device`."""
    return replace(checkpoint, weights=ResidentWeights(checkpoint.weights, device))
