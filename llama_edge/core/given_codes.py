"""Codes that came with a checkpoint: its author chose them, and they stay as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

from llama_edge.core.errors import ConfigError
from llama_edge.core.types import QuantizedWeights

if TYPE_CHECKING:  # torch takes seconds to import; `llama-edge recipes` must not
    from torch import Tensor

#: Recipes that describe what Meta did: learned R1 and R2, R4, and GPTQ; or training with rounding.
META_SPINQUANT: Final = "w4a8-meta-spinquant"
META_QAT: Final = "w4a8-meta-qat"


class GivenCodes(QuantizedWeights, Protocol):
    """A checkpoint's own codes in canonical layout; `quantized` has the scales that are stored."""

    @property
    def recipe(self) -> str:
        """Name of the recipe that describes what the author did."""
        ...

    def own_scales(self, name: str) -> Tensor:
        """Scales as the checkpoint has them, float32 (O, G)."""
        ...


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
