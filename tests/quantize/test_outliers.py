"""The real model with outlier channels planted, its function unchanged: what rotations are for.

Real Llama activations have a few channels far larger than the rest (QuaRot, section 1), and one
int8 step for a whole token leaves little to the others.
"""

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from llama_edge.core.artifact import ActivationQuantization
from llama_edge.core.checkpoint import Checkpoint, Weights
from llama_edge.models.reference import Reference
from llama_edge.models.sources import CachedSource, FullPrecisionSource
from llama_edge.quantize import W4A8_HADAMARD
from llama_edge.quantize.rotate import rotate
from llama_edge.text.tokenizer import Tokenizer

EVERY, FACTOR = 24, 40.0
TEXT = (
    "The pump station on the eastern bank was built in 1931 and has been repaired three times. "
    "Its two motors lift river water into a basin from which the town draws what it needs in dry "
    "summers. When the level falls below two metres, an alarm sounds in the office."
)

#: Whose outputs grow, and whose inputs take it back.
PLANTED = {
    "input_layernorm": ("q_proj", "k_proj", "v_proj"),
    "post_attention_layernorm": ("gate_proj", "up_proj"),
    "up_proj": ("down_proj",),
}


class OutlierWeights:
    """`Weights` of the same network, some channels of which are `FACTOR` times as large."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._weights.shape(name)

    def read(self, name: str) -> Tensor:
        tensor = self._weights.read(name).clone()
        part = name.split(".")[-2]
        if part in PLANTED:
            tensor[::EVERY] *= FACTOR
        if any(part in readers for readers in PLANTED.values()):
            tensor[:, ::EVERY] /= FACTOR
        return tensor


def logits(checkpoint: Checkpoint, tokens: Tensor, activation: ActivationQuantization) -> Tensor:
    source = CachedSource(FullPrecisionSource(checkpoint.config, checkpoint.weights))
    return Reference(checkpoint.config, source, activation).logits(tokens).double().log_softmax(-1)


@pytest.mark.slow
@torch.no_grad()
def test_outliers_cost_int8_activations_many_times_what_they_do_behind_rotations(
    smollm2: Checkpoint,
) -> None:
    planted = dataclasses.replace(smollm2, weights=OutlierWeights(smollm2.weights))
    turned = rotate(planted, W4A8_HADAMARD)
    tokens = torch.tensor(Tokenizer(smollm2.text).encode(TEXT))
    wanted = logits(smollm2, tokens, ActivationQuantization.NONE)

    def kl(checkpoint: Checkpoint, activation: ActivationQuantization) -> float:
        found = logits(checkpoint, tokens, activation)
        return float((wanted.exp() * (wanted - found)).sum(-1).mean())

    assert kl(planted, ActivationQuantization.NONE) < 1e-6, "the function is unchanged"
    assert kl(turned, ActivationQuantization.NONE) < 1e-6
    rotated = kl(turned, ActivationQuantization.INT8_PER_TOKEN)
    plain = kl(planted, ActivationQuantization.INT8_PER_TOKEN)
    assert rotated < 0.02, "rotations leave no outliers"
    assert plain > 20 * rotated
