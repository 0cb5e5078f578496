"""The shape of a Llama: field names as in Hugging Face's `config.json`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from llama_edge.core.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """Llama 3's frequency scaling (`rope_type: llama3` in the model's `config.json`)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Everything that the network's arithmetic depends on, and nothing else."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    max_position_embeddings: int
    tie_word_embeddings: bool

    def __post_init__(self) -> None:
        for name in (
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "intermediate_size",
            "vocab_size",
            "max_position_embeddings",
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
                raise ConfigError(f"config: {name} is {value!r}; it must be a positive integer")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"config: num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise ConfigError(f"config: head_dim {self.head_dim} is odd; RoPE turns pairs")
        if not 0 < self.rms_norm_eps < 1:
            raise ConfigError(f"config: rms_norm_eps {self.rms_norm_eps!r} is not in (0, 1)")
        if not self.rope_theta > 1:
            raise ConfigError(f"config: rope_theta {self.rope_theta!r} must be above 1")

    @property
    def query_size(self) -> int:
        """Width of all query heads together: `num_attention_heads * head_dim`."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_value_size(self) -> int:
        """Width of all key (or value) heads together: `num_key_value_heads * head_dim`."""
        return self.num_key_value_heads * self.head_dim

    def to_json(self) -> dict[str, Any]:
        """Plain values for a manifest; the inverse of `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "ModelConfig":
        """Read what `to_json` wrote.

        Raises:
            ConfigError: A field is absent, unknown or out of range.
        """
        fields = dict(value)
        scaling = fields.get("rope_scaling")
        try:
            if scaling is not None:
                fields["rope_scaling"] = RopeScaling(**scaling)
            return cls(**fields)
        except TypeError as error:
            raise ConfigError(f"model config: {error}") from error
