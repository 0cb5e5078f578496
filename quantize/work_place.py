"""Where a long quantization runs, and the folder that keeps what is done when it is interrupted."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llama_edge.core.recipe import Device
from llama_edge.quantize.learned_rotations import LearningPlace

_ROTATIONS_FILE: Final = "rotations.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkPlace:
    """It decides about time alone: codes and scales are the same wherever they are chosen."""

    #: where rotations are learned
    device: Device = Device.CPU
    #: exists, is this run's alone, and belongs to one checkpoint, recipe and calibration text; None
    #: keeps nothing between runs
    folder: Path | None = None

    @property
    def learning(self) -> LearningPlace:
        """The part of it that learned rotations need."""
        state = None if self.folder is None else self.folder / _ROTATIONS_FILE
        return LearningPlace(device=self.device, state=state)

    def subfolder(self, name: str) -> Path | None:
        """A folder in it, or None."""
        if self.folder is None:
            return None
        place = self.folder / name
        place.mkdir(exist_ok=True)
        return place


#: Keeps nothing between runs.
ON_CPU: Final = WorkPlace()
