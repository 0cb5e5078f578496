"""ONNX external data: the weights next to `model.onnx`, written and read one tensor at a time."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import onnx
import torch
from google.protobuf.message import DecodeError, Message
from onnx import TensorProto
from torch import Tensor

from llama_edge.core.errors import ArtifactError
from llama_edge.core.files import open_new
from llama_edge.core.packing import tensor_bytes
from llama_edge.core.regular import map_regular, read_regular

MODEL_FILE: Final = "model.onnx"
DATA_FILE: Final = "model.onnx.data"

#: A graph without its weights: SmolLM2's takes 0.2 MB, a 3B's as much.
MAX_GRAPH_BYTES: Final = 64 << 20
#: A large tensor starts on a page, so that a runtime can map it; a small one on a cache line.
_PAGE, _CACHE_LINE = 4096, 64
#: Of a 64-bit number.
_MAX_DIGITS: Final = 20

_ONNX_DTYPE: Final[Mapping[torch.dtype, int]] = {
    torch.float32: TensorProto.FLOAT,
    torch.bfloat16: TensorProto.BFLOAT16,
    torch.uint8: TensorProto.UINT8,
}
_TORCH_DTYPE: Final = {onnx_dtype: dtype for dtype, onnx_dtype in _ONNX_DTYPE.items()}


class ExternalDataWriter:
    """Appends tensors to a data file; a context manager. The same tensors give the same bytes."""

    def __init__(self, path: Path) -> None:
        self._location = path.name
        self._stream = open_new(path)

    def write(self, name: str, tensor: Tensor) -> TensorProto:
        """Append one tensor (float32, bfloat16 or uint8) and return its initializer."""
        content = tensor_bytes(tensor)
        start = self._stream.tell()
        start += -start % (_PAGE if len(content) >= _PAGE else _CACHE_LINE)
        self._stream.write(bytes(start - self._stream.tell()))
        self._stream.write(content)
        proto = TensorProto(
            name=name,
            dims=tensor.shape,
            data_type=_ONNX_DTYPE[tensor.dtype],
            data_location=TensorProto.EXTERNAL,
        )
        place = {"location": self._location, "offset": start, "length": len(content)}
        for key, value in place.items():
            proto.external_data.add(key=key, value=str(value))
        return proto

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stream.close()


def load_graph(path: Path) -> onnx.ModelProto:
    """Parse an untrusted model file without its external data.

    Raises:
        ArtifactError: The file is missing, too large to be a graph without weights, or no ONNX.
    """
    try:
        model = onnx.load_model_from_string(read_regular(path, MAX_GRAPH_BYTES))
    except DecodeError as error:
        raise ArtifactError(f"{path}: not readable as an ONNX model: {error}") from error
    _check_texts(path, model)
    return model


def _check_texts(path: Path, model: onnx.ModelProto) -> None:
    """Texts that are not UTF-8 are refused: protobuf gives them as bytes, in a proto2 file.

    Raises:
        ArtifactError: There is one.
    """
    waiting: list[Message] = [model]
    while waiting:
        part = waiting.pop()
        for field, value in part.ListFields():
            values = value if field.is_repeated else [value]
            if field.type == field.TYPE_MESSAGE:
                waiting += values
            elif field.type == field.TYPE_STRING and any(
                isinstance(text, bytes) for text in values
            ):
                raise ArtifactError(
                    f"{path}: {field.name} of a {part.DESCRIPTOR.name} is {value!r:.80}, which is "
                    "not UTF-8: the model is damaged; copy or export it again"
                )


@dataclass(frozen=True, slots=True)
class ExternalPlace:
    """Where in which file an initializer's bytes are, as the model says."""

    location: str
    offset: int
    #: None: the model does not say
    length: int | None

    @classmethod
    def of(cls, path: Path, proto: TensorProto) -> Self:
        """Read it.

        Args:
            path: The model file, for messages.
            proto: An initializer that is stored as external data.

        Raises:
            ArtifactError: A number is none.
        """
        entries = {entry.key: entry.value for entry in proto.external_data}

        def number(key: str) -> int:
            text = entries[key]
            if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
                raise ArtifactError(
                    f"{path}: {proto.name} has {key} {text!r:.80}; a number of bytes is needed: it "
                    "is damaged; copy or export it again"
                )
            return int(text)

        return cls(
            location=entries.get("location", ""),
            offset=number("offset") if "offset" in entries else 0,
            length=number("length") if "length" in entries else None,
        )


class ExternalDataReader:
    """A model's stored tensors by name, each mapped from the data file when it is asked for."""

    def __init__(self, model_path: Path, model: onnx.ModelProto) -> None:
        self._path = model_path
        self._data = model_path.with_name(DATA_FILE)
        self._tensors = {proto.name: proto for proto in model.graph.initializer}
        self._view = map_regular(self._data)

    def row_items(self, name: str) -> int:
        """Items of one tensor for each index of its first axis, as the file declares it.

        Raises:
            ArtifactError: It is absent.
        """
        return math.prod(self._proto(name).dims[1:])

    def _proto(self, name: str) -> TensorProto:
        proto = self._tensors.get(name)
        if proto is None:
            raise ArtifactError(f"{self._path}: initializer {name} is missing; export it again")
        return proto

    def read(self, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        """A copy of one tensor, which must be stored with this dtype and shape.

        Raises:
            ArtifactError: It is absent, of another type or shape, or lies outside the data file.
        """
        proto = self._proto(name)
        found = (_TORCH_DTYPE.get(proto.data_type), tuple(proto.dims))
        if found != (dtype, shape):
            raise ArtifactError(
                f"{self._path}: {name} is {found[0]} {found[1]}; the model's config needs "
                f"{dtype} {shape}"
            )
        size_bytes = math.prod(shape) * dtype.itemsize
        offset = self._offset(proto, size_bytes)
        stored = bytearray(self._view[offset : offset + size_bytes])
        return torch.frombuffer(stored, dtype=dtype).view(shape)

    def _offset(self, proto: TensorProto, size_bytes: int) -> int:
        """Where a tensor starts; the file's word is checked against the file's size."""
        place = ExternalPlace.of(self._path, proto)
        if proto.data_location != TensorProto.EXTERNAL or place.location != DATA_FILE:
            raise ArtifactError(
                f"{self._path}: {proto.name} is stored in {place.location!r}; "
                f"only {DATA_FILE!r} next to the model is read"
            )
        if place.length != size_bytes or not size_bytes:
            raise ArtifactError(
                f"{self._path}: {proto.name} has offset {place.offset} and length {place.length}; "
                f"its shape needs {size_bytes} bytes"
            )
        if place.offset + size_bytes > len(self._view):
            raise ArtifactError(
                f"{self._data}: {proto.name} ends at byte {place.offset + size_bytes}, the file "
                f"at {len(self._view)}; it is truncated or damaged: copy or export it again"
            )
        return place.offset
