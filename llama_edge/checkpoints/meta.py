"""Meta's folders: params.json, consolidated.NN.pth and tokenizer.model, as `llama download` gives.

Layout of the weights: Q and K rows are interleaved pairs, and with several files each holds a
model-parallel slice. Source: `llama3/model.py` in llama_models.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from llama_edge.checkpoints.base import CheckedWeights, unpermute_heads
from llama_edge.checkpoints.json_fields import Fields, read_fields
from llama_edge.checkpoints.meta_file import FLOATS, Shard, shard_paths
from llama_edge.checkpoints.meta_quantized import MetaCodes, QuantizedMetaTensors, read_scheme
from llama_edge.checkpoints.meta_text import read_meta_text
from llama_edge.checkpoints.recognise import PARAMS_FILE
from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.errors import CheckpointError
from llama_edge.core.hadamard import hadamard_factors
from llama_edge.core.model_config import ModelConfig, RopeScaling
from llama_edge.models.weight_names import EMBEDDING, LM_HEAD

TOKENIZER_FILE: Final = "tokenizer.model"

#: params.json says only `use_scaled_rope`; the factor is known by the model's (dim, n_layers).
#: Source: `rope_scaling` in each model's config.json at huggingface.co/meta-llama. (Meta's own
#: `apply_scaling` has 8 for all, which is right for 3.1 and 3.3 and not for 3.2.)
ROPE_FACTORS: Final[Mapping[tuple[int, int], float]] = {
    (2048, 16): 32.0,  # Llama 3.2 1B
    (3072, 28): 32.0,  # Llama 3.2 3B
    (4096, 32): 8.0,  # Llama 3.1 8B
    (8192, 80): 8.0,  # Llama 3.1 and 3.3 70B
    (16384, 126): 8.0,  # Llama 3.1 405B
}
#: params.json may say it itself; the name is that of llama_models' Llama 4 arguments.
ROPE_FACTOR_KEY: Final = "rope_scaling_factor"
_ORIGINAL_CONTEXT: Final = 8192
_SCALED_CONTEXT: Final = 131072

#: Matrices whose model-parallel slices are side by side; all others are one below the other.
_ROW_PARALLEL: Final = ("o_proj.weight", "down_proj.weight")


def load_meta(folder: Path, source: str) -> Checkpoint:
    """Open a folder as Meta distributes it.

    Raises:
        CheckpointError: It is damaged, incomplete, hostile or not a plain Llama 3.
        ConfigError: Its sizes contradict each other.
        TokenizerError: Its tokenizer is damaged or of another kind.
    """
    path = folder / PARAMS_FILE
    fields = read_fields(path)
    for key in ("vision_model", "moe_args"):
        fields.require(key)
    if fields.values.get("quantization_args") is not None:
        return _load_quantized(folder, source, fields)
    fields.require("lora_args")
    stored = _MetaTensors(folder, [Shard(path) for path in shard_paths(folder)], fields)
    config = _config(fields, stored.shapes().get(EMBEDDING, (0,))[0], tied=stored.tied)
    return Checkpoint(
        source=source,
        config=config,
        weights=CheckedWeights(str(folder), config, stored),
        text=read_meta_text(folder / TOKENIZER_FILE),
    )


def _load_quantized(folder: Path, source: str, fields: Fields) -> Checkpoint:
    """Open Meta's own int4 release: codes to keep, or with adapters merged codes to round again."""
    scheme = read_scheme(fields)
    paths = shard_paths(folder)
    if len(paths) > 1:
        raise CheckpointError(
            f"{folder}: has {len(paths)} files; a checkpoint with quantization_args is one file"
        )
    shard = Shard(paths[0], (*FLOATS, torch.int8))
    stored = QuantizedMetaTensors(folder, {name: shard.load(name) for name in shard.shapes}, scheme)
    config = _config(fields, stored.vocabulary, tied=stored.tied)
    weights = CheckedWeights(str(folder), config, stored)
    stored.check(config)
    text = read_meta_text(folder / TOKENIZER_FILE)
    if scheme.lora is not None:
        return Checkpoint(
            source=source, config=config, weights=weights, text=text, note=scheme.lora.note
        )
    if scheme.spinquant:
        config = replace(config, down_proj_rotation=hadamard_factors(config.intermediate_size))
    codes = MetaCodes(config, stored, scheme)
    return Checkpoint(source=source, config=config, weights=weights, text=text, codes=codes)


class _MetaTensors:
    """`StoredTensors` of all shards; a sliced tensor is put together when it is read."""

    def __init__(self, folder: Path, shards: list[Shard], fields: Fields) -> None:
        first = shards[0].shapes
        for number, shard in enumerate(shards):
            if shard.shapes.keys() != first.keys():
                odd = min(shard.shapes.keys() ^ first.keys())
                raise CheckpointError(
                    f"{folder}: consolidated.{number:02}.pth and consolidated.00.pth do not both "
                    f"hold {odd}; the files belong to different models"
                )
        self._shards = shards
        self._hidden = fields.integer("dim")
        heads = fields.integer("n_heads")
        self._heads = {
            "q_proj.weight": heads,
            "k_proj.weight": fields.integer("n_kv_heads", heads),
        }
        self._names = list(first)
        # Meta stores the head of a tied model as well: the embedding's values once more.
        self.tied = LM_HEAD not in self._names or (
            EMBEDDING in self._names and torch.equal(self._whole(LM_HEAD), self._whole(EMBEDDING))
        )
        if self.tied and LM_HEAD in self._names:
            self._names.remove(LM_HEAD)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """See `StoredTensors`."""
        return {name: self._shape(name) for name in self._names}

    def load(self, name: str) -> Tensor:
        """See `StoredTensors`."""
        tensor = self._whole(name)
        for suffix, heads in self._heads.items():
            if name.endswith(suffix):
                return unpermute_heads(tensor, heads)
        return tensor

    def _axis(self, name: str) -> int | None:
        """The axis of the slices; None for a norm, which every shard holds whole."""
        first = self._shards[0].shapes[name]
        if len(first) != 2 or len(self._shards) == 1:
            return None
        # Llama 3 slices the embedding by vocabulary, as fairscale's VocabParallelEmbedding does;
        # Llama 2 sliced it by width.
        by_width = name == EMBEDDING and first[1] != self._hidden
        return 1 if by_width or name.endswith(_ROW_PARALLEL) else 0

    def _shape(self, name: str) -> tuple[int, ...]:
        shape = list(self._shards[0].shapes[name])
        axis = self._axis(name)
        if axis is not None:
            shape[axis] = sum(shard.shapes[name][axis] for shard in self._shards)
        return tuple(shape)

    def _whole(self, name: str) -> Tensor:
        axis = self._axis(name)
        if axis is None:
            return self._shards[0].load(name)
        try:
            return torch.cat([shard.load(name) for shard in self._shards], dim=axis)
        except RuntimeError as error:
            raise CheckpointError(f"{name}: its slices do not fit together: {error}") from error


def _config(fields: Fields, vocabulary: int, *, tied: bool) -> ModelConfig:
    heads = fields.integer("n_heads")
    hidden = fields.integer("dim")
    scaling = _rope_scaling(fields)
    return ModelConfig(
        hidden_size=hidden,
        num_hidden_layers=fields.integer("n_layers"),
        num_attention_heads=heads,
        num_key_value_heads=fields.integer("n_kv_heads", heads),
        head_dim=hidden // max(heads, 1),
        intermediate_size=_intermediate_size(fields),
        vocab_size=_vocab_size(fields, vocabulary),
        rms_norm_eps=fields.number("norm_eps", 1e-5),
        rope_theta=fields.number("rope_theta", 500000.0),
        rope_scaling=scaling,
        max_position_embeddings=_ORIGINAL_CONTEXT if scaling is None else _SCALED_CONTEXT,
        tie_word_embeddings=tied,
    )


def _vocab_size(fields: Fields, rows: int) -> int:
    """-1 (Meta's default) leaves it to the table."""
    size = fields.integer("vocab_size", -1)
    return rows if size == -1 else size


def _intermediate_size(fields: Fields) -> int:
    """SwiGLU's width. Source: `FeedForward` in llama_models' `llama3/model.py`."""
    width = int(2 * (4 * fields.integer("dim")) / 3)
    width = int(fields.number("ffn_dim_multiplier", 1.0) * width)
    multiple = fields.integer("multiple_of", 256)
    if multiple <= 0:
        raise CheckpointError(f"{fields.path}: multiple_of is {multiple}; it must be positive")
    return multiple * ((width + multiple - 1) // multiple)


def _rope_scaling(fields: Fields) -> RopeScaling | None:
    """Llama 3's scaling: the factor that params.json names, else the one of the known model."""
    if not fields.flag("use_scaled_rope", default=False):
        return None
    shape = fields.integer("dim"), fields.integer("n_layers")
    if fields.values.get(ROPE_FACTOR_KEY) is None and shape not in ROPE_FACTORS:
        raise CheckpointError(
            f"{fields.path}: use_scaled_rope is true, and the factor of a model with dim "
            f'{shape[0]} and n_layers {shape[1]} is not known; add "{ROPE_FACTOR_KEY}": 32 as in '
            "Llama 3.2, or 8 as in Llama 3.1"
        )
    return RopeScaling(
        factor=fields.number(ROPE_FACTOR_KEY, ROPE_FACTORS.get(shape)),
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=_ORIGINAL_CONTEXT,
    )
