"""The shape of a Llama: field names as in Hugging Face's `config.json`."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from llama_edge.core.errors import ConfigError

#: Far above every Llama; a lying config must not make a stage count to a billion.
_LARGEST: Final[Mapping[str, int]] = {
    "hidden_size": 2**20,
    "num_hidden_layers": 2**10,
    "num_attention_heads": 2**12,
    "num_key_value_heads": 2**12,
    "head_dim": 2**12,
    "intermediate_size": 2**22,
    "vocab_size": 2**24,
    "max_position_embeddings": 2**24,
}


#: Networks that are known; the first is what a config is of that names none.
FAMILIES: Final = ("llama", "qwen2", "qwen3")


def _require_integer(where: str, name: str, value: object, largest: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= largest:
        raise ConfigError(f"{where}: {name} is {value!r}; an integer from 1 to {largest} is needed")


def _require_number(where: str, name: str, value: object, *, low: float, high: float) -> None:
    if not isinstance(value, (int, float)) or not low < value < high:
        raise ConfigError(
            f"{where}: {name} is {value!r}; a number above {low:g} and below {high:g} is needed"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """Llama 3's frequency scaling (`rope_type: llama3` in the model's `config.json`)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def __post_init__(self) -> None:
        for name in ("factor", "low_freq_factor", "high_freq_factor"):
            _require_number("rope_scaling", name, getattr(self, name), low=0, high=1e6)
        _require_integer(
            "rope_scaling",
            "original_max_position_embeddings",
            self.original_max_position_embeddings,
            2**24,
        )
        if not self.low_freq_factor < self.high_freq_factor:
            raise ConfigError(
                f"rope_scaling: low_freq_factor {self.low_freq_factor} is not below "
                f"high_freq_factor {self.high_freq_factor}"
            )


#: `rope_type` of positions that are divided by a factor.
LINEAR: Final = "linear"


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearRopeScaling:
    """Positions divided by a factor (`rope_type: linear`), as in LongChat and Vicuna 16k."""

    factor: float
    #: always this; in JSON it tells the two scalings apart
    rope_type: str = LINEAR

    def __post_init__(self) -> None:
        _require_number("rope_scaling", "factor", self.factor, low=0, high=1e6)
        if self.rope_type != LINEAR:
            raise ConfigError(f"rope_scaling: rope_type is {self.rope_type!r}; {LINEAR!r} is known")


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
    rope_scaling: RopeScaling | LinearRopeScaling | None
    max_position_embeddings: int
    tie_word_embeddings: bool
    #: R4 online: orders of the Hadamard matrices that rotate down_proj's input, (a, b) all of it
    #: and (b,) each run of b neighbours (`core.hadamard.rotate_product`)
    down_proj_rotation: tuple[int, ...] | None = None
    #: the head multiplies its normed input by `lm_head_rotation.weight` before the table
    head_rotation: bool = False
    #: token ids whose logits the head computes, in its rows' order; None: all of them. Many, and
    #: a config is hashed wherever its network is looked up.
    output_rows: tuple[int, ...] | None = field(default=None, hash=False)
    #: which network (`models.network.MODELS`)
    family: str = "llama"

    def __post_init__(self) -> None:
        for name, largest in _LARGEST.items():
            _require_integer("config", name, getattr(self, name), largest)
        _require_number("config", "rms_norm_eps", self.rms_norm_eps, low=0, high=1)
        _require_number("config", "rope_theta", self.rope_theta, low=1, high=1e12)
        if not isinstance(self.tie_word_embeddings, bool):
            raise ConfigError(
                f"config: tie_word_embeddings is {self.tie_word_embeddings!r}; "
                "it must be true or false"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"config: num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise ConfigError(f"config: head_dim {self.head_dim} is odd; RoPE turns pairs")
        if self.family not in FAMILIES:
            raise ConfigError(
                f"config: family is {self.family!r}; one of {', '.join(FAMILIES)} is needed"
            )
        self._check_output_rows()
        self._check_rotations()

    def _check_output_rows(self) -> None:
        rows = self.output_rows
        if rows is None:
            return
        known = all(type(row) is int and 0 <= row < self.vocab_size for row in rows)
        if not rows or not known or len(set(rows)) != len(rows):
            raise ConfigError(
                f"config: output_rows has {len(rows)} entries; at least one token id below "
                f"vocab_size {self.vocab_size} is needed, each once"
            )
        if self.tie_word_embeddings:
            raise ConfigError(
                "config: a head with output_rows is a matrix of its own; set tie_word_embeddings "
                "to false and store lm_head.weight"
            )

    def _check_rotations(self) -> None:
        if not isinstance(self.head_rotation, bool):
            raise ConfigError(f"config: head_rotation is {self.head_rotation!r}; true or false")
        orders = self.down_proj_rotation
        if orders is None:
            return
        width = self.intermediate_size
        fits = all(type(order) is int and order > 0 for order in orders) and (
            (len(orders) == 1 and width % orders[0] == 0)
            or (len(orders) == 2 and math.prod(orders) == width)
        )
        if not fits:
            raise ConfigError(
                f"config: down_proj_rotation is {orders!r}; two orders whose product is "
                f"intermediate_size {width}, or one order that divides it, are needed"
            )

    @property
    def queries_per_group(self) -> int:
        """Query heads that share one key/value head."""
        return self.num_attention_heads // self.num_key_value_heads

    @property
    def head_rows(self) -> int:
        """Rows of the head: `vocab_size`, or as many as `output_rows` has."""
        return self.vocab_size if self.output_rows is None else len(self.output_rows)

    @property
    def query_size(self) -> int:
        """Width of all query heads together: `num_attention_heads * head_dim`."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_value_size(self) -> int:
        """Width of all key (or value) heads together: `num_key_value_heads * head_dim`."""
        return self.num_key_value_heads * self.head_dim

    def to_json(self) -> dict[str, Any]:
        """Plain values for a manifest; the inverse of `from_json`.

        A plain Llama has neither `family` nor `output_rows`, so that earlier versions read it.
        """
        value = asdict(self)
        if self.output_rows is None:
            del value["output_rows"]
        if self.family == FAMILIES[0]:
            del value["family"]
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "ModelConfig":
        """Read what `to_json` wrote.

        Raises:
            ConfigError: A field is absent, unknown or out of range.
        """
        try:
            fields = {**value}
            scaling = fields.get("rope_scaling")
            if scaling is not None:
                is_linear = isinstance(scaling, Mapping) and "rope_type" in scaling
                kind = LinearRopeScaling if is_linear else RopeScaling
                fields["rope_scaling"] = kind(**scaling)
            rotation = fields.get("down_proj_rotation")
            if rotation is not None:
                fields["down_proj_rotation"] = tuple(rotation)
            if fields.get("output_rows") is not None:
                fields["output_rows"] = tuple(fields["output_rows"])
            return cls(**fields)
        except TypeError as error:
            raise ConfigError(f"model config: {error}") from error
