"""What a row of the table of faults is, and short ways to write one."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.faults import forging as forge
from tests.faults.forging import Json, edit_json, edit_manifest, put

Plant = Callable[[Path], object]

DOWN: Final = "model.layers.1.mlp.down_proj.weight"
TEMPLATE: Final = "tokenizer_config.json: chat_template"
GENERATION_EOS: Final = "generation_config.json: eos_token_id"


@dataclass(frozen=True)
class Fault:
    name: str
    target: str
    plant: Plant
    code: str
    where: str
    #: what the author of the fault makes agree afterwards: "nothing", "files" or "text"
    lies: str = "nothing"

    def into(self, folder: Path) -> None:
        """Plant it into a copy of the target's bundle."""
        self.plant(folder)
        {"nothing": lambda _: None, "files": forge.rehash, "text": forge.rewrite_text}[self.lies](
            folder
        )


def manifest(place: str, value: object) -> Plant:
    return lambda folder: edit_manifest(folder, lambda found: put(found, place, value))


def field(file: str, place: str, value: object) -> Plant:
    return lambda folder: edit_json(folder / file, lambda found: put(found, place, value))


def edited(file: str, change: Callable[[Json], None]) -> Plant:
    return lambda folder: edit_json(folder / file, change)


def in_manifest(change: Callable[[Json], None]) -> Plant:
    return lambda folder: edit_manifest(folder, change)


def says(name: str, target: str, plant: Plant, code: str, where: str) -> Fault:
    """A fault whose hashes all agree."""
    return Fault(name, target, plant, code, where, "files")
