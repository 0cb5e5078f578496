"""What a long quantization keeps, so that the next run resumes where an interrupted one was.

The folder (`WorkPlace`) has the state of what is learned, the costs of rounding, and each finished
layer with the activations after it, in files of `quantize.kept`. Large activations of the run
itself are mapped files.
"""

import math
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from llama_edge.core.errors import OutputError, QuantizeError
from llama_edge.core.packing import QuantizedTensor
from llama_edge.core.recipe import Device
from llama_edge.core.unfinished import empty
from llama_edge.formats.quantized_checkpoint import Layout, QuantizedEntry, matrix_shape
from llama_edge.models.network import network_of
from llama_edge.quantize.arithmetic import Arithmetic, arithmetic_on
from llama_edge.quantize.kept import explained, is_kept, keep

#: Activations above this many bytes are in a temporary file that the system may write out.
SPILL_BYTES: Final = 512 * 2**20
#: Of free memory on a GPU, what activations leave to everything else: each buffer a tenth at most.
_ROOM: Final = 10
_CPU: Final = torch.device("cpu")


def activation_buffer(
    shape: Sequence[int],
    path: Path,
    dtype: torch.dtype = torch.float32,
    device: torch.device = _CPU,
) -> Tensor:
    """Uninitialized activations: on the device where it has much more room, else on the CPU.

    Args:
        shape: Theirs.
        path: The file that they are in where they are large and on the CPU.
        dtype: Theirs.
        device: Where they are computed.
    """
    count = math.prod(shape)
    if device.type == "cuda" and _ROOM * dtype.itemsize * count <= torch.cuda.mem_get_info()[0]:
        return torch.empty(*shape, dtype=dtype, device=device)
    if dtype.itemsize * count <= SPILL_BYTES:
        return torch.empty(*shape, dtype=dtype)
    return torch.from_file(str(path), shared=True, size=count, dtype=dtype).view(*shape)


@contextmanager
def scratch_folder(place: Path | None) -> Iterator[Path]:
    """For large activations: in `place`, where an interrupted run left its own, or anywhere."""
    if place is None:
        with tempfile.TemporaryDirectory() as name:
            yield Path(name)
        return
    folder = empty(place / "activations")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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
    with explained(path, "the state of the learned rotations cannot be written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        keep(path, tensors)


def load_state(path: Path, start: RotationState) -> RotationState | None:
    """What `save_state` wrote, on the device of `start`; None where it is damaged."""
    if not is_kept(path):
        return None
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
    # Copied, because a file's tensors are at odd addresses, and products of such differ in their
    # last bits from those of aligned ones.
    moved = {name: getattr(state, name).to(start.r1.device, copy=True) for name in _NAMES}
    return RotationState(step=state.step, **moved)


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
        folder: Of this run alone; None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._path = None if folder is None else folder / "costs.safetensors"

    def load(self, layouts: int, shape: Sequence[int]) -> CostsSoFar | None:
        """What `keep` wrote for as many layouts and gradients (N, T, D); or None."""
        if self._path is None or not is_kept(self._path):
            return None
        try:
            tensors = load_file(self._path)
            costs, gradients = tensors["costs"], tensors["gradients"]
        except (OSError, SafetensorError, KeyError):
            return None
        fits = costs.shape[:1] == (layouts,) and tuple(gradients.shape) == tuple(shape)
        if not fits or not costs.isfinite().all() or not gradients.isfinite().all():
            return None
        # Copied: a file's tensors are at odd addresses.
        return CostsSoFar(costs=costs.clone(), gradients=tuple(row.clone() for row in gradients))

    def keep(self, found: CostsSoFar) -> None:
        """Replace what is kept.

        Raises:
            OutputError: The disk is full or cannot be written.
        """
        if self._path is None:
            return
        tensors = {"costs": found.costs, "gradients": torch.stack(found.gradients)}
        with explained(self._path, "what is measured cannot be kept"):
            keep(self._path, tensors)


class KeptLayers:
    """The finished layers of one checkpoint, recipe and calibration text.

    Args:
        folder: Exists and is this run's alone; None keeps nothing.
        layout: The recipe, and each linear's bits and group size.
    """

    def __init__(self, folder: Path | None, layout: Layout) -> None:
        self.folder = folder
        self._layout = layout

    def _layer_file(self, layer: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{layer:04}.safetensors"

    def _activations_file(self, layer: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{layer:04}.activations.safetensors"

    def finished(self) -> int:
        """How many layers, from the first on, need not be rounded again."""
        if self.folder is None:
            return 0
        count = 0
        while is_kept(self._layer_file(count)):
            count += 1
        while count and not is_kept(self._activations_file(count - 1)):
            count -= 1
        return count

    def entries(self, layer: int) -> list[QuantizedEntry]:
        """The linears of a finished layer, in canonical order.

        Raises:
            OutputError: Its file is damaged.
        """
        path = self._layer_file(layer)
        linears = network_of(self._layout.config).linears(layer)
        try:
            with safe_open(path, framework="pt") as file:
                return [self._entry(file, node.weight) for node in linears]
        except (OSError, SafetensorError, QuantizeError) as error:
            raise self._damaged(path, str(error)) from error

    def _entry(self, file: Any, name: str) -> QuantizedEntry:  # noqa: ANN401 (safetensors has no types)
        # Copied: a file's tensors are at odd addresses.
        tensor = QuantizedTensor(
            codes=file.get_tensor(f"{name}.codes").clone(),
            scales=file.get_tensor(f"{name}.scales").clone(),
            bits=self._layout.bits(name),
            group_size=self._layout.group_size(name),
        )
        if tensor.shape != matrix_shape(self._layout.config, name):
            raise QuantizeError(f"{name} has shape {tensor.shape}")
        return QuantizedEntry(name, tensor)

    def load_activations(self, layer: int, streams: Sequence[Tensor]) -> None:
        """Fill `streams` with what `keep` was given after this layer.

        Raises:
            OutputError: The file is damaged.
        """
        path = self._activations_file(layer)
        try:
            with safe_open(path, framework="pt") as file:
                for index, stream in enumerate(streams):
                    stream.copy_(file.get_tensor(str(index)))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise self._damaged(path, str(error)) from error

    def keep(
        self, layer: int, entries: Sequence[QuantizedEntry], streams: Sequence[Tensor]
    ) -> None:
        """A layer is finished; `streams` are float32 and what the next one starts from.

        Raises:
            OutputError: The disk is full or cannot be written.
        """
        if self.folder is None:
            return
        rows = {str(index): stream.cpu() for index, stream in enumerate(streams)}
        with explained(self.folder, "a finished layer cannot be kept"):
            keep(self._layer_file(layer), dict(_tensors(entries)))
            keep(self._activations_file(layer), rows)
        if layer:
            self._activations_file(layer - 1).unlink(missing_ok=True)

    def _damaged(self, path: Path, why: str) -> OutputError:
        return OutputError(
            f"{path}: what an earlier run kept is damaged: {why}; remove {self.folder} and start "
            "again"
        )


def _tensors(entries: Sequence[QuantizedEntry]) -> Iterator[tuple[str, Tensor]]:
    for entry in entries:
        assert isinstance(entry.value, QuantizedTensor)
        yield f"{entry.name}.codes", entry.value.codes
        yield f"{entry.name}.scales", entry.value.scales


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningPlace:
    """Where something is learned; on the CPU it decides about time alone."""

    device: Device = Device.CPU
    #: file that keeps the state between runs, in a folder of this run alone; None keeps nothing
    state: Path | None = None

    @property
    def folder(self) -> Path | None:
        """Where large activations may be in files; None: anywhere."""
        return None if self.state is None else self.state.parent


_ROTATIONS_FILE: Final = "rotations.safetensors"
_DISTILLATION_FILE: Final = "distillation.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkPlace:
    """It decides about time, and about the last bits of products (`arithmetic`)."""

    #: where it calibrates
    device: Device = Device.CPU
    #: exists, is this run's alone, and belongs to one checkpoint, recipe and calibration text; None
    #: keeps nothing between runs
    folder: Path | None = None

    @property
    def arithmetic(self) -> Arithmetic:
        """Of calibration's products."""
        return arithmetic_on(self.device)

    @property
    def learning(self) -> LearningPlace:
        """The part of it that learned rotations need."""
        return self._learning(_ROTATIONS_FILE)

    @property
    def distillation(self) -> LearningPlace:
        """The part of it that a distillation needs."""
        return self._learning(_DISTILLATION_FILE)

    def _learning(self, file: str) -> LearningPlace:
        state = None if self.folder is None else self.folder / file
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
