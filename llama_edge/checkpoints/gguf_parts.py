"""A GGUF model of one file, or of several parts as llama.cpp's `llama-gguf-split` writes them.

Each part is a GGUF file with `split.no` (from 0), `split.count` and `split.tensors.count` (of all
parts); the model's own metadata is in the first. Source: `llama_split_path` in llama.cpp, which
numbers file names from 1.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from torch import Tensor

from llama_edge.checkpoints.gguf_file import GgufFile, TensorRecord
from llama_edge.checkpoints.json_fields import Fields
from llama_edge.core.errors import CheckpointError

_NUMBER, _COUNT, _TENSOR_COUNT = "split.no", "split.count", "split.tensors.count"
_MAX_PARTS: Final = (1 << 16) - 1  # llama.cpp stores the count as uint16
_NAME: Final = re.compile(
    r"(?P<prefix>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf", re.DOTALL
)
_DOWNLOAD: Final = "download every part of the model again"


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufModel:
    """All parts of a model, with the attributes of a single `GgufFile`."""

    #: the first part, which holds `metadata`
    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorRecord]
    #: tensor name -> the part that holds it
    files: Mapping[str, GgufFile]

    def raw(self, name: str) -> np.ndarray:
        """See `GgufFile`."""
        return self.files[name].raw(name)

    def read(self, name: str) -> Tensor:
        """See `GgufFile`."""
        return self.files[name].read(name)


def open_gguf(path: Path) -> GgufModel:
    """Open a GGUF file, and with any part of a split model all others from the same folder.

    Raises:
        CheckpointError: A file is damaged; a part is missing, renamed or of another model.
    """
    named = GgufFile(path)
    count = _part_count(named)
    parts = [named] if count == 1 else _open_parts(named, count)
    files: dict[str, GgufFile] = {}
    for part in parts:
        for name in part.tensors:
            if name in files:
                raise CheckpointError(
                    f"{part.path}: {name} is in {files[name].path.name} as well; the parts belong "
                    f"to different models or were split by a faulty program; {_DOWNLOAD}"
                )
            files[name] = part
    _check_tensor_count(parts, len(files))
    return GgufModel(
        path=parts[0].path,
        metadata=parts[0].metadata,
        tensors={name: part.tensors[name] for name, part in files.items()},
        files=files,
    )


def _part_count(file: GgufFile) -> int:
    """`split.count`; absent, or 0 as `llama-gguf-split --merge` leaves it, is one part."""
    fields = Fields(file.path, file.metadata)
    count = fields.integer(_COUNT, 0)
    if not 0 <= count <= _MAX_PARTS:
        raise CheckpointError(
            f"{file.path}: {_COUNT} is {count}; 0 to {_MAX_PARTS} is possible, so the file is "
            "damaged; download it again"
        )
    number = fields.integer(_NUMBER, 0)
    if count <= 1 and number != 0:
        raise CheckpointError(
            f"{file.path}: {_NUMBER} is {number} although {_COUNT} is "
            f"{file.metadata.get(_COUNT, 'absent')}, which makes it the only part and number 0; "
            "the file is damaged; download it again"
        )
    return max(count, 1)


def _open_parts(named: GgufFile, count: int) -> list[GgufFile]:
    """Every part in order; `named` is the one that the user gave."""
    match = _NAME.fullmatch(named.path.name)
    if match is None:
        raise CheckpointError(
            f"{named.path}: is one of {count} parts ({_COUNT}), and the others are found by a name "
            f"of the form NAME-00001-of-{count:05}.gguf; give every part the name that it had"
        )
    number = int(match["number"]) - 1
    if int(match["count"]) != count or not 0 <= number < count:
        raise CheckpointError(
            f"{named.path}: {_COUNT} is {count}, but by its name it is part {number + 1} of "
            f"{int(match['count'])}; give every part the name that it had, or {_DOWNLOAD}"
        )
    _check_place(named, number, count)
    names = _PartNames(named.path, match["prefix"], count)
    return [named if index == number else _open_part(names, index) for index in range(count)]


@dataclass(frozen=True, slots=True)
class _PartNames:
    """Paths of all parts, by the one that the user named."""

    named: Path
    prefix: str
    count: int

    def path(self, index: int) -> Path:
        return self.named.with_name(f"{self.prefix}-{index + 1:05}-of-{self.count:05}.gguf")


def _open_part(names: _PartNames, index: int) -> GgufFile:
    path = names.path(index)
    if not path.is_file():
        state = "is not a regular file" if path.exists() else "is missing"
        raise CheckpointError(
            f"{path}: part {index + 1} of {names.count} {state}; put it next to the other parts, "
            "or give the single file that llama.cpp makes of all parts: llama-gguf-split --merge "
            f"{names.path(0).name} OUT.gguf"
        )
    part = GgufFile(path)
    _check_place(part, index, names.count)
    return part


def _check_place(part: GgufFile, index: int, count: int) -> None:
    """The part's own metadata agree with its name."""
    fields = Fields(part.path, part.metadata)
    for key, wanted in ((_COUNT, count), (_NUMBER, index)):
        found = fields.integer(key)
        if found != wanted:
            raise CheckpointError(
                f"{part.path}: {key} is {found}; as part {index + 1} of {count} it must be "
                f"{wanted}; the file was renamed or belongs to another model; {_DOWNLOAD}"
            )


def _check_tensor_count(parts: list[GgufFile], total: int) -> None:
    for part in parts:
        promised = Fields(part.path, part.metadata).integer(_TENSOR_COUNT, total)
        if promised != total:
            raise CheckpointError(
                f"{part.path}: {_TENSOR_COUNT} is {promised}, but the number of tensors found is "
                f"{total}; the model is incomplete, or its parts belong to different models; "
                f"{_DOWNLOAD}"
            )
