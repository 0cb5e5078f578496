"""Files of Meta's form: `consolidated.NN.pth`, or one file of any name, as llama2.c writes it."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from llama_edge.checkpoints.names import META_BLOCK_PARTS, META_NAMES, plain_names
from llama_edge.checkpoints.torch_file import TorchFile
from llama_edge.core.errors import CheckpointError
from llama_edge.core.walk import walk
from llama_edge.models.weight_names import block_weight

FLOATS: Final = (torch.float32, torch.float16, torch.bfloat16)
#: Computed from the config; Meta's files have the first, llama2.c's early ones the others.
_IGNORED: Final = ("rope.freqs", "freqs_cos", "freqs_sin")
_SHARD_NAME: Final = re.compile(r"consolidated\.(\d\d)\.pth")
_TORCH_SUFFIXES: Final = (".pth", ".pt")
_ANCHOR: Final = "tok_embeddings.weight"


def shard_paths(folder: Path) -> list[Path]:
    """The files in order.

    Raises:
        CheckpointError: One is missing.
    """
    names = [each.name for each in walk(folder, CheckpointError, depth=1)]
    shards = [name for name in names if _SHARD_NAME.fullmatch(name)]
    others = [name for name in names if name.endswith(_TORCH_SUFFIXES)]
    if not shards and len(others) == 1:
        return [folder / others[0]]
    for number, name in enumerate(shards):
        if name != f"consolidated.{number:02}.pth":
            raise CheckpointError(f"{folder}: consolidated.{number:02}.pth is missing")
    if not shards:
        found = f"; {', '.join(others[:3])} are there" if others else ""
        raise CheckpointError(
            f"{folder}: has no weights: consolidated.00.pth is missing, or a single file ending "
            f"in .pth or .pt{found}"
        )
    return [folder / name for name in shards]


class Shard:
    """One file's tensors under canonical names where a Llama has them.

    Args:
        path: The file.
        dtypes: Those that are expected in it.

    Raises:
        CheckpointError: It is damaged, or holds something else than tensors of `dtypes`.
    """

    def __init__(self, path: Path, dtypes: Sequence[torch.dtype] = FLOATS) -> None:
        self._file = TorchFile(path)
        entries = self._file.entries()
        readable = [str(dtype).removeprefix("torch.") for dtype in dtypes]
        self._names = {
            canonical_name(name): own_name
            for name, own_name in plain_names(entries, _ANCHOR).items()
            if name not in _IGNORED
        }
        #: by canonical name
        self.shapes: Mapping[str, tuple[int, ...]] = {
            name: entries[own_name][1] for name, own_name in self._names.items()
        }
        for own_name in self._names.values():
            dtype, _ = entries[own_name]
            if dtype not in readable:
                raise CheckpointError(
                    f"{path}: {own_name} is {dtype}; {', '.join(readable)} are read here; codes "
                    "are read where params.json has quantization_args"
                )

    def load(self, name: str) -> Tensor:
        """The tensor of a canonical name, mapped for as long as it lives.

        Raises:
            CheckpointError: The file was changed meanwhile.
        """
        return self._file.load(self._names[name])


def canonical_name(name: str) -> str:
    """Our name of a Meta tensor; one that a Llama does not have keeps its own."""
    if name in META_NAMES:
        return META_NAMES[name]
    found = re.fullmatch(r"layers\.(\d+)\.(.+)\.weight", name)
    if found and found[2] in META_BLOCK_PARTS:
        return block_weight(int(found[1]), META_BLOCK_PARTS[found[2]])
    return name
