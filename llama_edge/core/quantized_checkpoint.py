"""The `QuantizedCheckpoint` folder: `weights.safetensors`, `quantization.json`, and the text files.

`weights.safetensors` holds for each matrix `NAME.codes` (int4 packed two to a byte, low nibble
first, two's complement; int8 as it is) and `NAME.scales` (bfloat16), and each norm as float32.
A tied model stores its table once. The same weights give the same bytes in both files, whatever
form the checkpoint had; tokenizer files are carried beside them.
"""

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open
from torch import Tensor

from llama_edge.core.errors import ArtifactError
from llama_edge.core.files import canonical_json, read_json_object, write_json
from llama_edge.core.model_config import ModelConfig
from llama_edge.core.packing import QuantizedTensor, pack_int4, tensor_bytes, unpack_int4
from llama_edge.core.text_assets import read_text_assets, write_text_assets
from llama_edge.core.types import QuantizedCheckpoint, Recipe, TextAssets
from llama_edge.core.weight_names import (
    BLOCK_NORMS,
    EMBEDDING,
    FINAL_NORM,
    LM_HEAD,
    block_linear_names,
    block_linear_shapes,
    block_weight,
)

FORMAT_VERSION: Final = 1
WEIGHTS_FILE: Final = "weights.safetensors"
CONFIG_FILE: Final = "quantization.json"


def quantized_names(config: ModelConfig) -> tuple[str, ...]:
    """Every quantized matrix in canonical order; a tied head is listed although stored once."""
    return (EMBEDDING, *block_linear_names(config), LM_HEAD)


def matrix_shape(config: ModelConfig, name: str) -> tuple[int, int]:
    """(out_features, in_features) of a quantized matrix."""
    if name in (EMBEDDING, LM_HEAD):
        return config.vocab_size, config.hidden_size
    return block_linear_shapes(config)[name.split(".", 3)[3].removesuffix(".weight")]


def norm_names(config: ModelConfig) -> Iterator[str]:
    """Every norm weight in canonical order."""
    for layer in range(config.num_hidden_layers):
        for norm in BLOCK_NORMS:
            yield block_weight(layer, norm)
    yield FINAL_NORM


def matrix_bits(recipe: Recipe, name: str) -> int:
    """Bits of a matrix's codes under a recipe."""
    return recipe.table_bits if name in (EMBEDDING, LM_HEAD) else recipe.weight_bits


def stored_tensors(config: ModelConfig, recipe: Recipe) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Safetensors dtype and shape of every stored tensor, in file order."""
    layout: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name in quantized_names(config):
        if name == LM_HEAD and config.tie_word_embeddings:
            continue
        rows, columns = matrix_shape(config, name)
        if matrix_bits(recipe, name) == recipe.table_bits and name in (EMBEDDING, LM_HEAD):
            layout[f"{name}.codes"] = ("I8", (rows, columns))
            layout[f"{name}.scales"] = ("BF16", (rows, 1))
        else:
            layout[f"{name}.codes"] = ("U8", (rows, columns // 2))
            layout[f"{name}.scales"] = ("BF16", (rows, columns // recipe.group_size))
    for name in norm_names(config):
        layout[name] = ("F32", (config.hidden_size,))
    return layout


_ITEM_BYTES: Final[Mapping[str, int]] = {"I8": 1, "U8": 1, "BF16": 2, "F32": 4}


class StreamingSafetensors:
    """Writes a safetensors file tensor by tensor, in the header's order, holding one at a time."""

    def __init__(self, path: Path, layout: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
        self._pending = list(layout)
        header: dict[str, Any] = {}
        offset = 0
        for name, (dtype, shape) in layout.items():
            size = _ITEM_BYTES[dtype]
            for length in shape:
                size *= length
            header[name] = {
                "dtype": dtype,
                "shape": list(shape),
                "data_offsets": [offset, offset + size],
            }
            offset += size
        text = canonical_json(header).encode()
        text += b" " * (-len(text) % 8)
        self._layout = header
        self._stream = path.open("wb")
        self._stream.write(struct.pack("<Q", len(text)) + text)

    def write(self, name: str, tensor: Tensor) -> None:
        """The next tensor; its name must be the next of the layout."""
        assert self._pending[0] == name, f"{name} written before {self._pending[0]}"
        assert list(tensor.shape) == self._layout[name]["shape"], name
        self._pending.pop(0)
        self._stream.write(tensor_bytes(tensor))

    def close(self) -> None:
        """Finish the file; every tensor must have been written."""
        self._stream.close()
        assert not self._pending, f"{self._pending[0]} was never written"


class FolderWeights:
    """`QuantizedWeights` over an open `weights.safetensors`; each read touches one tensor."""

    def __init__(self, path: Path, config: ModelConfig, recipe: Recipe) -> None:
        self._path = path
        self._config = config
        self._recipe = recipe
        try:
            self._file = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise ArtifactError(f"{path}: cannot be read: {error}") from error
        for name, (dtype, shape) in stored_tensors(config, recipe).items():
            self._require(name, dtype, shape)

    def _require(self, name: str, dtype: str, shape: tuple[int, ...]) -> None:
        try:
            view = self._file.get_slice(name)
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
        codes = self._file.get_tensor(f"{stored}.codes")
        columns = matrix_shape(self._config, name)[1]
        is_table = name in (EMBEDDING, LM_HEAD)
        return QuantizedTensor(
            codes=codes if is_table else unpack_int4(codes),
            scales=self._file.get_tensor(f"{stored}.scales"),
            bits=matrix_bits(self._recipe, name),
            group_size=columns if is_table else self._recipe.group_size,
        )

    def vector(self, name: str) -> Tensor:
        """See `QuantizedWeights`."""
        tensor: Tensor = self._file.get_tensor(name)
        return tensor


@dataclass(frozen=True, slots=True)
class QuantizedEntry:
    """One finished tensor, as a quantizer hands it to the writer."""

    name: str
    value: QuantizedTensor | Tensor


def write_quantized_checkpoint(
    folder: Path,
    config: ModelConfig,
    recipe: Recipe,
    text: TextAssets,
    entries: Iterable[QuantizedEntry],
    source_sha256: Callable[[], str],
) -> QuantizedCheckpoint:
    """Stream `entries` (matrices in canonical order, then norms) into `folder`.

    A tied model's entries leave out `lm_head.weight`. `source_sha256` is asked once the last entry
    is written, since the source is hashed while it streams through the quantizer.
    """
    writer = StreamingSafetensors(folder / WEIGHTS_FILE, stored_tensors(config, recipe))
    for entry in entries:
        if isinstance(entry.value, QuantizedTensor):
            codes = entry.value.codes
            is_table = entry.name in (EMBEDDING, LM_HEAD)
            writer.write(f"{entry.name}.codes", codes if is_table else pack_int4(codes))
            writer.write(f"{entry.name}.scales", entry.value.scales)
        else:
            writer.write(entry.name, entry.value)
    writer.close()
    description = {
        "format_version": FORMAT_VERSION,
        "config": config.to_json(),
        "recipe": recipe.to_json(),
        "source_sha256": source_sha256(),
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
        recipe = Recipe(**description["recipe"])
        source_sha256 = str(description["source_sha256"])
    except (KeyError, TypeError) as error:
        raise ArtifactError(f"{folder / CONFIG_FILE}: {error}") from error
    return QuantizedCheckpoint(
        root=folder,
        config=config,
        recipe=recipe,
        weights=FolderWeights(folder / WEIGHTS_FILE, config, recipe),
        text=read_text_assets(folder),
        source_sha256=source_sha256,
    )
