"""GGUF models of architecture `llama`, as llama.cpp's converter writes them."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from llama_edge.checkpoints.base import CheckedWeights, unpermute_heads
from llama_edge.checkpoints.gguf_parts import GgufModel, open_gguf
from llama_edge.checkpoints.gguf_text import read_text
from llama_edge.checkpoints.json_fields import Fields
from llama_edge.checkpoints.names import GGUF_BLOCK_PARTS, GGUF_NAMES
from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.errors import CheckpointError
from llama_edge.core.model_config import LinearRopeScaling, ModelConfig, RopeScaling
from llama_edge.models.rope import inverse_frequencies, llama3_frequency_factors
from llama_edge.models.weight_names import block_weight

ROPE_FACTORS: Final = "rope_freqs.weight"
_OUTPUT: Final = "output.weight"
_EMBEDDING: Final = "token_embd.weight"
#: By `general.type`, what is no model; with the remedy.
_OTHER_FILES: Final = {
    "adapter": "a LoRA adapter and no model; merge it into its base first, with llama.cpp's "
    "llama-export-lora, and give the merged file",
    "imatrix": "an importance matrix and no model; give the model's file",
    "mmproj": "the vision part of a model (mmproj); give the language model's file",
}


def _as_written(fields: Fields, key: str, default: float | None = None) -> float:
    """A float as its author wrote it: 1e-5 is stored as float32 9.99999974e-06."""
    return float(str(np.float32(fields.number(key, default))))


def load_gguf(path: Path, source: str) -> Checkpoint:
    """Open a GGUF file, or all parts of a split one; tensors are dequantized one by one when read.

    Args:
        path: The file, or any part.
        source: How the user named the model.

    Raises:
        CheckpointError: It is damaged, incomplete, lies about itself, or is not a plain Llama.
        TokenizerError: Its tokenizer is of another kind, damaged or of another model.
    """
    file = open_gguf(path)
    metadata = Fields(file.path, file.metadata)
    _require_model(file)
    config = _config(file, metadata)
    weights = CheckedWeights(str(file.path), config, _GgufTensors(file, config))
    return Checkpoint(source=source, config=config, weights=weights, text=read_text(metadata))


def _require_model(file: GgufModel) -> None:
    """The weights of a Llama, and not one of the other things that come as GGUF files."""
    kind = file.metadata.get("general.type", "model")
    if kind != "model":
        what = _OTHER_FILES.get(kind) if isinstance(kind, str) else None
        raise CheckpointError(f"{file.path}: is {what or f'a GGUF file of type {kind!r}'}")
    architecture = file.metadata.get("general.architecture")
    if architecture == "clip":
        raise CheckpointError(
            f"{file.path}: is the vision part of a model (mmproj); give the language model's file"
        )
    if architecture != "llama":
        raise CheckpointError(
            f"{file.path}: has the architecture {architecture!r}, which is not supported as GGUF; "
            "'llama' is. Qwen2.5 and Qwen3 are read from their Hugging Face folders"
        )
    if not file.tensors:
        raise CheckpointError(
            f"{file.path}: holds a vocabulary and no weights (llama.cpp's --vocab-only); give the "
            "model's file"
        )


class _GgufTensors:
    """`StoredTensors` of a GGUF model."""

    def __init__(self, file: GgufModel, config: ModelConfig) -> None:
        self._file = file
        self._config = config
        self._names = {
            canonical_name(name): name
            for name in file.tensors
            if name != ROPE_FACTORS and not (name == _OUTPUT and config.tie_word_embeddings)
        }

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """See `StoredTensors`."""
        return {name: self._file.tensors[stored].shape for name, stored in self._names.items()}

    def load(self, name: str) -> Tensor:
        """See `StoredTensors`."""
        tensor = self._file.read(self._names[name])
        if name.endswith("q_proj.weight"):
            return unpermute_heads(tensor, self._config.num_attention_heads)
        if name.endswith("k_proj.weight"):
            return unpermute_heads(tensor, self._config.num_key_value_heads)
        return tensor


def canonical_name(name: str) -> str:
    """Our name of a GGUF tensor; one that a Llama does not have keeps its own."""
    if name in GGUF_NAMES:
        return GGUF_NAMES[name]
    match name.split("."):
        case ["blk", layer, part, "weight"] if layer.isdecimal() and part in GGUF_BLOCK_PARTS:
            return block_weight(int(layer), GGUF_BLOCK_PARTS[part])
    return name


def _config(file: GgufModel, metadata: Fields) -> ModelConfig:
    heads = metadata.integer("llama.attention.head_count")
    hidden = metadata.integer("llama.embedding_length")
    head_dim = metadata.integer("llama.attention.key_length", hidden // max(heads, 1))
    _refuse_unsupported(metadata, head_dim)
    if _EMBEDDING not in file.tensors:
        raise CheckpointError(f"{file.path}: {_EMBEDDING} is missing")
    config = ModelConfig(
        hidden_size=hidden,
        num_hidden_layers=metadata.integer("llama.block_count"),
        num_attention_heads=heads,
        num_key_value_heads=metadata.integer("llama.attention.head_count_kv", heads),
        head_dim=head_dim,
        intermediate_size=metadata.integer("llama.feed_forward_length"),
        vocab_size=file.tensors[_EMBEDDING].shape[0],
        rms_norm_eps=_as_written(metadata, "llama.attention.layer_norm_rms_epsilon"),
        rope_theta=_as_written(metadata, "llama.rope.freq_base", 10000.0),
        rope_scaling=_linear_scaling(metadata),
        max_position_embeddings=metadata.integer("llama.context_length"),
        tie_word_embeddings=_is_tied(file),
    )
    return _with_rope_scaling(file, metadata, config)


def _refuse_unsupported(metadata: Fields, head_dim: int) -> None:
    """What would change the arithmetic and is not a plain Llama's."""
    metadata.require("llama.expert_count", 0)
    metadata.require("llama.rope.dimension_count", head_dim)
    metadata.require("llama.attention.value_length", head_dim)
    scaling = metadata.values.get("llama.rope.scaling.type", "none")
    if scaling not in ("none", "linear"):
        raise CheckpointError(
            f"{metadata.path}: has RoPE scaling of type {scaling!r}; 'linear' is supported, and "
            "Llama 3's, which GGUF stores as factors"
        )


def _linear_scaling(metadata: Fields) -> LinearRopeScaling | None:
    """By the key of today, or the one that came before it; a factor of 1 or 0 is none."""
    factor = metadata.number(
        "llama.rope.scaling.factor", metadata.number("llama.rope.scale_linear", 1.0)
    )
    is_named = metadata.values.get("llama.rope.scaling.type") == "linear"
    is_old = metadata.values.get("llama.rope.scale_linear") is not None
    if not (is_named or is_old) or factor in (0.0, 1.0):
        return None
    return LinearRopeScaling(factor=factor)


def _is_tied(file: GgufModel) -> bool:
    """No output matrix, or the embedding's very bytes."""
    if _OUTPUT not in file.tensors:
        return True
    same_type = file.tensors[_OUTPUT].type == file.tensors[_EMBEDDING].type
    return same_type and np.array_equal(file.raw(_OUTPUT), file.raw(_EMBEDDING))


def _with_rope_scaling(file: GgufModel, metadata: Fields, config: ModelConfig) -> ModelConfig:
    """Recover Llama 3's RoPE scaling from the factors that the converter stored.

    The factors do not determine it alone; Llama 3's other three parameters never varied, so they
    are taken as published (or from `rope.scaling.original_context_length`) and checked.
    """
    if ROPE_FACTORS not in file.tensors:
        return config
    stored = file.read(ROPE_FACTORS)
    if stored.shape != (config.head_dim // 2,) or not bool((stored >= 1).all()):
        raise CheckpointError(
            f"{file.path}: {ROPE_FACTORS} must hold {config.head_dim // 2} factors of at least 1"
        )
    scaling = RopeScaling(
        factor=float(stored.max()),
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=metadata.integer(
            "llama.rope.scaling.original_context_length", 8192
        ),
    )
    computed = llama3_frequency_factors(inverse_frequencies(config), scaling)
    if not torch.allclose(stored, computed, rtol=1e-4):
        raise CheckpointError(
            f"{file.path}: {ROPE_FACTORS} are not those of Llama 3's scaling by "
            f"{scaling.factor:g} from {scaling.original_max_position_embeddings} positions; "
            "another scaling is not supported"
        )
    return replace(config, rope_scaling=scaling)
