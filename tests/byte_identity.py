"""SHA-256 of all that quantizing and lowering write: a change of structure changes no byte.

    python -m tests.byte_identity MODEL record FILE [RECIPE...]
    python -m tests.byte_identity MODEL check FILE [RECIPE...]

`record` writes the hashes of today's program into FILE, `check` compares with them and names what
differs. Recipes with calibration multiply matrices with the machine's own libraries, so that their
hashes hold on one machine; those of `w4a8-rtn` hold on every one, and the test has them for the
debug model.
"""

import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llama_edge.backends import get_exporter
from llama_edge.backends.base import LowerOptions
from llama_edge.checkpoints import load_checkpoint
from llama_edge.core.artifact import KVCacheDtype, PrefillLengths
from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.files import write_json
from llama_edge.core.progress import SilentProgress
from llama_edge.core.quantized import QuantizedCheckpoint
from llama_edge.core.regular import file_sha256
from llama_edge.pipeline.quantized import quantize_with_cache
from llama_edge.quantize import get_recipe
from llama_edge.text.text_assets import write_text_assets


@dataclass(frozen=True, slots=True, kw_only=True)
class Lowering:
    """One way to write a quantized checkpoint."""

    name: str
    backend: str
    recipes: tuple[str, ...]
    kv_cache: KVCacheDtype | None = None
    prefill: PrefillLengths | None = None


_ALL: Final = ("w4a8-rtn", "w4a8-mixed", "w4-hadamard")
_INT8: Final = ("w4a8-rtn", "w4a8-mixed")
LOWERINGS: Final = (
    Lowering(name="executorch", backend="executorch", recipes=_INT8),
    Lowering(
        name="executorch, int8 cache",
        backend="executorch",
        recipes=_INT8,
        kv_cache=KVCacheDtype.INT8,
    ),
    Lowering(name="onnx", backend="onnx", recipes=_ALL),
    Lowering(name="coreml", backend="coreml", recipes=(*_ALL, "w4-hadamard-small")),
    Lowering(
        name="coreml, fixed prefill",
        backend="coreml",
        recipes=("w4a8-rtn", "w4-hadamard"),
        prefill=PrefillLengths.FIXED,
    ),
)
#: Every recipe that some lowering takes.
RECIPES: Final = (*_ALL, "w4-hadamard-small")
_CONTEXT: Final = 512


def hashes(checkpoint: Checkpoint, recipes: Sequence[str]) -> dict[str, str]:
    """SHA-256 by recipe, lowering and file."""
    return {
        f"{recipe}: {name}": sha256
        for recipe in recipes
        for name, sha256 in _of_recipe(checkpoint, recipe)
    }


def _of_recipe(checkpoint: Checkpoint, recipe: str) -> Iterator[tuple[str, str]]:
    with tempfile.TemporaryDirectory() as place:
        scratch = Path(place, "quantized")
        scratch.mkdir()
        quantized = quantize_with_cache(
            checkpoint, get_recipe(recipe), (), scratch, SilentProgress()
        )
        yield from _of_folder("quantized", quantized.root)
        for lowering in LOWERINGS:
            if recipe in lowering.recipes:
                folder = Path(place, lowering.name)
                folder.mkdir()
                _lower(quantized, lowering, folder)
                yield from _of_folder(lowering.name, folder)


def _lower(quantized: QuantizedCheckpoint, lowering: Lowering, folder: Path) -> None:
    options = LowerOptions(
        max_context=_CONTEXT, kv_cache=lowering.kv_cache, prefill=lowering.prefill
    )
    get_exporter(lowering.backend).lower(quantized, folder, options, SilentProgress())
    write_text_assets(folder, quantized.text)


def _of_folder(name: str, folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield f"{name}: {path.relative_to(folder).as_posix()}", file_sha256(path)


def main(model: str, action: str, file: Path, recipes: Sequence[str]) -> int:
    """Record or check; the exit code says whether all are equal."""
    found = hashes(load_checkpoint(model), recipes or RECIPES)
    if action == "record":
        write_json(file, found)
        return 0
    wanted = {
        name: sha256
        for name, sha256 in json.loads(file.read_text(encoding="utf-8")).items()
        if not recipes or name.partition(":")[0] in recipes
    }
    names = sorted(wanted.keys() | found.keys())
    different = [name for name in names if wanted.get(name) != found.get(name)]
    for name in different:
        sys.stdout.write(f"{name}: was {wanted.get(name)}, is {found.get(name)}\n")
    everything = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
    sys.stdout.write(f"{len(names)} files, {len(different)} differ; all together {everything}\n")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4:]))
