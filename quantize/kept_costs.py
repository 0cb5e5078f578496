"""What of a sensitivity measurement is done, on disk: the costs so far, and where it goes on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from llama_edge.core.errors import OutputError
from llama_edge.quantize.whole_file import whole_file


@dataclass(frozen=True, slots=True, kw_only=True)
class CostsSoFar:
    """After some layers of the pass back, last layer first."""

    #: float64 (layouts, linears), in the order in which they are measured
    costs: Tensor
    #: at the input of the layer that was measured last, (T, D) for each sequence
    gradients: tuple[Tensor, ...]


class KeptCosts:
    """One file, replaced atomically.

    Args:
        folder: Where it lies, this run's alone; None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._path = None if folder is None else folder / "costs.safetensors"

    def load(self, layouts: int, shape: Sequence[int]) -> CostsSoFar | None:
        """What `keep` wrote for as many layouts and gradients (N, T, D); or None."""
        if self._path is None or not self._path.exists():
            return None
        try:
            tensors = load_file(self._path)
            costs, gradients = tensors["costs"], tensors["gradients"]
        except (OSError, SafetensorError, KeyError):
            return None
        fits = costs.shape[:1] == (layouts,) and tuple(gradients.shape) == tuple(shape)
        if not fits or not costs.isfinite().all() or not gradients.isfinite().all():
            return None
        # Copied: a file's tensors lie at odd addresses.
        return CostsSoFar(costs=costs.clone(), gradients=tuple(row.clone() for row in gradients))

    def keep(self, found: CostsSoFar) -> None:
        """Replace what is kept.

        Raises:
            OutputError: The disk is full or cannot be written.
        """
        if self._path is None:
            return
        tensors = {"costs": found.costs, "gradients": torch.stack(found.gradients)}
        try:
            with whole_file(self._path) as unfinished:
                save_file(tensors, unfinished)
        except (OSError, SafetensorError) as error:
            raise OutputError(
                f"{self._path}: what is measured cannot be kept: {error}; free some space, or set "
                "LLAMA_EDGE_CACHE to a folder that can be written"
            ) from error
