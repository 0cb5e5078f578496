"""Writes a random model as Meta's int4 releases are on disk; `tests/meta_reference.py` reads it."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from llama_edge.core.model_config import ModelConfig, RopeScaling
from tests.checkpoint_writers import meta_params, meta_tokenizer_path, meta_weights, random_weights

LORA_RANK = 4
LORA_SCALE = 2.0

#: Meta's own code knows one factor for its scaled RoPE, 8.
META_CONFIG = ModelConfig(
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    intermediate_size=256,
    vocab_size=256,
    rms_norm_eps=1e-5,
    rope_theta=500000.0,
    rope_scaling=RopeScaling(
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    ),
    max_position_embeddings=131072,
    tie_word_embeddings=False,
)


def _codes(weight: Tensor, bits: int, group_size: int) -> tuple[Tensor, Tensor]:
    """Symmetric, nearest: int8 codes and float32 scales, as torchao's quantizers store them."""
    groups = weight.float().view(weight.shape[0], -1, group_size)
    scales = groups.abs().amax(-1) / (2 ** (bits - 1) - 0.5)
    codes = (groups / scales[..., None]).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return codes.to(torch.int8).view(weight.shape), scales


def meta_int4_state(
    config: ModelConfig, *, lora: bool = False, zeros: bool = False
) -> dict[str, Tensor]:
    """Every tensor of `consolidated.00.pth`."""
    generator = torch.Generator().manual_seed(1)
    state: dict[str, Tensor] = {}
    for name, weight in meta_weights(config, random_weights(config)).items():
        if weight.dim() == 1:
            state[name] = weight
            continue
        prefix = name.removesuffix(".weight")
        is_table = prefix in ("tok_embeddings", "output")
        group_size = weight.shape[1] if is_table else 32
        state[name], state[f"{prefix}.scales"] = _codes(weight, 8 if is_table else 4, group_size)
        if is_table:
            continue
        if zeros:
            state[f"{prefix}.zeros"] = torch.zeros_like(state[f"{prefix}.scales"])
        if lora:
            rows, columns = weight.shape
            down = torch.randn(LORA_RANK, columns, generator=generator) / columns**0.5
            up = torch.randn(rows, LORA_RANK, generator=generator) / LORA_RANK**0.5
            state[f"{prefix}.adaptor.A.weight"] = (down / 4).bfloat16()
            state[f"{prefix}.adaptor.B.weight"] = up.bfloat16()
    return state


def write_meta_int4(
    folder: Path,
    config: ModelConfig,
    state: Mapping[str, Tensor],
    *,
    spinquant: bool = False,
    lora: bool = False,
) -> Path:
    """The folder, with `params.json` as Meta's loader reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    params = meta_params(config) | {
        "quantization_args": {
            "scheme": "int4_weight_int8_dynamic_activation",
            "group_size": 32,
            "spinquant": spinquant,
        },
    }
    if lora:
        params["lora_args"] = {"rank": LORA_RANK, "scale": LORA_SCALE}
    (folder / "params.json").write_text(json.dumps(params))
    torch.save(dict(state), folder / "consolidated.00.pth")
    (folder / "tokenizer.model").write_bytes(meta_tokenizer_path().read_bytes())
    return folder
