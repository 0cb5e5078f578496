"""A full-precision model: config, lazy weights, text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from llama_edge.core.model_config import ModelConfig
from llama_edge.core.quantized import GivenCodes
from llama_edge.core.text_assets import TextAssets

if TYPE_CHECKING:  # torch takes seconds to import; `llama-edge --help` must not
    from torch import Tensor


class Weights(Protocol):
    """Full-precision weights under canonical names, read when asked for."""

    def __iter__(self) -> Iterator[str]: ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape, without reading it."""
        ...

    def read(self, name: str) -> Tensor:
        """The tensor, float32.

        Raises:
            CheckpointError: It is damaged or holds NaN or infinity.
        """
        ...


#: What `Checkpoint.precision` says of a model in full precision.
FULL_PRECISION: Final = "full precision"


#: What a model that came as codes is measured against; nothing more precise is in the checkpoint.
OWN_CODES: Final = "the checkpoint's own codes and scales with float32 activations"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A full-precision model. `source` is how the user named it: a built-in name, id or path.

    With `codes`, there is no full precision: `weights` are the codes times the checkpoint's own
    scales, and `config` has the rotation that they were rounded after.
    """

    source: str
    config: ModelConfig
    weights: Weights
    text: TextAssets
    #: codes that the author chose, to be kept
    codes: GivenCodes | None = None
    #: what a report should say of how it was read
    note: str | None = None
    #: the Hugging Face folder that it was read from, if it was one
    folder: Path | None = None

    @property
    def precision(self) -> str:
        """What its weights are, as reports name what they measure against."""
        return FULL_PRECISION if self.codes is None else OWN_CODES
