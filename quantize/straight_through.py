"""The reference with gradients, and the network that rotations are learned on.

The latter is the reference over `RotatedWeights`, activations rounded. Weights stay in full
precision, as SpinQuant does it where GPTQ follows: GPTQ makes up for most of what rounding weights
to nearest costs, and rotations learned against that cost left SmolLM2 further from itself (KL 0.121
against 0.115 on the prompts of eight languages). A layer's weights are turned when it is reached
and again on the way back, so one layer's are in memory with the checkpoint's own.

Shape legend: B sequences, T tokens, D hidden, H head_dim, L layers, V vocab.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recomputed

from llama_edge.core.artifact import ActivationQuantization
from llama_edge.core.checkpoint import Checkpoint, Weights
from llama_edge.models.blocks import rms_norm
from llama_edge.models.reference import KVCache, Reference
from llama_edge.models.sources import FullPrecisionSource
from llama_edge.models.weight_names import EMBEDDING, FINAL_NORM, LM_HEAD
from llama_edge.quantize.rotate import RotationMatrices, apply_rotations


class ResidentWeights:
    """`Weights` that are read once and kept on the device that computes.

    They are kept in bfloat16 where that holds them exactly, as it does published Llamas: half the
    memory, and the same float32 numbers each time.
    """

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
            weight = self._weights.read(name)
            half = weight.bfloat16()
            exact = torch.equal(half.float(), weight)
            self._kept[name] = (half if exact else weight).to(self._device)
        return self._kept[name].float()


class _Source:
    """`MatrixSource` of the rotated weights, whose embedding is turned row by row."""

    def __init__(self, checkpoint: Checkpoint, rotated: Weights, r1_DD: Tensor) -> None:
        self._weights = checkpoint.weights
        self._rotated = rotated
        self._r1 = r1_DD

    def matrix(self, name: str) -> Tensor:
        return self._rotated.read(name)

    def vector(self, name: str) -> Tensor:
        return self._rotated.read(name)

    def embedding_rows(self, tokens_BT: Tensor) -> Tensor:
        return self._weights.read(EMBEDDING)[tokens_BT] @ self._r1


def straight_through(x: Tensor, rounded: Tensor) -> Tensor:
    """The value of `rounded`, with gradients as if it was x (Bengio et al., 2013)."""
    return x + (rounded - x).detach()


class StraightThrough(Reference):
    """The reference, whose rounding of activations passes gradients."""

    def quantize_activation(self, x: Tensor) -> Tensor:
        """See `Reference`."""
        return straight_through(x, super().quantize_activation(x))

    def blocks(self, x_BTD: Tensor) -> Tensor:
        """All blocks; each is computed again on the way back, so that only its input is kept."""
        for layer in range(self.config.num_hidden_layers):
            x_BTD = recomputed(self.block, layer, x_BTD, use_reentrant=False)
        return x_BTD

    def block(self, layer: int, x_BTD: Tensor) -> Tensor:
        """One block over whole sequences."""
        shape = (len(x_BTD), self.config.num_key_value_heads, 0, self.config.head_dim)
        # The tensors that the network makes on its way, such as positions, are there too. It is
        # said here, not further out: on the way back another thread comes by.
        with x_BTD.device:
            nothing = [torch.empty(shape)] * (layer + 1)
            cache = KVCache(keys=[*nothing], values=[*nothing])
            return self.mlp_block(layer, x_BTD, self.attention_block(layer, x_BTD, cache))


def divergence(found_TV: Tensor, wanted_TV: Tensor) -> Tensor:
    """Sum over tokens of KL(wanted || found), nats, of logits."""
    return F.kl_div(
        found_TV.log_softmax(-1), wanted_TV.log_softmax(-1), reduction="sum", log_target=True
    )


class RotationLoss:
    """How far the rotated network with int8 activations is from the full-precision one.

    Args:
        checkpoint: Not rotated, float32; `weights` are where the computing is done.
        r4: As `RotationMatrices.r4`.
        activation: How the linears' inputs are rounded.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        r4: tuple[int, ...] | None,
        activation: ActivationQuantization = ActivationQuantization.INT8_PER_TOKEN,
    ) -> None:
        self._checkpoint = checkpoint
        self._r4 = r4
        self._activation = activation

    @torch.no_grad()
    def _full_hidden(self, tokens_BT: Tensor) -> Tensor:
        """The full-precision network's last hidden states (B, T, D)."""
        config = self._checkpoint.config
        full = Reference(config, FullPrecisionSource(config, self._checkpoint.weights))
        with tokens_BT.device:
            return full.hidden(full.embed(tokens_BT), KVCache())

    def __call__(self, r1_DD: Tensor, r2_LHH: Tensor, tokens_BT: Tensor) -> Tensor:
        """Mean over tokens of KL(full || rotated, activations rounded), nats.

        Args:
            r1_DD: Float64, orthogonal; so is `r2_LHH`. Both get gradients, where they are.
            r2_LHH: One per layer.
            tokens_BT: Int64, on the device of the weights.
        """
        device = tokens_BT.device
        r1 = r1_DD.float().to(device)
        matrices = RotationMatrices(r1=r1, r2=list(r2_LHH.float().to(device)), r4=self._r4)
        rotated = apply_rotations(self._checkpoint, matrices)
        source = _Source(self._checkpoint, rotated.weights, r1)
        model = StraightThrough(rotated.config, source, self._activation)
        x_BTD = model.blocks(model.embed(tokens_BT))
        # Turned back after its rounding, the head's input multiplies the table as it was.
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
        return divergence(F.linear(found_TD, table), wanted)


def resident(checkpoint: Checkpoint, device: torch.device) -> Checkpoint:
    """The same checkpoint, whose weights are read once and then stay on `device`."""
    return replace(checkpoint, weights=ResidentWeights(checkpoint.weights, device))
