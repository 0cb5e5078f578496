"""Hugging Face folders: config.json, safetensors in one file or in shards, tokenizer.json."""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llama_edge.checkpoints.base import CheckedWeights
from llama_edge.checkpoints.json_fields import Fields
from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.errors import CheckpointError
from llama_edge.core.files import read_json_object
from llama_edge.core.model_config import ModelConfig, RopeScaling
from llama_edge.models.weight_names import EMBEDDING, LM_HEAD
from llama_edge.text.text_assets import read_text_assets

CONFIG_FILE: Final = "config.json"
WEIGHTS_FILE: Final = "model.safetensors"
INDEX_FILE: Final = "model.safetensors.index.json"

#: Computed from the config; older checkpoints store it all the same.
_HARMLESS_SUFFIX: Final = "rotary_emb.inv_freq"
_DTYPES: Final = ("F32", "F16", "BF16")


def load_huggingface(folder: Path, source: str) -> Checkpoint:
    """Open a folder as `save_pretrained` writes it.

    Raises:
        CheckpointError: It is damaged, incomplete or not a plain Llama.
        ConfigError: Its sizes contradict each other.
        TokenizerError: Its tokenizer is damaged.
    """
    config = read_config(folder / CONFIG_FILE)
    stored = _SafetensorsFolder(folder, tied=config.tie_word_embeddings)
    return Checkpoint(
        source=source,
        config=config,
        weights=CheckedWeights(str(folder), config, stored),
        text=read_text_assets(folder),
        folder=folder,
    )


def read_config(path: Path) -> ModelConfig:
    """A `config.json`; absent fields are transformers' defaults for its `model_type`.

    Raises:
        CheckpointError: Another architecture, or a feature that is not supported.
    """
    fields = Fields(path, read_json_object(path, CheckpointError))
    family = _family(fields)
    heads = fields.integer("num_attention_heads")
    hidden = fields.integer("hidden_size")
    head_dim = 128 if family == "qwen3" else hidden // max(heads, 1)
    rope = _rope_fields(fields)
    return ModelConfig(
        hidden_size=hidden,
        num_hidden_layers=fields.integer("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=fields.integer("num_key_value_heads", heads),
        head_dim=fields.integer("head_dim", head_dim),
        intermediate_size=fields.integer("intermediate_size"),
        vocab_size=fields.integer("vocab_size"),
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
        rope_theta=rope.number("rope_theta", fields.number("rope_theta", 10000.0)),
        rope_scaling=_rope_scaling(rope),
        max_position_embeddings=fields.integer("max_position_embeddings"),
        tie_word_embeddings=fields.flag("tie_word_embeddings", default=False),
        output_rows=_output_rows(fields),
        family=family,
    )


def _output_rows(fields: Fields) -> tuple[int, ...] | None:
    """Token ids of a pruned head's rows; a key of ours, which transformers ignores."""
    rows = fields.values.get("output_rows")
    if rows is None:
        return None
    if not isinstance(rows, list):
        raise CheckpointError(f"{fields.path}: output_rows is {rows!r}; a list of ids is needed")
    return tuple(rows)


#: transformers' class by `model_type`, which is also `ModelConfig.family`
ARCHITECTURES: Final[Mapping[str, str]] = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


def _family(fields: Fields) -> str:
    """The model's network; refuses features that this network does not have."""
    model_type = fields.values.get("model_type")
    known = ARCHITECTURES.get(model_type) if isinstance(model_type, str) else None
    architectures = fields.values.get("architectures") or [known]
    if known is None or architectures != [known]:
        supported = ", ".join(f"{kind!r} with {name}" for kind, name in ARCHITECTURES.items())
        raise CheckpointError(
            f"{fields.path}: model_type {model_type!r} with architectures {architectures!r} is "
            f"not supported; these are: {supported}"
        )
    # Qwen2 has its biases whatever its config says of them.
    for key in ("mlp_bias",) if model_type == "qwen2" else ("attention_bias", "mlp_bias"):
        fields.require(key, False)
    fields.require("use_sliding_window", False)
    layer_types = fields.values.get("layer_types") or []
    if not isinstance(layer_types, list) or set(map(str, layer_types)) - {"full_attention"}:
        raise CheckpointError(
            f"{fields.path}: layer_types is {layer_types!r}; only 'full_attention' is supported"
        )
    fields.require("hidden_act", "silu")
    fields.require("quantization_config")
    fields.require("partial_rotary_factor", 1.0)
    return str(model_type)


def _rope_fields(fields: Fields) -> Fields:
    """`rope_parameters` of transformers 5, or `rope_scaling` before it."""
    for key in ("rope_parameters", "rope_scaling"):
        value = fields.values.get(key)
        if value is not None:
            if not isinstance(value, dict):
                raise CheckpointError(f"{fields.path}: {key} is {value!r}; an object is needed")
            return Fields(fields.path, value)
    return Fields(fields.path, {})


def _rope_scaling(rope: Fields) -> RopeScaling | None:
    kind = rope.values.get("rope_type", rope.values.get("type", "default"))
    rope.require("partial_rotary_factor", 1.0)
    if kind == "default":
        return None
    if kind != "llama3":
        raise CheckpointError(
            f"{rope.path}: RoPE of type {kind!r} is not supported; 'default' and 'llama3' are"
        )
    return RopeScaling(
        factor=rope.number("factor"),
        low_freq_factor=rope.number("low_freq_factor"),
        high_freq_factor=rope.number("high_freq_factor"),
        original_max_position_embeddings=rope.integer("original_max_position_embeddings"),
    )


class _SafetensorsFolder:
    """`StoredTensors` of one or several safetensors files.

    The library maps a whole file for as long as one of its tensors lives, and pages that were read
    count as memory in use. So each tensor has a mapping of its own, gone when the tensor is.
    """

    def __init__(self, folder: Path, *, tied: bool) -> None:
        self._files: dict[str, Path] = {}
        self._shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
        promised = _weight_map(folder)
        for shard in sorted(set(promised.values())):
            path = folder / shard
            file = _open(path)
            for name in file.keys():  # noqa: SIM118  (not a dict)
                if name in self._files:
                    raise CheckpointError(f"{path}: {name} is in {self._files[name]} as well")
                view = file.get_slice(name)
                self._files[name] = path
                self._shapes[name] = view.get_dtype(), tuple(view.get_shape())
        for name, shard in promised.items():
            if name and (name not in self._files or self._files[name].name != shard):
                raise CheckpointError(
                    f"{folder / shard}: {name} is missing, although {INDEX_FILE} promises it; "
                    "download the file again"
                )
        for name in [name for name in self._files if name.endswith(_HARMLESS_SUFFIX)]:
            del self._files[name]
        if tied and LM_HEAD in self._files:
            self._drop_copied_head(folder)

    def _drop_copied_head(self, folder: Path) -> None:
        if EMBEDDING not in self._files or not torch.equal(
            self.load(LM_HEAD), self.load(EMBEDDING)
        ):
            raise CheckpointError(
                f"{folder}: {LM_HEAD} differs from {EMBEDDING} although tie_word_embeddings is "
                "true; set it to false in config.json if the head is meant to be its own"
            )
        del self._files[LM_HEAD]

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """See `StoredTensors`."""
        shapes = {}
        for name, path in self._files.items():
            dtype, shapes[name] = self._shapes[name]
            if dtype not in _DTYPES:
                raise CheckpointError(
                    f"{path}: {name} is {dtype}; {', '.join(_DTYPES)} are read, so take the "
                    "model's unquantized release"
                )
        return shapes

    def load(self, name: str) -> Tensor:
        """See `StoredTensors`."""
        path = self._files[name]
        try:
            tensor: Tensor = _open(path).get_tensor(name)
        except SafetensorError as error:
            raise CheckpointError(f"{path}: {name} cannot be read: {error}") from error
        return tensor


def _weight_map(folder: Path) -> dict[str, str]:
    """Weight name -> shard file name; a single file promises nothing by name."""
    if (folder / WEIGHTS_FILE).exists():
        return {"": WEIGHTS_FILE}
    index = folder / INDEX_FILE
    if not index.exists():
        raise CheckpointError(
            f"{folder}: neither {WEIGHTS_FILE} nor {INDEX_FILE} is there; a checkpoint in .bin or "
            ".pt files must be saved as safetensors first"
        )
    weight_map = read_json_object(index, CheckpointError).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: weight_map is missing or empty")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _is_bare_name(shard):
            raise CheckpointError(
                f"{index}: {name} is said to be in {shard!r}; a shard must be a file of this folder"
            )
    return weight_map


def _is_bare_name(name: str) -> bool:
    """No folder, drive or parent in it; the file itself may be a link, as in the hub's cache."""
    return PurePosixPath(name).name == name not in ("", "..") and not set(name) & set("\\:\0")


def _open(path: Path) -> Any:  # noqa: ANN401
    if not path.is_file():
        raise CheckpointError(f"{path}: the shard is missing; download it again")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: not readable as safetensors: {error}; the file is truncated or damaged"
        ) from error
