"""The weight files of a Hugging Face folder: safetensors or torch's own, one file or shards."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final, Protocol

from safetensors import SafetensorError, safe_open
from torch import Tensor

from llama_edge.checkpoints.recognise import (
    INDEX_FILE,
    TORCH_INDEX_FILE,
    TORCH_WEIGHTS_FILE,
    WEIGHT_SOURCES,
    WEIGHTS_FILE,
    refuse_without_weights,
)
from llama_edge.checkpoints.torch_file import TorchFile
from llama_edge.core.errors import CheckpointError
from llama_edge.core.json_files import MAX_INDEX_BYTES, read_json_object
from llama_edge.core.regular import open_regular

#: dtypes of weights, as safetensors and torch name them.
FLOAT_DTYPES: Final = ("F32", "F16", "BF16", "float32", "float16", "bfloat16")
#: Of a file, in every file system.
_MAX_NAME_BYTES: Final = 255


class WeightFile(Protocol):
    """Named tensors in one file."""

    path: Path

    def entries(self) -> Mapping[str, tuple[str, tuple[int, ...]]]:
        """dtype, as the format calls it, and shape of every tensor."""
        ...

    def load(self, name: str) -> Tensor:
        """One tensor.

        Raises:
            CheckpointError: It cannot be read.
        """
        ...


class SafetensorsFile:
    """A safetensors file.

    The library maps a whole file for as long as one of its tensors lives, and pages that were read
    count as memory in use. So each tensor has a mapping of its own, gone when the tensor is.

    Raises:
        CheckpointError: It is no such file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        file = self._open()
        views = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (no dict)
        self._entries = {
            name: (str(view.get_dtype()), tuple(view.get_shape())) for name, view in views.items()
        }

    def _open(self) -> Any:  # noqa: ANN401
        with open_regular(self.path, CheckpointError):
            pass
        try:
            return safe_open(self.path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{self.path}: not readable as safetensors: {error}; the file is truncated or "
                "damaged"
            ) from error

    def entries(self) -> Mapping[str, tuple[str, tuple[int, ...]]]:
        """See `WeightFile`."""
        return self._entries

    def load(self, name: str) -> Tensor:
        """See `WeightFile`."""
        try:
            tensor: Tensor = self._open().get_tensor(name)
        except SafetensorError as error:
            raise CheckpointError(f"{self.path}: {name} cannot be read: {error}") from error
        return tensor


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """All of a folder's tensors."""

    #: file of each tensor
    files: Mapping[str, WeightFile]
    #: shard of each tensor that the index lists and that is in no shard
    absent: Mapping[str, Path]
    #: what was left unread and might have been meant
    note: str | None


def open_weight_files(folder: Path) -> WeightFiles:
    """Open the files that transformers would take.

    Raises:
        CheckpointError: There is none, or one is missing or unreadable.
    """
    present = [name for name in WEIGHT_SOURCES if (folder / name).exists()]
    if not present:
        refuse_without_weights(folder)
    source = present[0]
    is_index = source in (INDEX_FILE, TORCH_INDEX_FILE)
    promised = _weight_map(folder / source) if is_index else {}
    shards = sorted(set(promised.values())) if is_index else [source]
    kind = SafetensorsFile if source in (WEIGHTS_FILE, INDEX_FILE) else TorchFile
    files: dict[str, WeightFile] = {}
    for shard in shards:
        if not (folder / shard).exists():
            raise CheckpointError(
                f"{folder / shard}: the shard is missing, although {source} lists it; download it"
            )
        file = kind(folder / shard)
        for name in file.entries():
            if name in files:
                raise CheckpointError(f"{file.path}: {name} is in {files[name].path} as well")
            files[name] = file
    absent = {name: folder / shard for name, shard in promised.items() if name not in files}
    return WeightFiles(files, absent, _note(source, present))


def _note(source: str, present: list[str]) -> str | None:
    """A file beside the shards of the same kind: one of the two is left from before."""
    index = {WEIGHTS_FILE: INDEX_FILE, TORCH_WEIGHTS_FILE: TORCH_INDEX_FILE}.get(source)
    if index not in present:
        return None
    return (
        f"the weights are those of {source}, as transformers takes them; the shards that "
        f"{index} lists were not read"
    )


def _weight_map(index: Path) -> dict[str, str]:
    """Weight name -> shard file name."""
    value = read_json_object(index, CheckpointError, limit=MAX_INDEX_BYTES)
    weight_map = value.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: weight_map is missing or empty")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _is_bare_name(shard):
            raise CheckpointError(
                f"{index}: {name[:60]} is said to be in {str(shard)[:60]!r}; a shard must be a "
                "file of this folder"
            )
    return weight_map


def _is_bare_name(name: str) -> bool:
    """No folder, drive or parent in it; the file itself may be a link, as in the hub's cache."""
    is_one = PurePosixPath(name).name == name not in ("", "..") and not set(name) & set("\\:\0")
    return is_one and len(name.encode()) <= _MAX_NAME_BYTES
