"""A tiny random Llama, and the embedded real model, quantized once per test session."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from llama_edge.core.model_config import ModelConfig, RopeScaling
from llama_edge.core.types import TextAssets
from llama_edge.core.weight_names import weight_shapes
from torch import Tensor

#: Three query heads a key/value head, llama3 rope scaling that bites within a short context.
DEBUG_CONFIG = ModelConfig(
    hidden_size=96,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=16,
    intermediate_size=160,
    vocab_size=256,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    rope_scaling=RopeScaling(
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=64,
    ),
    max_position_embeddings=512,
    tie_word_embeddings=True,
)


class MemoryWeights:
    """`Weights` that were made up: seeded, normal, norms around one."""

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.tensors: dict[str, Tensor] = {}
        for name, shape in weight_shapes(config).items():
            noise = torch.randn(shape, generator=generator)
            self.tensors[name] = 1 + 0.1 * noise if len(shape) == 1 else noise / shape[1] ** 0.5

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

    def read(self, name: str) -> Tensor:
        return self.tensors[name]
