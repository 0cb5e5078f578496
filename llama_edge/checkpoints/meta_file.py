"""Meta's `consolidated.NN.pth`: named tensors, and nothing else that a pickle could hold."""

import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from llama_edge.checkpoints.names import META_BLOCK_PARTS, META_NAMES
from llama_edge.core.errors import CheckpointError
from llama_edge.models.weight_names import block_weight

FLOATS: Final = (torch.float32, torch.float16, torch.bfloat16)
_IGNORED: Final = "rope.freqs"
_SHARD_NAME: Final = re.compile(r"consolidated\.(\d\d)\.pth")

#: What `torch.load` raises for a file that is not what it seems; nothing of it is executed.
_UNREADABLE: Final = (
    pickle.UnpicklingError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
)


def shard_paths(folder: Path) -> list[Path]:
    """The files in order.

    Raises:
        CheckpointError: One is missing.
    """
    paths = sorted(path for path in folder.iterdir() if _SHARD_NAME.fullmatch(path.name))
    for number, path in enumerate(paths):
        if path.name != f"consolidated.{number:02}.pth":
            raise CheckpointError(f"{folder}: consolidated.{number:02}.pth is missing")
    if not paths:
        raise CheckpointError(f"{folder}: consolidated.00.pth is missing")
    return paths


def load_shard(path: Path, dtypes: Sequence[torch.dtype] = FLOATS) -> dict[str, Tensor]:
    """Map one file, under canonical names where a Llama has them.

    Only tensors can come out: `weights_only` runs no code from the pickle.

    Raises:
        CheckpointError: It is damaged, hostile, or holds something else than tensors of `dtypes`.
    """
    try:
        value = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except _UNREADABLE as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{path}: refused as damaged or hostile; only tensors are read from it: {reason}"
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a {type(value).__name__}; named tensors are needed")
    tensors = {}
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(f"{path}: {name!r} is a {type(tensor).__name__}, not a tensor")
        if tensor.layout != torch.strided or tensor.dtype not in dtypes:
            readable = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise CheckpointError(
                f"{path}: {name} is {tensor.dtype}; dense {readable} are read here; codes are read "
                "where params.json has quantization_args"
            )
        if name != _IGNORED:
            tensors[canonical_name(name)] = tensor
    return tensors


def canonical_name(name: str) -> str:
    """Our name of a Meta tensor; one that a Llama does not have keeps its own."""
    if name in META_NAMES:
        return META_NAMES[name]
    found = re.fullmatch(r"layers\.(\d+)\.(.+)\.weight", name)
    if found and found[2] in META_BLOCK_PARTS:
        return block_weight(int(found[1]), META_BLOCK_PARTS[found[2]])
    return name
