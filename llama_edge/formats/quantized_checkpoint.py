"""The `QuantizedCheckpoint` folder: `weights.safetensors`, `quantization.json`, and the text files.

`weights.safetensors` holds for each matrix `NAME.codes` (int4 packed two to a byte, low nibble
first, two's complement; int8 as it is) and `NAME.scales` (bfloat16), and each norm as float32.
A tied model stores its table once. The same weights give the same bytes in both files, whatever
form the checkpoint had; tokenizer files are carried next to them.
"""

import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from safetensors import SafetensorError, safe_open
from torch import Tensor

from llama_edge.core.errors import ArtifactError, ConfigError, QuantizeError
from llama_edge.core.files import open_new, write_json
from llama_edge.core.json_files import canonical_json, read_json_object
from llama_edge.core.model_config import ModelConfig
from llama_edge.core.packing import QuantizedTensor, pack_int4, tensor_bytes, unpack_int4
from llama_edge.core.quantized import (
    CalibrationRecord,
    MixedPrecision,
    QuantizedCheckpoint,
    ScaleRounding,
)
from llama_edge.core.recipe import Recipe
from llama_edge.core.text_assets import TextAssets
from llama_edge.models.network import network_of
from llama_edge.models.weight_names import EMBEDDING, LM_HEAD
from llama_edge.models.weights import block_linear_names, float_shapes
from llama_edge.text.text_assets import read_text_assets, write_text_assets

FORMAT_VERSION: Final = 1
WEIGHTS_FILE: Final = "weights.safetensors"
CONFIG_FILE: Final = "quantization.json"
#: Embedding and head: in int8 one scale per row, in int4 one per group.
TABLES: Final = (EMBEDDING, LM_HEAD)


def quantized_names(config: ModelConfig) -> tuple[str, ...]:
    """Every quantized matrix in canonical order; a tied head is listed although stored once."""
    return (EMBEDDING, *block_linear_names(config), LM_HEAD)


def matrix_shape(config: ModelConfig, name: str) -> tuple[int, int]:
    """(out_features, in_features) of a quantized matrix."""
    rows, columns = network_of(config).by_name[name.removesuffix(".weight")].shapes[name]
    return rows, columns


def stored_names(config: ModelConfig) -> Iterator[str]:
    """Every weight that the file holds, in its order: floats, then codes; a tied head is none.

    Floats first, so that they start at a multiple of four whatever the vocabulary's size.
    """
    yield from float_shapes(config)
    for name in quantized_names(config):
        if not (name == LM_HEAD and config.tie_word_embeddings):
            yield name


@dataclass(frozen=True, slots=True)
class Layout:
    """How a quantized checkpoint stores each matrix."""

    config: ModelConfig
    recipe: Recipe
    mixed: MixedPrecision | None = None

    def bits(self, name: str) -> int:
        """Of a matrix's codes."""
        if name in TABLES:
            return self.recipe.table_bits
        return 8 if self._is_int8(name) else self.recipe.weight_bits

    def group_size(self, name: str) -> int:
        """Inputs that share a scale: a whole row of an int8 table or of a raised linear."""
        if self._is_int8(name) or (name in TABLES and self.recipe.table_bits == 8):
            return matrix_shape(self.config, name)[1]
        return self.recipe.group_size

    def _is_int8(self, name: str) -> bool:
        return self.mixed is not None and name in self.mixed.int8_names

    def matrix_tensors(self, name: str) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Safetensors dtype and shape of a matrix's codes and scales."""
        rows, columns = matrix_shape(self.config, name)
        is_packed = self.bits(name) == 4
        groups = columns // self.group_size(name)
        return {
            f"{name}.codes": ("U8" if is_packed else "I8", (rows, columns >> is_packed)),
            f"{name}.scales": ("BF16", (rows, groups)),
        }

    def matrix_bytes(self, name: str) -> int:
        """Of a matrix's codes and scales."""
        tensors = self.matrix_tensors(name).values()
        return sum(_ITEM_BYTES[dtype] * math.prod(shape) for dtype, shape in tensors)

    def stored_tensors(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Safetensors dtype and shape of every stored tensor, in file order."""
        tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
        floats = float_shapes(self.config)
        for name in stored_names(self.config):
            if name in floats:
                tensors[name] = ("F32", floats[name])
            else:
                tensors |= self.matrix_tensors(name)
        return tensors


_ITEM_BYTES: Final[Mapping[str, int]] = {
    **{"I8": 1, "U8": 1, "BF16": 2, "F16": 2, "I32": 4, "F32": 4, "F64": 8, "I64": 8}
}


def write_safetensors(
    path: Path,
    layout: Mapping[str, tuple[str, tuple[int, ...]]],
    tensors: Iterable[tuple[str, Tensor]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write tensors as they come, in the layout's order, without holding more than one."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    offset = 0
    for name, (dtype, shape) in layout.items():
        end = offset + _ITEM_BYTES[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = canonical_json(header).encode()
    text += b" " * (-len(text) % 8)
    with open_new(path) as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for (name, (_, shape)), (given, tensor) in zip(layout.items(), tensors, strict=True):
            assert (given, tuple(tensor.shape)) == (name, shape), f"{given} written as {name}"
            stream.write(tensor_bytes(tensor))
            del tensor


class _TensorFile(Protocol):
    """What is used of safetensors' `safe_open`, whose own stubs have no types."""

    def get_tensor(self, name: str) -> Tensor: ...

    def get_slice(self, name: str) -> "_TensorView": ...


class _TensorView(Protocol):
    def get_dtype(self) -> str: ...

    def get_shape(self) -> list[int]: ...


class FolderWeights:
    """`QuantizedWeights` over a `weights.safetensors`; each read touches one tensor."""

    def __init__(self, path: Path, layout: Layout) -> None:
        self._path = path
        self._config = layout.config
        self._layout = layout
        file = self._open()
        for name, (dtype, shape) in layout.stored_tensors().items():
            self._require(file, name, dtype, shape)

    def _open(self) -> _TensorFile:
        """Anew for each tensor: pages of a mapped file that were read count as memory in use."""
        try:
            file: _TensorFile = safe_open(self._path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise ArtifactError(f"{self._path}: cannot be read: {error}") from error
        return file

    def _require(self, file: _TensorFile, name: str, dtype: str, shape: tuple[int, ...]) -> None:
        try:
            view = file.get_slice(name)
        except SafetensorError as error:
            raise ArtifactError(f"{self._path}: {name} is missing") from error
        if view.get_dtype() != dtype or tuple(view.get_shape()) != shape:
            raise ArtifactError(
                f"{self._path}: {name} is {view.get_dtype()} {tuple(view.get_shape())}; "
                f"{dtype} {shape} is needed"
            )

    def quantized_names(self) -> tuple[str, ...]:
        """See `QuantizedWeights`."""
        return quantized_names(self._config)

    def quantized(self, name: str) -> QuantizedTensor:
        """See `QuantizedWeights`."""
        stored = EMBEDDING if name == LM_HEAD and self._config.tie_word_embeddings else name
        codes = self._open().get_tensor(f"{stored}.codes")
        bits = self._layout.bits(name)
        try:
            return QuantizedTensor(
                codes=unpack_int4(codes) if bits == 4 else codes,
                scales=self._open().get_tensor(f"{stored}.scales"),
                bits=bits,
                group_size=self._layout.group_size(name),
            )
        except QuantizeError as error:
            raise ArtifactError(f"{self._path}: {name} is damaged: {error}") from error

    def vector(self, name: str) -> Tensor:
        """See `QuantizedWeights`."""
        tensor = self._open().get_tensor(name)
        if not tensor.isfinite().all():
            raise ArtifactError(f"{self._path}: {name} is damaged: it holds NaN or infinity")
        return tensor


@dataclass(frozen=True, slots=True)
class QuantizedEntry:
    """One finished tensor, as a quantizer hands it to the writer."""

    name: str
    value: QuantizedTensor | Tensor


def _stored(entry: QuantizedEntry) -> Iterator[tuple[str, Tensor]]:
    """An entry as the file has it."""
    value = entry.value
    if isinstance(value, QuantizedTensor):
        yield f"{entry.name}.codes", pack_int4(value.codes) if value.bits == 4 else value.codes
        yield f"{entry.name}.scales", value.scales
    else:
        yield entry.name, value


@dataclass(frozen=True, slots=True)
class SourceDescription:
    """What was quantized (`QuantizedCheckpoint.source_sha256`), and on which text."""

    sha256: str
    calibration: CalibrationRecord | None
    scale_rounding: ScaleRounding | None = None
    note: str | None = None


def write_quantized_checkpoint(
    folder: Path,
    layout: Layout,
    text: TextAssets,
    entries: Iterable[QuantizedEntry],
    describe: Callable[[], SourceDescription],
) -> QuantizedCheckpoint:
    """Stream `entries`, in the order of `stored_names`, into `folder`.

    `describe` is asked once the last entry is written, since the source is hashed while it
    streams through the quantizer.
    """
    tensors = (stored for entry in entries for stored in _stored(entry))
    write_safetensors(folder / WEIGHTS_FILE, layout.stored_tensors(), tensors)
    source = describe()
    description = {
        "format_version": FORMAT_VERSION,
        "config": layout.config.to_json(),
        "recipe": layout.recipe.to_json(),
        "source_sha256": source.sha256,
        "calibration": None if source.calibration is None else source.calibration.to_json(),
        "scale_rounding": None
        if source.scale_rounding is None
        else source.scale_rounding.to_json(),
        "note": source.note,
        "mixed_precision": None if layout.mixed is None else layout.mixed.to_json(),
    }
    write_json(folder / CONFIG_FILE, description)
    write_text_assets(folder, text)
    return read_quantized_checkpoint(folder)


def read_quantized_checkpoint(folder: Path) -> QuantizedCheckpoint:
    """Open a folder that `write_quantized_checkpoint` wrote.

    Raises:
        ArtifactError: A file is missing, damaged or of a newer format.
    """
    description = read_json_object(folder / CONFIG_FILE)
    version = description.get("format_version")
    if version != FORMAT_VERSION:
        raise ArtifactError(
            f"{folder / CONFIG_FILE}: format_version is {version!r}; this program reads "
            f"{FORMAT_VERSION}; use the llama-edge version that wrote it"
        )
    try:
        config = ModelConfig.from_json(description["config"])
        recipe = Recipe.from_json(description["recipe"])
        source_sha256 = str(description["source_sha256"])
        record = description["calibration"]
        calibration = None if record is None else CalibrationRecord(**record)
        rounding = description.get("scale_rounding")
        scale_rounding = None if rounding is None else ScaleRounding.from_json(rounding)
        note = description.get("note")
        mixed = _read_mixed_precision(config, description["mixed_precision"])
    except KeyError as error:
        raise ArtifactError(f"{folder / CONFIG_FILE}: {error} is missing") from error
    except (ConfigError, TypeError) as error:
        raise ArtifactError(f"{folder / CONFIG_FILE}: {error}") from error
    return QuantizedCheckpoint(
        root=folder,
        config=config,
        recipe=recipe,
        weights=FolderWeights(folder / WEIGHTS_FILE, Layout(config, recipe, mixed)),
        text=read_text_assets(folder),
        source_sha256=source_sha256,
        calibration=calibration,
        scale_rounding=scale_rounding,
        note=None if note is None else str(note),
        mixed_precision=mixed,
    )


def _read_mixed_precision(
    config: ModelConfig, value: Mapping[str, Any] | None
) -> MixedPrecision | None:
    if value is None:
        return None
    mixed = MixedPrecision.from_json(value)
    strange = sorted(set(mixed.int8_linears).difference(block_linear_names(config)))
    if strange:
        raise ConfigError(f"mixed_precision: {strange[0]!r} is no block linear of this model")
    return mixed
