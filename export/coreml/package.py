"""The files of a package, where Core ML's own tools put them, without random ids or a date."""

import uuid
from pathlib import Path, PurePosixPath
from typing import Any, Final

from llama_edge.core.files import write_json

PACKAGE: Final = "model.mlpackage"
_MANIFEST: Final = f"{PACKAGE}/Manifest.json"
_MODEL: Final = f"{PACKAGE}/Data/com.apple.CoreML/model.mlmodel"
_WEIGHTS: Final = f"{PACKAGE}/Data/com.apple.CoreML/weights/weight.bin"
#: Relative to the folder that holds the package; the first one says where the others are.
FILES: Final = (_MANIFEST, _MODEL, _WEIGHTS)
_DATE_KEY: Final = "com.github.apple.coremltools.conversion_date"


def mil_name(name: str) -> str:
    """A value's or weight's name as coremltools stores it: MIL's identifiers have no points."""
    return name.replace(".", "_")


def make_reproducible(out_dir: Path, spec: Any, entries: dict[str, str]) -> None:  # noqa: ANN401
    """Write again what coremltools put into a package with random identifiers and a date.

    Args:
        out_dir: The folder that holds the package.
        spec: The package's `Model_pb2.Model`; it loses its date and gets `entries`.
        entries: Metadata of ours.
    """
    described = spec.description.metadata.userDefined
    del described[_DATE_KEY]
    described.update(entries)
    (out_dir / _MODEL).write_bytes(spec.SerializeToString(deterministic=True))
    items = {
        str(uuid.uuid5(uuid.NAMESPACE_URL, place)): {
            "author": "com.apple.CoreML",
            "description": description,
            "name": PurePosixPath(place).name,
            "path": str(PurePosixPath(place).relative_to(f"{PACKAGE}/Data")),
        }
        for place, description in (
            (_MODEL, "CoreML Model Specification"),
            (str(PurePosixPath(_WEIGHTS).parent), "CoreML Model Weights"),
        )
    }
    root = next(iter(items))
    manifest = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": items,
        "rootModelIdentifier": root,
    }
    write_json(out_dir / _MANIFEST, manifest)
    for file in FILES:
        (out_dir / file).chmod(0o644)
