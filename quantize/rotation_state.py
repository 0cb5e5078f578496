"""How far the learning of rotations has got, on disk: whole, or as it was one save before."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from llama_edge.core.errors import OutputError
from llama_edge.quantize.whole_file import whole_file

_NAMES: Final = ("r1", "r2", "r1_momentum", "r2_momentum")


@dataclass(frozen=True, slots=True, kw_only=True)
class RotationState:
    """Everything that the next iteration depends on; float64, r1 (D, D), r2 (L, H, H)."""

    #: iterations that are done
    step: int
    r1: Tensor
    r2: Tensor
    r1_momentum: Tensor
    r2_momentum: Tensor


def start_state(r1_DD: Tensor, r2_LHH: Tensor) -> RotationState:
    """Before the first iteration."""
    return RotationState(
        step=0,
        r1=r1_DD,
        r2=r2_LHH,
        r1_momentum=torch.zeros_like(r1_DD),
        r2_momentum=torch.zeros_like(r2_LHH),
    )


def save_state(state: RotationState, path: Path) -> None:
    """Replace `path` atomically: a kill at any moment leaves the old file or the new one.

    Raises:
        OutputError: The folder cannot be written, or the disk is full.
    """
    tensors = {name: getattr(state, name).cpu().contiguous() for name in _NAMES}
    tensors["step"] = torch.tensor(state.step)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as unfinished:
            save_file(tensors, unfinished)
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"{path}: the state of the learned rotations cannot be written: {error}; free some "
            "space, or set LLAMA_EDGE_CACHE to a folder that can be written"
        ) from error


def load_state(path: Path, start: RotationState) -> RotationState | None:
    """What `save_state` wrote, on the device of `start`; None where it is damaged."""
    try:
        tensors = load_file(path)
        step = int(tensors.pop("step").item())
        state = RotationState(step=step, **tensors)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError):
        return None
    return _on_device_of(start, state) if _fits(state, start) else None


def _fits(state: RotationState, start: RotationState) -> bool:
    pairs = [(getattr(state, name), getattr(start, name)) for name in _NAMES]
    return state.step > 0 and all(
        found.shape == wanted.shape and found.dtype == wanted.dtype and bool(found.isfinite().all())
        for found, wanted in pairs
    )


def _on_device_of(start: RotationState, state: RotationState) -> RotationState:
    # Copied, because a file's tensors lie at odd addresses, and products of such differ in their
    # last bits from those of aligned ones.
    moved = {name: getattr(state, name).to(start.r1.device, copy=True) for name in _NAMES}
    return RotationState(step=state.step, **moved)
