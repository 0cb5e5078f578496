"""A `.mlpackage` opened for reading: its manifest, its program, and its weights as mapped bytes.

Source: coremltools' `mlmodel/format/{Model,MIL}.proto` for the program, and `MILBlob/Blob/
StorageFormat.hpp` there for `weight.bin`: each blob has 64 bytes of metadata, which name its data.
Numbers of fewer than 8 bits are packed without gaps, lowest bit first.
"""

import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from llama_edge.core.errors import ArtifactError
from llama_edge.core.json_files import read_json_object
from llama_edge.core.regular import map_regular, read_regular
from llama_edge.formats.mil_messages import MIL_pb2, Model_pb2

#: Any class of `Model_pb2` or `MIL_pb2`; protobuf generates them without types.
Message = Any
_MODEL_PATH: Final = "@model_path"
_BLOB_SENTINEL: Final = 0xDEADBEEF
_BLOB_METADATA: Final = struct.Struct("<IIQQ")
_BLOB_METADATA_BYTES: Final = 64
#: What an array here can have, also where it is empty; Core ML itself takes 5 dimensions.
_MAX_RANK, _MAX_ELEMENTS = 32, 1 << 40
#: Of a program; its weights are in a file of their own.
MAX_SPEC_BYTES: Final = 256 << 20


@dataclass(frozen=True, slots=True)
class ElementType:
    """How a tensor's elements are stored, and the NumPy type that holds them when read."""

    name: str
    bits: int
    dtype: np.dtype[Any]
    #: what `weight.bin` calls it (MILBlob/Blob/BlobDataType.hpp); None: never stored there
    blob_code: int | None = None


def _whole_bytes(name: str, dtype: str, blob_code: int | None = None) -> ElementType:
    numpy_type: np.dtype[Any] = np.dtype(dtype)
    return ElementType(name, numpy_type.itemsize * 8, numpy_type, blob_code)


def _packed(name: str, bits: int, blob_code: int) -> ElementType:
    return ElementType(name, bits, np.dtype("i1" if name == "int4" else "u1"), blob_code)


#: By the number that `MIL.proto` gives a data type.
ELEMENT_TYPES: Final[Mapping[int, ElementType]] = {
    MIL_pb2.DataType.BOOL: _whole_bytes("bool", "?"),
    MIL_pb2.DataType.FLOAT16: _whole_bytes("fp16", "<f2", 1),
    MIL_pb2.DataType.FLOAT32: _whole_bytes("fp32", "<f4", 2),
    MIL_pb2.DataType.FLOAT64: _whole_bytes("fp64", "<f8"),
    MIL_pb2.DataType.INT8: _whole_bytes("int8", "i1", 4),
    MIL_pb2.DataType.INT16: _whole_bytes("int16", "<i2", 6),
    MIL_pb2.DataType.INT32: _whole_bytes("int32", "<i4", 14),
    MIL_pb2.DataType.INT64: _whole_bytes("int64", "<i8"),
    MIL_pb2.DataType.UINT8: _whole_bytes("uint8", "u1", 3),
    MIL_pb2.DataType.UINT16: _whole_bytes("uint16", "<u2", 7),
    MIL_pb2.DataType.UINT32: _whole_bytes("uint32", "<u4", 15),
    MIL_pb2.DataType.UINT64: _whole_bytes("uint64", "<u8"),
    MIL_pb2.DataType.INT4: _packed("int4", 4, 8),
    MIL_pb2.DataType.UINT1: _packed("uint1", 1, 9),
    MIL_pb2.DataType.UINT2: _packed("uint2", 2, 10),
    MIL_pb2.DataType.UINT3: _packed("uint3", 3, 12),
    MIL_pb2.DataType.UINT4: _packed("uint4", 4, 11),
    MIL_pb2.DataType.UINT6: _packed("uint6", 6, 13),
}


def _unpack_pairs(raw: NDArray[np.uint8], *, signed: bool) -> NDArray[Any]:
    """Two numbers of 4 bits from each byte, low half first: int8 or uint8, twice as many.

    A byte becomes a little-endian word whose bytes are its halves: whole words at a time, which
    processors do side by side, and three times as fast as to look each byte up in a table.
    """
    words = raw.astype("<u2")
    high = (words >> 4) << 8
    words &= 15
    words |= high
    halves = words.view(np.uint8)
    if not signed:
        return halves
    halves ^= 8  # two's complement: 8 to 15 stand for -8 to -1
    halves -= 8
    return halves.view(np.int8)


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A constant as the package holds it; nothing is unpacked before it is read."""

    element: ElementType
    shape: tuple[int, ...]
    data: memoryview

    @property
    def size_bytes(self) -> int:
        """Bytes that it takes in the package."""
        return len(self.data)

    def read(self) -> NDArray[Any]:
        """The whole tensor, in `element.dtype`; never a view of the file."""
        return self._elements(0, math.prod(self.shape)).reshape(self.shape)

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """`tensor[start:stop]`, which unpacks these rows alone."""
        width = math.prod(self.shape[1:])
        values = self._elements(start * width, stop * width)
        return values.reshape(stop - start, *self.shape[1:])

    def _elements(self, start: int, stop: int) -> NDArray[Any]:
        bits, count = self.element.bits, stop - start
        first, skipped = divmod(start * bits, 8)
        raw = np.frombuffer(self.data[first : -(-stop * bits // 8)], np.uint8)
        if bits >= 8:
            return raw.view(self.element.dtype).copy()
        if bits == 4:
            codes = _unpack_pairs(raw, signed=self.element.dtype.kind == "i")
            return codes[skipped // 4 : skipped // 4 + count]
        stream = np.unpackbits(raw, bitorder="little")[skipped : skipped + count * bits]
        return np.packbits(stream.reshape(count, bits), axis=1, bitorder="little").reshape(count)


def constant_shape(tensor: Message, where: str) -> tuple[int, ...]:
    """The shape of a `MIL.proto` tensor type.

    Raises:
        ArtifactError: A dimension is not known before the run, or no array has such a shape.
    """
    for dimension in tensor.dimensions:
        if dimension.WhichOneof("dimension") != "constant":
            raise ArtifactError(f"{where}: a dimension has no fixed size; a constant needs one")
    shape = tuple(dimension.constant.size for dimension in tensor.dimensions)
    if len(shape) > _MAX_RANK or math.prod(max(size, 1) for size in shape) > _MAX_ELEMENTS:
        raise ArtifactError(
            f"{where}: its shape is {shape!r:.80}; at most {_MAX_RANK} dimensions and "
            f"{_MAX_ELEMENTS} elements are read: it is damaged; copy or export the package again"
        )
    return shape


def element_type(tensor: Message, where: str) -> ElementType:
    """The element type of a `MIL.proto` tensor type.

    Raises:
        ArtifactError: It is none that is read here.
    """
    try:
        return ELEMENT_TYPES[tensor.dataType]
    except KeyError as error:
        raise ArtifactError(
            f"{where}: elements of type {tensor.dataType} of MIL.proto are not read here; "
            f"known: {', '.join(kind.name for kind in ELEMENT_TYPES.values())}"
        ) from error


class MLPackage:
    """A package's `spec` (`Model_pb2.Model`), and the constants that its program names.

    Args:
        path: The folder.

    Raises:
        ArtifactError: It is no package, is damaged, or names files outside of itself.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._data = path / "Data"
        model = self._root_model()
        self._model_folder = model.parent
        self._weights: dict[str, memoryview] = {}
        self.spec = Model_pb2.Model()
        try:
            self.spec.ParseFromString(read_regular(model, MAX_SPEC_BYTES))
        except DecodeError as error:
            raise ArtifactError(f"{model}: cannot be read as a Core ML model: {error}") from error
        if self.spec.WhichOneof("Type") != "mlProgram":
            raise ArtifactError(
                f"{model}: holds a {self.spec.WhichOneof('Type') or 'model without a type'}; "
                "an mlProgram is needed"
            )
        if not self.spec.mlProgram.functions:
            raise ArtifactError(f"{model}: its program has no function")

    @property
    def metadata(self) -> Mapping[str, str]:
        """What its author wrote next to the program, by key."""
        return dict(self.spec.description.metadata.userDefined)

    @property
    def functions(self) -> tuple[str, ...]:
        """Names of the program's functions, the default one first."""
        default = self.spec.description.defaultFunctionName or "main"
        return tuple(
            sorted(self.spec.mlProgram.functions, key=lambda name: (name != default, name))
        )

    def described(self, name: str) -> Message:
        """Inputs, outputs and states of a function: a `FunctionDescription`, or all of them.

        Raises:
            ArtifactError: Several functions are there and this one is not described.
        """
        description = self.spec.description
        if not description.functions:
            return description
        for function in description.functions:
            if function.name == name:
                return function
        raise ArtifactError(f"{self.path}: function {name!r} has no description")

    def function(self, name: str) -> Message:
        """A `MIL_pb2.Function`.

        Raises:
            ArtifactError: The program has none of that name.
        """
        functions = self.spec.mlProgram.functions
        if name not in functions:
            raise ArtifactError(
                f"{self.path}: has no function {name!r}; it has: {', '.join(sorted(functions))}"
            )
        return functions[name]

    def block(self, name: str) -> Message:
        """The `MIL_pb2.Block` of a function, in the opset that the function chooses.

        Raises:
            ArtifactError: The program has no such function, or the function no such block.
        """
        function = self.function(name)
        if function.opset not in function.block_specializations:
            raise ArtifactError(
                f"{self.path}: function {name!r} has no block for its opset {function.opset!r}"
            )
        return function.block_specializations[function.opset]

    def constant(self, value: Message, where: str) -> StoredTensor | str:
        """A `MIL_pb2.Value`: a tensor, or one string.

        Args:
            value: The value.
            where: What it belongs to, for the error's text.

        Raises:
            ArtifactError: Its bytes are absent, outside of the file or fewer than its shape needs.
        """
        where = f"{self.path}: {where}"
        if value.type.WhichOneof("type") != "tensorType":
            raise ArtifactError(f"{where}: a {value.type.WhichOneof('type')} is not read here")
        tensor = value.type.tensorType
        if value.WhichOneof("value") == "blobFileValue":
            element, shape = element_type(tensor, where), constant_shape(tensor, where)
            data = self._blob(value.blobFileValue, element, math.prod(shape), where)
            return StoredTensor(element, shape, data)
        held = value.immediateValue.tensor
        kind = held.WhichOneof("value")
        if kind is None:
            raise ArtifactError(f"{where}: has no value")
        values = getattr(held, kind).values
        if tensor.dataType == MIL_pb2.DataType.STRING:
            if kind != "strings" or len(values) != 1:
                raise ArtifactError(f"{where}: holds {len(values)} {kind}; one string is needed")
            return str(values[0])
        element, shape = element_type(tensor, where), constant_shape(tensor, where)
        data = memoryview(values if kind == "bytes" else _pack(values, element, where))
        _check_size(len(data), element, math.prod(shape), where)
        return StoredTensor(element, shape, data)

    def _root_model(self) -> Path:
        place = self.path / "Manifest.json"
        manifest = read_json_object(place)
        items = manifest.get("itemInfoEntries")
        root = manifest.get("rootModelIdentifier")
        item = items.get(root) if isinstance(items, dict) and isinstance(root, str) else None
        name = item.get("path") if isinstance(item, dict) else None
        if not isinstance(name, str):
            raise ArtifactError(f"{place}: rootModelIdentifier {root!r} names no item with a path")
        return self._inside(self._data, name)

    def _inside(self, folder: Path, name: str) -> Path:
        """A file of the package, links followed."""
        path = folder / PurePosixPath(name)
        try:
            inside = path.resolve().is_relative_to(self.path.resolve())
            found = path.is_file()
        except (OSError, ValueError, RuntimeError) as error:  # too long, no UTF-8, a link to itself
            raise ArtifactError(
                f"{self.path}: names {name!r:.80}, which is no path of a file: {error!s:.80}; copy "
                "or export the package again"
            ) from error
        if not inside:
            raise ArtifactError(f"{self.path}: names {name!r}, which lies outside of the package")
        if not found:
            raise ArtifactError(f"{path}: the file is missing; copy or export the package again")
        return path

    def _weight_file(self, name: str) -> memoryview:
        if name not in self._weights:
            prefix, _, relative = name.partition("/")
            if prefix != _MODEL_PATH:
                raise ArtifactError(
                    f"{self.path}: weights in {name!r}; a path below {_MODEL_PATH} is needed"
                )
            path = self._inside(self._model_folder, relative)
            self._weights[name] = map_regular(path)
        return self._weights[name]

    def _blob(self, place: Message, element: ElementType, count: int, where: str) -> memoryview:
        view = self._weight_file(place.fileName)
        where = f"{where}: the blob at {place.offset} of {place.fileName}"
        if place.offset + _BLOB_METADATA_BYTES > len(view):
            raise ArtifactError(f"{where} lies after the file's end at {len(view)}")
        sentinel, code, size, start = _BLOB_METADATA.unpack_from(view, place.offset)
        if sentinel != _BLOB_SENTINEL:
            raise ArtifactError(f"{where} begins with {sentinel:#x} and not {_BLOB_SENTINEL:#x}")
        if code != element.blob_code:
            raise ArtifactError(
                f"{where} has elements of type {code}; {element.name} has {element.blob_code}"
            )
        if start + size > len(view):
            raise ArtifactError(
                f"{where} has {size} bytes at {start}, after the file's end at {len(view)}"
            )
        _check_size(size, element, count, where)
        return view[start : start + size]


def _check_size(size: int, element: ElementType, count: int, where: str) -> None:
    needed = -(-count * element.bits // 8)
    if size != needed:
        raise ArtifactError(
            f"{where} has {size} bytes; {count} elements of {element.name} take {needed}"
        )


def _pack(values: Iterable[object], element: ElementType, where: str) -> bytes:
    """Numbers that the program holds one by one, as the bytes of their type."""
    try:
        return np.array(list(values), element.dtype).tobytes()
    except (OverflowError, ValueError, TypeError) as error:
        raise ArtifactError(f"{where}: holds what no {element.name} is: {error}") from error
