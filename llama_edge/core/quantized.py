"""One set of quantized values for every backend, and what is recorded of how it was made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from llama_edge.core.errors import ConfigError
from llama_edge.core.model_config import ModelConfig
from llama_edge.core.recipe import Recipe
from llama_edge.core.text_assets import TextAssets

if TYPE_CHECKING:  # torch takes seconds to import; `llama-edge --help` must not
    from torch import Tensor

    from llama_edge.core.packing import QuantizedTensor


class QuantizedWeights(Protocol):
    """Codes and scales under canonical names, from a checkpoint folder or read out of an artifact.

    `lm_head.weight` is always there; in a tied model it equals `model.embed_tokens.weight`.
    """

    def quantized_names(self) -> tuple[str, ...]:
        """Names of all quantized matrices in canonical order: embedding, blocks, lm_head."""
        ...

    def quantized(self, name: str) -> QuantizedTensor:
        """Codes and scales of one matrix."""
        ...

    def vector(self, name: str) -> Tensor:
        """A weight that is not quantized, float32: a norm (D,), or the head's rotation (D, D)."""
        ...


class GivenCodes(QuantizedWeights, Protocol):
    """A checkpoint's own codes in canonical layout; `quantized` has the scales that are stored."""

    @property
    def recipe(self) -> str:
        """Name of the recipe that describes what the author did."""
        ...

    def own_scales(self, name: str) -> Tensor:
        """Scales as the checkpoint has them, float32 (O, G)."""
        ...


@dataclass(frozen=True, kw_only=True)
class MixedPrecision:
    """Where a recipe's `extra_bytes` went."""

    #: names of the block linears with 8-bit codes and one scale per row, in canonical order
    int8_linears: tuple[str, ...]
    #: that these linears take more than with 4-bit codes, as the quantized checkpoint stores them
    spent_bytes: int
    budget_bytes: int

    @cached_property
    def int8_names(self) -> frozenset[str]:
        """`int8_linears` to look names up in."""
        return frozenset(self.int8_linears)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> MixedPrecision:
        """Read what `to_json` wrote.

        Raises:
            ConfigError: A field is absent or unknown, or the budget is exceeded.
        """
        try:
            found = cls(**{**value, "int8_linears": tuple(value["int8_linears"])})
            exceeded = found.spent_bytes > found.budget_bytes
        except (KeyError, TypeError) as error:
            raise ConfigError(f"mixed_precision: {error}") from error
        if exceeded:
            raise ConfigError(
                f"mixed_precision: spent_bytes is {found.spent_bytes}; budget_bytes allows "
                f"{found.budget_bytes}"
            )
        return found

    def to_json(self) -> dict[str, Any]:
        """For `quantization.json` and the manifest."""
        return {**asdict(self), "int8_linears": list(self.int8_linears)}


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleRounding:
    """What it costs to keep a checkpoint's own scales in bfloat16, in which backends share them."""

    scales: int
    #: not bfloat16 numbers before
    rounded: int
    #: below the least scale that every backend holds, over codes that are not all zero
    raised: int
    #: of the scales that were not raised
    rms_relative_error: float
    max_relative_error: float
    #: nats, from the network with the checkpoint's scales to that with the stored ones
    mean_kl: float

    def to_json(self) -> dict[str, Any]:
        """For `quantization.json` and the manifest."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote.

        Raises:
            ConfigError: A field is absent, unknown or no number.
        """
        if not isinstance(value, Mapping) or set(value) != {field.name for field in fields(cls)}:
            raise ConfigError(f"scale_rounding is {value!r}; its fields are wrong")
        for name, number in value.items():
            if not isinstance(number, (int, float)):
                raise ConfigError(f"scale_rounding: {name} is {number!r}; a number is needed")
        return cls(**value)


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationRecord:
    """Which text a model was calibrated on: its hash stands for the token ids, int64 row-major."""

    origin: str
    sequences: int
    length: int
    sha256: str

    def to_json(self) -> dict[str, Any]:
        """For `quantization.json` and the manifest."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedCheckpoint:
    """One set of codes and scales for every backend; `root` holds it on disk."""

    root: Path
    config: ModelConfig
    recipe: Recipe
    weights: QuantizedWeights
    text: TextAssets
    #: SHA-256 over names, shapes and float32 values of the full-precision weights
    source_sha256: str
    #: None for a recipe that needs no text
    calibration: CalibrationRecord | None = None
    #: None where scales were chosen here
    scale_rounding: ScaleRounding | None = None
    #: `Checkpoint.note`
    note: str | None = None
    #: None for a recipe without `extra_bytes`
    mixed_precision: MixedPrecision | None = None
