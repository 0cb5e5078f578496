"""RoPE's angles: what every backend's tables hold.

Shape legend: H head_dim.
"""

import math

import torch
from torch import Tensor

from llama_edge.core.model_config import LinearRopeScaling, ModelConfig, RopeScaling


def inverse_frequencies(config: ModelConfig) -> Tensor:
    """RoPE's angular frequencies, float32 (H / 2,), after the config's scaling.

    Source: `_compute_llama3_parameters` and `_compute_linear_scaling_rope_parameters` in
    transformers' `modeling_rope_utils.py`.
    """
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    frequencies = 1.0 / (config.rope_theta**exponents)
    if config.rope_scaling is None:
        return frequencies
    if isinstance(config.rope_scaling, LinearRopeScaling):
        return frequencies / config.rope_scaling.factor
    return frequencies / llama3_frequency_factors(frequencies, config.rope_scaling)


def llama3_frequency_factors(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """What Llama 3 divides each frequency by: 1 for short waves, `factor` for long ones."""
    wavelengths = 2 * math.pi / frequencies
    context = scaling.original_max_position_embeddings
    smooth = (context / wavelengths - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    smooth = smooth.clamp(0.0, 1.0)
    return 1.0 / ((1.0 - smooth) / scaling.factor + smooth)


def rope_tables(config: ModelConfig, start: int, length: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of positions start .. start + length - 1, float32 (length, H / 2)."""
    positions = torch.arange(start, start + length).float()
    angles = torch.outer(positions, inverse_frequencies(config))
    return angles.cos(), angles.sin()
