"""Layers that are rounded already, on disk, with the activations that the next one starts from.

A folder holds `LAYER.safetensors` for each finished layer, codes and scales, and after the last
of them `LAYER.activations.safetensors`: the residual streams, bit by bit. What is written last
counts: a layer without its activations after it is done again.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llama_edge.core.errors import OutputError, QuantizeError
from llama_edge.core.packing import QuantizedTensor
from llama_edge.formats.quantized_checkpoint import (
    Layout,
    QuantizedEntry,
    matrix_shape,
    write_safetensors,
)
from llama_edge.models.network import network_of
from llama_edge.quantize.whole_file import whole_file


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
        while _is_whole(self._layer_file(count)):
            count += 1
        while count and not _is_whole(self._activations_file(count - 1)):
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
        # Copied: a file's tensors lie at odd addresses.
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
        tensors = dict(_tensors(entries))
        kinds = {torch.int8: "I8", torch.bfloat16: "BF16"}
        shapes = {
            name: (kinds[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()
        }
        rows = {str(index): stream for index, stream in enumerate(streams)}
        row_shapes = {name: ("F32", tuple(row.shape)) for name, row in rows.items()}
        try:
            with whole_file(self._layer_file(layer)) as path:
                write_safetensors(path, shapes, tensors.items())
            with whole_file(self._activations_file(layer)) as path:
                write_safetensors(path, row_shapes, rows.items())
        except OSError as error:
            raise OutputError(
                f"{self.folder}: a finished layer cannot be kept: {error.strerror}; free some "
                "space, or set LLAMA_EDGE_CACHE to a folder that can be written"
            ) from error
        if layer:
            self._activations_file(layer - 1).unlink(missing_ok=True)

    def _damaged(self, path: Path, why: str) -> OutputError:
        return OutputError(
            f"{path}: what an earlier run kept is damaged: {why}; remove {self.folder} and start "
            "again"
        )


def _is_whole(path: Path) -> bool:
    """Whether it is there, and as long as its header says."""
    try:
        with safe_open(path, framework="pt"):
            return True
    except (OSError, SafetensorError):
        return False


def _tensors(entries: Sequence[QuantizedEntry]) -> Iterator[tuple[str, Tensor]]:
    for entry in entries:
        assert isinstance(entry.value, QuantizedTensor)
        yield f"{entry.name}.codes", entry.value.codes
        yield f"{entry.name}.scales", entry.value.scales
