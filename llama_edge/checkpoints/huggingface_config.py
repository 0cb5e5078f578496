"""Hugging Face's config.json: what transformers makes of it, as far as it is a plain Llama."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llama_edge.checkpoints.json_fields import Fields, read_fields
from llama_edge.checkpoints.quantized_elsewhere import require_unquantized
from llama_edge.core.errors import CheckpointError
from llama_edge.core.model_config import LINEAR, LinearRopeScaling, ModelConfig, RopeScaling


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """A `model_type`: its network here, and what transformers takes for absent fields."""

    family: str
    #: transformers' class
    architecture: str
    vocab_size: int
    intermediate_size: int
    num_key_value_heads: int | None
    max_position_embeddings: int
    #: None: hidden_size / num_attention_heads
    head_dim: int | None = None
    #: attention reaches back so far, unless the file says another
    sliding_window: int | None = None
    hidden_size: int = 4096
    num_layers_and_heads: int = 32


_KINDS: Final[Mapping[str, _Kind]] = {
    "llama": _Kind(
        family="llama",
        architecture="LlamaForCausalLM",
        vocab_size=32000,
        intermediate_size=11008,
        num_key_value_heads=None,
        max_position_embeddings=2048,
    ),
    # Llama's network, as long as the sliding window holds all positions.
    "mistral": _Kind(
        family="llama",
        architecture="MistralForCausalLM",
        vocab_size=32000,
        intermediate_size=14336,
        num_key_value_heads=8,
        max_position_embeddings=131072,
        sliding_window=4096,
    ),
    "qwen2": _Kind(
        family="qwen2",
        architecture="Qwen2ForCausalLM",
        vocab_size=151936,
        intermediate_size=22016,
        num_key_value_heads=32,
        max_position_embeddings=32768,
    ),
    "qwen3": _Kind(
        family="qwen3",
        architecture="Qwen3ForCausalLM",
        vocab_size=151936,
        intermediate_size=22016,
        num_key_value_heads=32,
        max_position_embeddings=32768,
        head_dim=128,
    ),
}
#: transformers' class by `ModelConfig.family`
ARCHITECTURES: Final[Mapping[str, str]] = {
    name: kind.architecture for name, kind in _KINDS.items() if name == kind.family
}
#: LLaMA's first ports to transformers spelled it so.
_OLD_SPELLING: Final = ("LLaMAForCausalLM", "LlamaForCausalLM")
#: The network without its head, which a tied model does not store anyway.
_BASE_SUFFIX: Final = "Model"
_HEAD_SUFFIX: Final = "ForCausalLM"


def read_config(path: Path) -> ModelConfig:
    """A `config.json`; absent fields are transformers' defaults for its `model_type`.

    Raises:
        CheckpointError: Another architecture, or a feature that is not supported.
    """
    fields = read_fields(path)
    require_unquantized(fields)
    kind = _kind(fields)
    _require_plain(fields, kind)
    heads = fields.integer("num_attention_heads", kind.num_layers_and_heads)
    hidden = fields.integer("hidden_size", kind.hidden_size)
    positions = fields.integer("max_position_embeddings", kind.max_position_embeddings)
    _require_wide_window(fields, kind, positions)
    rope = _rope_fields(fields)
    return ModelConfig(
        hidden_size=hidden,
        num_hidden_layers=fields.integer("num_hidden_layers", kind.num_layers_and_heads),
        num_attention_heads=heads,
        num_key_value_heads=_key_value_heads(fields, kind, heads),
        head_dim=_head_dim(fields, kind, hidden, heads),
        intermediate_size=fields.integer("intermediate_size", kind.intermediate_size),
        vocab_size=fields.integer("vocab_size", kind.vocab_size),
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
        rope_theta=rope.number("rope_theta", fields.number("rope_theta", 10000.0)),
        rope_scaling=_rope_scaling(rope),
        max_position_embeddings=positions,
        tie_word_embeddings=fields.flag("tie_word_embeddings", default=False),
        output_rows=_output_rows(fields),
        family=_family(fields, kind),
    )


def _family(fields: Fields, kind: _Kind) -> str:
    """A Llama with `attention_bias` is Qwen2's network, but for a bias at the outputs.

    Whether that bias is there is for the weights to say: a Qwen2 saved as Llama has zeros there.
    """
    has_biases = fields.values.get("model_type") == "llama" and fields.flag(
        "attention_bias", default=False
    )
    return "qwen2" if has_biases else kind.family


def _kind(fields: Fields) -> _Kind:
    """What the file says that it is; the message names what is read."""
    model_type = fields.values.get("model_type")
    kind = _KINDS.get(model_type) if isinstance(model_type, str) else None
    architectures = fields.values.get("architectures")
    if kind is not None:
        names = [kind.architecture, kind.architecture.replace(_HEAD_SUFFIX, _BASE_SUFFIX)]
        names += _OLD_SPELLING if model_type == "llama" else ()
        if not architectures or architectures in [[name] for name in names]:
            return kind
    supported = ", ".join(f"{name!r} with {each.architecture}" for name, each in _KINDS.items())
    raise CheckpointError(
        f"{fields.path}: model_type {model_type!r} with architectures {architectures!r} is "
        f"not supported; these are: {supported}"
    )


def _require_plain(fields: Fields, kind: _Kind) -> None:
    """Refuse features that the network does not have."""
    fields.require("mlp_bias", False)
    if kind.architecture in ("MistralForCausalLM", "Qwen3ForCausalLM"):
        fields.require("attention_bias", False)
    fields.require("use_sliding_window", False)
    layer_types = fields.values.get("layer_types") or []
    if not isinstance(layer_types, list) or set(map(str, layer_types)) - {"full_attention"}:
        raise CheckpointError(
            f"{fields.path}: layer_types is {layer_types!r}; only 'full_attention' is supported"
        )
    fields.require("hidden_act", "silu")
    fields.require("partial_rotary_factor", 1.0)


def _require_wide_window(fields: Fields, kind: _Kind, positions: int) -> None:
    if kind.sliding_window is None or fields.is_null("sliding_window"):
        return
    window = fields.integer("sliding_window", kind.sliding_window)
    if window < positions:
        raise CheckpointError(
            f"{fields.path}: sliding_window is {window}, below max_position_embeddings "
            f"{positions}; attention with a sliding window is not supported. Up to {window} "
            f"positions the window changes nothing: set max_position_embeddings to {window}"
        )


def _key_value_heads(fields: Fields, kind: _Kind, heads: int) -> int:
    if fields.is_null("num_key_value_heads") or kind.num_key_value_heads is None:
        return fields.integer("num_key_value_heads", heads)
    return fields.integer("num_key_value_heads", kind.num_key_value_heads)


def _head_dim(fields: Fields, kind: _Kind, hidden: int, heads: int) -> int:
    return fields.integer("head_dim", kind.head_dim or hidden // max(heads, 1))


def _output_rows(fields: Fields) -> tuple[int, ...] | None:
    """Token ids of a pruned head's rows; a key of ours, which transformers ignores."""
    rows = fields.values.get("output_rows")
    if rows is None:
        return None
    if not isinstance(rows, list):
        raise CheckpointError(f"{fields.path}: output_rows is {rows!r}; a list of ids is needed")
    return tuple(rows)


def _rope_fields(fields: Fields) -> Fields:
    """`rope_parameters` of transformers 5, or `rope_scaling` before it."""
    for key in ("rope_parameters", "rope_scaling"):
        value = fields.values.get(key)
        if value is not None:
            if not isinstance(value, dict):
                raise CheckpointError(f"{fields.path}: {key} is {value!r}; an object is needed")
            return Fields(fields.path, value)
    return Fields(fields.path, {})


def _rope_scaling(rope: Fields) -> RopeScaling | LinearRopeScaling | None:
    kind = rope.values.get("rope_type", rope.values.get("type", "default"))
    rope.require("partial_rotary_factor", 1.0)
    if kind == "default":
        return None
    if kind == LINEAR:
        return LinearRopeScaling(factor=rope.number("factor"))
    if kind != "llama3":
        raise CheckpointError(
            f"{rope.path}: RoPE scaling of type {kind!a:.40} is not supported; 'default', "
            "'linear' and 'llama3' are"
        )
    return RopeScaling(
        factor=rope.number("factor"),
        low_freq_factor=rope.number("low_freq_factor"),
        high_freq_factor=rope.number("high_freq_factor"),
        original_max_position_embeddings=rope.integer("original_max_position_embeddings"),
    )
