"""The GGUF container: metadata and tensor table of an untrusted file, every read bounds-checked.

The `gguf` package's own reader trusts lengths and counts (a lying array length makes it loop for
ever), so the header is parsed here and the package is used for what it is best at: block formats.
Source of the layout: `docs/gguf.md` in ggml.
"""

import mmap
import struct
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

from llama_edge.checkpoints.recognise import GGUF_MAGIC
from llama_edge.core.errors import CheckpointError
from llama_edge.core.regular import open_regular

_STRING, _ARRAY = 8, 9
_SCALARS: Final = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_LENGTH: Final = struct.Struct("<Q")
_MIN_ENTRY_BYTES: Final = 12  # shortest possible metadata entry or tensor record
_MAX_DIMENSIONS: Final = 4
_ROW_CHUNK_VALUES: Final = 1 << 24  # values dequantized at a time: 64 MiB as float32


@cache
def is_readable(kind: GGMLQuantizationType) -> bool:
    """Whether the `gguf` package turns this type into numbers."""
    _, block_bytes = GGML_QUANT_SIZES[kind]
    try:
        with np.errstate(all="ignore"):  # a block of zeros has no scale
            dequantize(np.zeros((1, block_bytes), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


@cache
def readable_types() -> tuple[str, ...]:
    """The names of all readable types."""
    return tuple(kind.name for kind in GGMLQuantizationType if is_readable(kind))


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRecord:
    """Where a tensor lies; `shape` is row-major, outermost first."""

    shape: tuple[int, ...]
    type: GGMLQuantizationType
    start: int
    size_bytes: int


class _Cursor:
    """Reads little-endian values one after another and never past the end."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path = path
        self._data = data
        self.position = 0

    def take(self, size: int, what: str) -> bytes:
        end = self.position + size
        if end > len(self._data):
            raise CheckpointError(
                f"{self._path}: {what} at byte {self.position} needs {size} bytes and the file "
                f"ends after {len(self._data)}; it is truncated or damaged"
            )
        piece = self._data[self.position : end]
        self.position = end
        return piece

    def scalar(self, kind: int, what: str) -> Any:  # noqa: ANN401
        if kind not in _SCALARS:
            raise CheckpointError(f"{self._path}: {what} has the unknown value type {kind}")
        layout = _SCALARS[kind]
        return struct.unpack(layout, self.take(struct.calcsize(layout), what))[0]

    def count(self, what: str, entry_bytes: int) -> int:
        """A 64-bit count of entries, each of at least `entry_bytes`."""
        number: int = self.scalar(10, what)
        if number * entry_bytes > len(self._data) - self.position:
            raise CheckpointError(
                f"{self._path}: {what} is {number}, more than the file of {len(self._data)} bytes "
                "can hold; it is damaged"
            )
        return number

    def string(self, what: str) -> str:
        raw = self.take(self.count(f"length of {what}", 1), what)
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{self._path}: {what} is not UTF-8: {error}") from error

    def value(self, what: str) -> Any:  # noqa: ANN401
        kind: int = self.scalar(4, f"type of {what}")
        if kind == _STRING:
            return self.string(what)
        if kind != _ARRAY:
            return self.scalar(kind, what)
        kind = self.scalar(4, f"element type of {what}")
        if kind == _STRING:
            return self._strings(what)
        if kind not in _SCALARS:
            raise CheckpointError(f"{self._path}: {what} is an array of unknown type {kind}")
        layout = np.dtype(_SCALARS[kind])
        raw = self.take(self.count(f"length of {what}", layout.itemsize) * layout.itemsize, what)
        return np.frombuffer(raw, layout).tolist()

    def _strings(self, what: str) -> list[str]:
        """As `string`, for a vocabulary's hundred thousands: one bounds check each."""
        count = self.count(f"length of {what}", 8)
        position, size = self.position, len(self._data)
        pieces = []
        for _ in range(count):
            start = position + 8
            if start > size:
                break
            position = start + _LENGTH.unpack_from(self._data, position)[0]
            pieces.append(self._data[start:position])
        if len(pieces) < count or position > size:
            raise CheckpointError(
                f"{self._path}: {what} goes beyond the file's {size} bytes; it is truncated or "
                "damaged"
            )
        self.position = position
        try:
            return [piece.decode() for piece in pieces]
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{self._path}: {what} is not UTF-8: {error}") from error


class GgufFile:
    """An open GGUF file: `metadata`, `tensors`, and `read` for one tensor's values."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open_regular(path, CheckpointError) as stream:
                self._data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: an empty file
            raise CheckpointError(f"{path}: cannot be opened: {error}") from error
        cursor = _Cursor(path, self._data)
        if cursor.take(4, "the magic") != GGUF_MAGIC:
            raise CheckpointError(f"{path}: does not begin with GGUF; it is another kind of file")
        number = cursor.scalar(4, "the version")
        if number & 0xFFFF == 0:
            raise CheckpointError(
                f"{path}: is a big-endian GGUF file, as gguf-convert-endian makes for IBM Z; take "
                "the little-endian one"
            )
        if number not in (2, 3):
            raise CheckpointError(
                f"{path}: has GGUF version {number}; 2 and 3 are read: convert the model again "
                "with a current llama.cpp"
            )
        tensors = cursor.count("the number of tensors", _MIN_ENTRY_BYTES)
        entries = cursor.count("the number of metadata entries", _MIN_ENTRY_BYTES)
        self.metadata: dict[str, Any] = {}
        for _ in range(entries):
            key = cursor.string("a metadata key")
            self.metadata[key] = cursor.value(key)
        self.tensors = self._tensor_table(cursor, tensors)

    def _tensor_table(self, cursor: _Cursor, count: int) -> dict[str, TensorRecord]:
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= 1 << 16:
            raise CheckpointError(f"{self.path}: general.alignment is {alignment!r}")
        raw = {}
        for _ in range(count):
            name = cursor.string("a tensor name")
            dimensions = cursor.scalar(4, name)
            if name in raw or not 0 < dimensions <= _MAX_DIMENSIONS:
                raise CheckpointError(
                    f"{self.path}: {name} appears twice or has {dimensions} dimensions"
                )
            shape = tuple(cursor.scalar(10, name) for _ in range(dimensions))[::-1]
            raw[name] = (shape, cursor.scalar(4, name), cursor.scalar(10, name))
        base = -(-cursor.position // alignment) * alignment
        table = {
            name: self._record(name, shape, kind, base + offset)
            for name, (shape, kind, offset) in raw.items()
        }
        self._check_overlap(table)
        return table

    def _record(self, name: str, shape: tuple[int, ...], kind: int, start: int) -> TensorRecord:
        try:
            type_ = GGMLQuantizationType(kind)
        except ValueError as error:
            raise CheckpointError(
                f"{self.path}: {name} is quantized as type {kind}, which the installed gguf "
                f"{version('gguf')} does not know; install a newer one, or take a file of another "
                "quantization"
            ) from error
        if not is_readable(type_):
            raise CheckpointError(
                f"{self.path}: {name} is stored as {type_.name}, which is not read; take a file of "
                f"one of these: {', '.join(readable_types())}"
            )
        block_values, block_bytes = GGML_QUANT_SIZES[type_]
        values = int(np.prod([int(length) for length in shape], dtype=object))
        if values == 0 or shape[-1] % block_values:
            raise CheckpointError(
                f"{self.path}: {name} has shape {shape}; {type_.name} stores rows of a "
                f"multiple of {block_values}"
            )
        size = values // block_values * block_bytes
        if start + size > len(self._data):
            raise CheckpointError(
                f"{self.path}: {name} claims bytes {start} to {start + size} and the file has "
                f"{len(self._data)}; its offset is wrong or the file is truncated"
            )
        return TensorRecord(shape=shape, type=type_, start=start, size_bytes=size)

    def _check_overlap(self, table: dict[str, TensorRecord]) -> None:
        end, before = 0, ""
        for name, record in sorted(table.items(), key=lambda item: item[1].start):
            if record.start < end:
                raise CheckpointError(
                    f"{self.path}: {name} begins at byte {record.start}, inside {before}; "
                    "an offset is wrong"
                )
            end, before = record.start + record.size_bytes, name

    def raw(self, name: str) -> np.ndarray:
        """The stored bytes, uint8 (size_bytes,), not copied."""
        record = self.tensors[name]
        return np.frombuffer(self._data, np.uint8, record.size_bytes, record.start)

    def read(self, name: str) -> Tensor:
        """The tensor's values, float32."""
        record = self.tensors[name]
        columns = record.shape[-1]
        rows = self.raw(name).reshape(-1, record.size_bytes // _rows(record))
        out = np.empty((len(rows), columns), np.float32)
        step = max(1, _ROW_CHUNK_VALUES // columns)
        for start in range(0, len(rows), step):
            piece = slice(start, start + step)
            out[piece] = dequantize(rows[piece], record.type).reshape(-1, columns)
        return torch.from_numpy(out).view(record.shape)


def _rows(record: TensorRecord) -> int:
    return int(np.prod(record.shape[:-1], dtype=np.int64))
