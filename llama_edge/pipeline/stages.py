"""Stages that an interrupted export had finished, next to the output that they are for."""

import hashlib
from dataclasses import asdict
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Final

import llama_edge.backends
import llama_edge.core
import llama_edge.formats
import llama_edge.models
import llama_edge.quantize
import llama_edge.text
from llama_edge.backends.base import LowerOptions
from llama_edge.bundle.describe import library_versions
from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.files import write_text
from llama_edge.core.json_files import canonical_json
from llama_edge.core.ownership import remove_tree
from llama_edge.core.progress import Progress
from llama_edge.core.quantized import QuantizedCheckpoint
from llama_edge.core.recipe import Recipe
from llama_edge.core.regular import file_sha256
from llama_edge.core.sealed import SEAL_FILE, fault, seal
from llama_edge.core.unfinished import empty
from llama_edge.formats.quantized_checkpoint import CONFIG_FILE

#: What an interrupted run's successor takes up; the gate always runs.
QUANTIZED: Final = "quantized"
_LOWERED: Final = "lowered"
_KEY_FILE: Final = "key"


@cache
def code_sha256(*packages: ModuleType) -> str:
    """Of the program text that decides about bytes: another version finds no old result."""
    digest = hashlib.sha256()
    for package in packages:
        for file in sorted(Path(str(package.__file__)).parent.rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def export_key(checkpoint: Checkpoint, recipe: Recipe, backend: str, options: LowerOptions) -> str:
    """Of what the stages' bytes depend on, but weights and calibration text."""
    parts = {
        "config": checkpoint.config.to_json(),
        "text": asdict(checkpoint.text),
        "note": checkpoint.note,
        "recipe": recipe.to_json(),
        "backend": backend,
        "options": asdict(options),
        "versions": library_versions(backend),
        "code": code_sha256(
            llama_edge.core,
            llama_edge.text,
            llama_edge.models,
            llama_edge.quantize,
            llama_edge.formats,
            llama_edge.backends,
        ),
    }
    return hashlib.sha256(canonical_json(parts).encode()).hexdigest()


def lowered_stage(quantized: QuantizedCheckpoint) -> str:
    """The stage's name, by the weights, recipe and calibration text that the codes came from."""
    return f"{_LOWERED}-{file_sha256(quantized.root / CONFIG_FILE)[:16]}"


class Stages:
    """Finished stages as folders; each appears under its name atomically, and sealed.

    Args:
        place: A folder that this run has for itself.
        key: What the stages depend on; those of another key are removed.
        progress: Told of a stage that is not as it was left.
    """

    def __init__(self, place: Path, key: str, progress: Progress) -> None:
        self.place = place
        self._key = key
        self._progress = progress
        key_file = place / _KEY_FILE
        if not key_file.is_file() or key_file.read_text() != key:
            self.forget()
            write_text(key_file, key)

    def forget(self) -> None:
        """Nothing is finished."""
        for folder in self.place.iterdir():
            if folder.name.startswith((QUANTIZED, _LOWERED)):
                remove_tree(folder)

    def finished(self, name: str) -> Path | None:
        """The stage's folder, if it is whole and as it was left."""
        folder = self.place / name
        if not folder.is_dir():
            return None
        why = fault(folder, self._key, self._seal(name))
        if why is None:
            return folder
        self._progress.remark(f"{folder}: {why}; this stage of an earlier run is made again")
        remove_tree(folder)
        return None

    def _seal(self, name: str) -> Path:
        """Not in the stage's folder: a lowered one becomes the bundle."""
        return self.place / f"{name}.{SEAL_FILE}"

    def begin(self, name: str) -> Path:
        """An empty folder for a stage's files."""
        return empty(self.place / f"{name}.part")

    def finish(self, name: str) -> Path:
        """What is in the folder of `begin` is whole: the stage's folder."""
        part = self.place / f"{name}.part"
        seal(part, self._key, self._seal(name))
        return part.rename(self.place / name)
