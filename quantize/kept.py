"""A file that a long run leaves for its successor: whole, unchanged and of its place, or absent.

Safetensors with a SHA-256 of what it holds, and of where it belongs, in its metadata: one that was
cut, edited, or copied from another run's folder does not count. It is written under another name
and then renamed.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llama_edge.core.errors import OutputError
from llama_edge.core.files import sync
from llama_edge.core.json_files import canonical_json
from llama_edge.core.packing import tensor_sha256
from llama_edge.formats.quantized_checkpoint import write_safetensors

_SHA256: Final = "sha256"
_REMEDY: Final = "free some space, or set LLAMA_EDGE_CACHE to a folder that can be written"
_DTYPES: Final[Mapping[torch.dtype, str]] = {
    torch.int8: "I8",
    torch.int64: "I64",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
}


@contextmanager
def explained(path: Path, failure: str) -> Iterator[None]:
    """Around writing `path`: an error says what cannot be done, why, and the remedy.

    Raises:
        OutputError: The folder cannot be written, or the disk is full.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path}: {failure}: {error}; {_REMEDY}") from error


def keep(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Replace `path` atomically: a kill at any moment leaves the old file or the new one."""
    layout = {name: (_DTYPES[each.dtype], tuple(each.shape)) for name, each in tensors.items()}
    digest = _digest(path, ((name, tensor_sha256(each)) for name, each in tensors.items()))
    # Always the same name, so that what a kill leaves is removed by the next run, which has the
    # folder for itself.
    unfinished = path.with_name(f".{path.name}.part")
    unfinished.unlink(missing_ok=True)
    try:
        write_safetensors(unfinished, layout, tensors.items(), {_SHA256: digest})
        sync(unfinished)  # before it is called finished: power may fail too
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def is_kept(path: Path) -> bool:
    """Whether `path` is there, as `keep` wrote it there; read one tensor at a time."""
    try:
        with safe_open(path, framework="pt") as file:
            names, metadata = file.keys(), file.metadata() or {}
            found = ((name, tensor_sha256(file.get_tensor(name))) for name in names)
            return bool(metadata.get(_SHA256) == _digest(path, found))
    except (OSError, SafetensorError):
        return False


def _digest(path: Path, tensors: Iterator[tuple[str, str]]) -> str:
    """Of the tensors, and of the file's path in the cache, of which a run's key is a part."""
    place = "/".join(path.absolute().parts[-3:])
    return hashlib.sha256(
        canonical_json({"place": place, "tensors": dict(tensors)}).encode()
    ).hexdigest()
