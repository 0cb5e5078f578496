"""Adam over one vector, with warm-up and an average of its iterates; it saves and finds its state.

Kingma and Ba, "Adam", 2015, algorithm 1. What is averaged are the parameters after each step
(Polyak and Juditsky, 1992), with weights that fall by a constant factor from step to step.

Shape legend: P trained numbers.
"""

from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from llama_edge.quantize.kept import explained, is_kept, keep

#: What the means of gradients and of their squares keep at each step; 0.95 because some hundred
#: steps are few for the usual 0.999.
_KEPT_GRADIENT: Final = 0.9
_KEPT_SQUARE: Final = 0.95
#: Gradients of one scale are around 1e-7: the usual 1e-8 would slow the smaller ones down.
_EPSILON: Final = 1e-12


class AveragedAdam:
    """The optimizer and its state, on the device of what it trains.

    Args:
        values: What is trained, float32 (P,), from zeros on; it is changed in place.
        rates: Learning rate of each, float32 (P,).
        warm_up: Steps over which the rates rise from zero.
        averaging: What the average keeps of itself at each step.
    """

    def __init__(self, values: Tensor, rates: Tensor, warm_up: int, averaging: float) -> None:
        self.step = 0
        self._rates = rates
        self._warm_up = warm_up
        self._averaging = averaging
        self._state = {
            "values": values,
            "gradients": torch.zeros_like(values),
            "squares": torch.zeros_like(values),
            "average": torch.zeros_like(values),
        }

    @torch.no_grad()
    def advance(self, gradient: Tensor) -> None:
        """One step downhill."""
        self.step += 1
        values, gradients, squares, average = self._state.values()
        gradients.lerp_(gradient, 1 - _KEPT_GRADIENT)
        squares.mul_(_KEPT_SQUARE).addcmul_(gradient, gradient, value=1 - _KEPT_SQUARE)
        # Both means begin at zero; these take back what that leaves out of them.
        spread = (squares / (1 - _KEPT_SQUARE**self.step)).sqrt_().add_(_EPSILON)
        warmth = min(1.0, self.step / max(1, self._warm_up))
        scale = -warmth / (1 - _KEPT_GRADIENT**self.step)
        values.addcdiv_(gradients * self._rates, spread, value=scale)
        average.lerp_(values, 1 - self._averaging)

    def averaged(self) -> Tensor:
        """The average of the values after each step so far (P,)."""
        return self._state["average"] / (1 - self._averaging**self.step)

    def save(self, path: Path) -> None:
        """Replace `path` atomically: a kill at any moment leaves the old file or the new one.

        Raises:
            OutputError: The folder cannot be written, or the disk is full.
        """
        tensors = {name: tensor.cpu() for name, tensor in self._state.items()}
        with explained(path, "the state of the distillation cannot be written"):
            keep(path, {**tensors, "step": torch.tensor(self.step)})

    def load(self, path: Path, steps: int) -> bool:
        """Resume from what `save` wrote.

        Args:
            path: The file.
            steps: Of the whole training.

        Returns:
            Whether it is whole and fits; if not, nothing is changed.
        """
        if not is_kept(path):
            return False
        try:
            tensors = load_file(path)
            step = int(tensors.pop("step").item())
        except (OSError, SafetensorError, KeyError, ValueError, RuntimeError):
            return False
        if not 1 <= step <= steps or set(tensors) != set(self._state):
            return False
        if not all(_fits(tensors[name], wanted) for name, wanted in self._state.items()):
            return False
        for name, tensor in self._state.items():
            tensor.copy_(tensors[name])
        self.step = step
        return True


def _fits(found: Tensor, wanted: Tensor) -> bool:
    alike = found.shape == wanted.shape and found.dtype == wanted.dtype
    return alike and bool(found.isfinite().all())
