"""Which block linears have 8-bit codes among 4-bit ones, and what that costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from llama_edge.core.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class MixedPrecision:
    """Where a recipe's `extra_bytes` went."""

    #: names of the block linears with 8-bit codes and one scale per row, in canonical order
    int8_linears: tuple[str, ...]
    #: that these linears take more than with 4-bit codes, as the quantized checkpoint stores them
    spent_bytes: int
    budget_bytes: int

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
