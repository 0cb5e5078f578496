"""In a child process: what `torch.save` wrote, down to where in the file each tensor is.

A pickle is a program. This one runs with a table of names in place of Python's imports, and all of
them make plain values: nothing that the file names is imported or called, and no tensor is read.
Still a pickle can ask for any amount of memory or time, so the process has limits.

Two forms exist: since 2020 (torch 1.6) a zip archive whose `data.pkl` names the member of each
storage, and before that one file of pickles with the storages one after another.
Source: `torch/serialization.py` and `torch/_utils.py`.
"""

import math
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

from llama_edge.confined.child import RefusedError

_ZIP: Final = b"PK\x03\x04"
#: Torch's magic number and the version of the form, a pickle each.
_OLD: Final = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + pickle.dumps(1001, protocol=2)
_LOCAL_HEADER: Final = struct.Struct("<4s22xHH")
#: A model's has 0.1 MB, one of a training run with an optimizer's state 0.3 MB.
_MAX_PICKLE_BYTES: Final = 32 << 20
_LARGEST: Final = 1 << 48
#: Where a training run keeps the state dict among other things.
_STATE_DICT_KEYS: Final = ("model", "state_dict", "model_state_dict", "module")
_MAX_NESTING: Final = 4

#: storage class -> dtype and bytes of an element
_STORAGES: Final[Mapping[str, tuple[str, int]]] = {
    "DoubleStorage": ("float64", 8),
    "FloatStorage": ("float32", 4),
    "HalfStorage": ("float16", 2),
    "BFloat16Storage": ("bfloat16", 2),
    "LongStorage": ("int64", 8),
    "IntStorage": ("int32", 4),
    "ShortStorage": ("int16", 2),
    "CharStorage": ("int8", 1),
    "ByteStorage": ("uint8", 1),
    "BoolStorage": ("bool", 1),
    "ComplexFloatStorage": ("complex64", 8),
    "ComplexDoubleStorage": ("complex128", 16),
    "QInt8Storage": ("qint8", 1),
    "QUInt8Storage": ("quint8", 1),
    "QInt32Storage": ("qint32", 4),
    "UntypedStorage": ("uint8", 1),
}
DTYPE_BYTES: Final[Mapping[str, int]] = {
    **dict(_STORAGES.values()),
    **{"uint16": 2, "uint32": 4, "uint64": 8},
    **dict.fromkeys(("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"), 1),
    "float8_e8m0fnu": 1,
}


@dataclass(frozen=True, slots=True)
class _Name:
    """Something that the pickle names, which stands for itself."""

    text: str


@dataclass(frozen=True, slots=True)
class _Storage:
    key: str
    dtype: str
    #: elements before the storage's own first one, in the old form's views
    first: int = 0


@dataclass(frozen=True, slots=True)
class _Tensor:
    storage: _Storage
    dtype: str
    #: in elements of the dtype
    first: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Other:
    """An object that is no tensor with values of its own; `text` says what. It keeps nothing."""

    text = "an object"

    def __init__(self, *_: object, **__: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


def _integers(values: Any, what: str) -> tuple[int, ...]:  # noqa: ANN401
    if not isinstance(values, (tuple, list)) or len(values) > 8:
        raise RefusedError(f"{what} of a tensor is no list of at most 8 numbers")
    return tuple(_count(value, what) for value in values)


def _count(value: Any, what: str) -> int:  # noqa: ANN401
    if type(value) is not int or not 0 <= value < _LARGEST:
        raise RefusedError(f"{what} of a tensor is no number from 0 to 2^48")
    return value


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: object) -> _Tensor:  # noqa: ANN401
    if not isinstance(storage, _Storage):
        raise RefusedError("a tensor in it has no storage")
    return _Tensor(
        storage=storage,
        dtype=storage.dtype,
        first=_count(offset, "the offset"),
        shape=_integers(shape, "the shape"),
        strides=_integers(strides, "the strides"),
    )


def _tensor_of_dtype(*arguments: Any) -> _Tensor:  # noqa: ANN401
    """`_rebuild_tensor_v3`: the dtype is an argument of its own, the storage is one of bytes."""
    made = _tensor(*arguments[:4])
    dtype = arguments[6]
    if not isinstance(dtype, _Name):
        raise RefusedError("a tensor in it has no dtype")
    name = dtype.text.removeprefix("torch.")
    return _Tensor(made.storage, name, made.first, made.shape, made.strides)


def _first_argument(value: Any, *_: object) -> Any:  # noqa: ANN401
    return value


def _other(text: str) -> type[_Other]:
    return type("_Other", (_Other,), {"text": text})


#: What a state dict and the rest of a training run's file are made of.
_KNOWN: Final[Mapping[str, Any]] = {
    "collections.OrderedDict": OrderedDict,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
    "torch._utils._rebuild_parameter": _first_argument,
    "torch._utils._rebuild_parameter_with_state": _first_argument,
    "torch.Size": _first_argument,
    "torch.device": _other("a device"),
    "torch.serialization._get_layout": _other("a layout"),
    "torch._utils._rebuild_sparse_tensor": _other("a sparse tensor"),
    "torch._utils._rebuild_nested_tensor": _other("a nested tensor"),
    "torch._utils._rebuild_qtensor": _other("a tensor of torch's own quantization"),
    "torch._utils._rebuild_meta_tensor_no_storage": _other("a tensor without values"),
    "builtins.set": _other("a set"),
    "_codecs.encode": _other("bytes"),
    "argparse.Namespace": _other("arguments"),
    "numpy.dtype": _other("a numpy dtype"),
    "numpy.core.multiarray.scalar": _other("a numpy number"),
    "numpy._core.multiarray.scalar": _other("a numpy number"),
}
_PYTHON_2: Final = {"__builtin__": "builtins"}


class _Unpickler(pickle.Unpickler):
    """Makes the values above and containers of them."""

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401
        full = f"{_PYTHON_2.get(module, module)}.{name}"
        if full in _KNOWN:
            return _KNOWN[full]
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _Name(name)
        if module == "torch" and name in DTYPE_BYTES:
            return _Name(full)
        raise RefusedError(
            f"holds Python's {full[:80]}; nothing of it was run, for only tensors are read. "
            "Save the state dict alone: torch.save(model.state_dict(), FILE)"
        )

    def persistent_load(self, pid: Any) -> _Storage:  # noqa: ANN401
        kind, storage, key, *rest = pid
        if kind not in ("storage", b"storage") or not isinstance(storage, _Name):
            raise RefusedError("refers to something else than storages of tensors")
        dtype, _ = _STORAGES[storage.text]
        view = rest[2] if len(rest) > 2 else None
        first = 0 if view is None else _count(view[1], "the offset of the storage")
        return _Storage(str(key), dtype, first)


@contextmanager
def _pickle() -> Iterator[None]:
    """What `pickle` and a value's own methods raise for a program that makes no sense."""
    try:
        yield
    except (
        pickle.UnpicklingError,
        ArithmeticError,
        AttributeError,
        EOFError,
        ImportError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
        struct.error,
    ) as error:
        raise RefusedError(
            f"is truncated or damaged ({type(error).__name__}: {str(error)[:60]}); download or "
            "copy it again"
        ) from error


def answer(request: dict[str, Any]) -> Any:  # noqa: ANN401
    """Tensors of the state dict in the file, and what else is in it under names.

    Args:
        request: `descriptor` of the open file.

    Returns:
        `tensors`: name -> dtype, shape, strides in elements, position of the first element in
        bytes, and the two positions between which its storage is; `others`: name -> what it is.
    """
    descriptor = os.dup(request["descriptor"])
    with os.fdopen(descriptor, "rb") as file:
        file.seek(0)
        start = file.read(len(_ZIP))
        file.seek(0)
        value, places = _read_zip(file) if start == _ZIP else _read_old(file)
    return _described(_state_dict(value), places)


#: storage key -> first and one past the last byte of it in the file
_Places = Mapping[str, tuple[int, int]]


def _read_zip(file: BinaryIO) -> tuple[object, _Places]:
    try:
        members = zipfile.ZipFile(file).infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
        raise RefusedError(
            f"is truncated or damaged ({error}); download or copy it again"
        ) from error
    folder = next((m.filename[:-8] for m in members if m.filename.endswith("data.pkl")), None)
    if folder is None:
        raise RefusedError("is a zip archive without data.pkl; torch.save did not write it")
    by_name = {member.filename.removeprefix(folder): member for member in members}
    if "constants.pkl" in by_name:
        raise RefusedError(
            "is a TorchScript program, not a state dict; save torch.jit.load(FILE).state_dict() "
            "with torch.save"
        )
    places = {name: _member_place(file, member) for name, member in by_name.items()}
    if "byteorder" in places and _bytes(file, places["byteorder"]) != b"little":
        raise RefusedError("is of a machine with big-endian numbers; save it anew on another one")
    start, end = places["data.pkl"]
    if end - start > _MAX_PICKLE_BYTES:
        raise RefusedError(f"its pickle has {end - start} bytes; at most {_MAX_PICKLE_BYTES} are")
    file.seek(start)
    with _pickle():
        value = _Unpickler(file).load()
    storages = {
        name.removeprefix("data/"): place
        for name, place in places.items()
        if name.startswith("data/")
    }
    return value, storages


def _member_place(file: BinaryIO, member: zipfile.ZipInfo) -> tuple[int, int]:
    if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
        raise RefusedError("is a compressed or encrypted archive; torch.save writes neither")
    file.seek(member.header_offset)
    header = file.read(_LOCAL_HEADER.size)
    if len(header) < _LOCAL_HEADER.size:
        raise RefusedError("is truncated or damaged; download or copy it again")
    _, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(header)
    start = member.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes
    return start, start + member.file_size


def _bytes(file: BinaryIO, place: tuple[int, int]) -> bytes:
    start, end = place
    file.seek(start)
    return file.read(min(end - start, 64))


def _read_old(file: BinaryIO) -> tuple[object, _Places]:
    if file.read(len(_OLD)) != _OLD:
        raise RefusedError(_unknown(file))
    with _pickle():
        system = _Unpickler(file).load()
        if not system["little_endian"]:
            raise RefusedError("is of a machine with big-endian numbers; save it anew on another")
        unpickler = _OldUnpickler(file)
        value = unpickler.load()
        keys = _Unpickler(file).load()
        places = {}
        for key in map(str, keys):
            (count,) = struct.unpack("<q", file.read(8))
            start = file.tell()
            end = start + _count(count, "the storage") * unpickler.element_bytes[key]
            places[key] = start, end
            file.seek(end)
    return value, places


class _OldUnpickler(_Unpickler):
    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.element_bytes: dict[str, int] = {}

    def persistent_load(self, pid: Any) -> _Storage:  # noqa: ANN401
        storage = super().persistent_load(pid)
        self.element_bytes[storage.key] = DTYPE_BYTES[storage.dtype]
        return storage


def _unknown(file: BinaryIO) -> str:
    file.seek(0)
    start = file.read(300)
    if not start:
        return "is empty; download or copy it again"
    if start[257:262] == b"ustar":
        return "is a tar archive, as torch.save wrote until 2017; save it anew with a newer torch"
    if start[:2] == b"\x80\x02" or start[:1] == b"\x80":
        return "is a pickle that torch.save did not write; save the state dict with torch.save"
    return f"is no file of torch.save: it begins with {start[:16]!r}"


def _state_dict(value: object) -> Mapping[Any, Any]:
    """The names and tensors, wherever in the object they are."""
    for _ in range(_MAX_NESTING):
        if not isinstance(value, dict):
            break
        inner = [value[key] for key in _STATE_DICT_KEYS if isinstance(value.get(key), dict)]
        if not inner:
            return value
        value = inner[0]
    kind = value.text if isinstance(value, _Other) else f"a {type(value).__name__.strip('_')}"
    raise RefusedError(f"holds {kind}; a state dict, which is names and tensors, is needed")


def _described(state: Mapping[Any, Any], places: _Places) -> dict[str, Any]:
    tensors: dict[str, Any] = {}
    others: dict[str, str] = {}
    for name, value in state.items():
        if isinstance(name, str) and isinstance(value, _Tensor):
            tensors[name] = _located(name, value, places)
        else:
            kind = value.text if isinstance(value, _Other) else f"a {type(value).__name__}"
            others[str(name)[:80]] = kind.replace("a _Tensor", "a tensor without a name")
    return {"tensors": tensors, "others": others}


def _located(name: str, tensor: _Tensor, places: _Places) -> list[Any]:
    storage = tensor.storage
    if storage.key not in places or tensor.dtype not in DTYPE_BYTES:
        raise RefusedError(f"is truncated or damaged: the values of {name[:60]} are not in it")
    size = DTYPE_BYTES[tensor.dtype]
    start, end = places[storage.key]
    first = start + storage.first * DTYPE_BYTES[storage.dtype] + tensor.first * size
    if len(tensor.shape) != len(tensor.strides) or math.prod(tensor.shape) >= _LARGEST:
        raise RefusedError(f"the shape of {name[:60]} is {str(tensor.shape)[:60]}")
    return [tensor.dtype, tensor.shape, tensor.strides, first, start, end]
