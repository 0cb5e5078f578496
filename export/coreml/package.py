"""The files of a package, where Core ML's own tools put them, without random ids or a date."""

import filecmp
import uuid
from pathlib import Path, PurePosixPath
from typing import Any, Final

from llama_edge.core.errors import ExportError
from llama_edge.core.files import write_bytes, write_json

PACKAGE: Final = "model.mlpackage"
_MANIFEST: Final = "Manifest.json"
_MODEL: Final = "Data/com.apple.CoreML/model.mlmodel"
_WEIGHTS: Final = "Data/com.apple.CoreML/weights/weight.bin"
#: The operator that holds a matrix as codes and scales.
CODED: Final = "constexpr_blockwise_shift_scale"
#: What coremltools calls a program's only function.
MAIN: Final = "main"
#: The two of a package whose sizes are all fixed; the first is its default.
DECODE: Final = "decode"
PREFILL: Final = "prefill"
_DATE_KEY: Final = "com.github.apple.coremltools.conversion_date"


def mil_name(name: str) -> str:
    """A value's or weight's name as coremltools stores it: MIL's identifiers have no points."""
    return name.replace(".", "_")


def package_files(package: str) -> tuple[str, ...]:
    """A package's files, relative to the folder that holds it; the first one names the others."""
    return tuple(f"{package}/{name}" for name in (_MANIFEST, _MODEL, _WEIGHTS))


def named_function(spec: Any, name: str) -> Any:  # noqa: ANN401
    """A `Model_pb2.Model` whose function `main` has another name, and may have others next to it.

    Its program and metadata are moved out of `spec`; see `FunctionDescription` in `Model.proto`.
    """
    renamed = type(spec)(specificationVersion=spec.specificationVersion)
    renamed.description.metadata.CopyFrom(spec.description.metadata)
    renamed.description.defaultFunctionName = name
    renamed.mlProgram.version = spec.mlProgram.version
    for key, value in spec.mlProgram.attributes.items():
        renamed.mlProgram.attributes[key].CopyFrom(value)
    add_function(renamed, name, spec)
    return renamed


def add_function(spec: Any, name: str, source: Any) -> None:  # noqa: ANN401
    """Add the function `main` of `source` to `spec`; both keep the same `weight.bin`."""
    described = source.description
    spec.description.functions.add(
        name=name, input=described.input, output=described.output, state=described.state
    )
    spec.mlProgram.functions[name].CopyFrom(source.mlProgram.functions[MAIN])


def require_same_weights(first: Path, second: Path) -> None:
    """Two packages' `weight.bin` must be equal, so that one serves the functions of both.

    Raises:
        ExportError: They are not.
    """
    if not filecmp.cmp(first / _WEIGHTS, second / _WEIGHTS, shallow=False):
        raise ExportError(
            f"{first}: its functions store different weights; another version of coremltools than "
            "the tested one may fold constants: export with --prefill flexible"
        )


def make_reproducible(path: Path, spec: Any, entries: dict[str, str]) -> None:  # noqa: ANN401
    """Write again what coremltools put into a package with random identifiers and a date.

    Args:
        path: The package.
        spec: The package's `Model_pb2.Model`; it loses its date and gets `entries`.
        entries: Metadata of ours.
    """
    described = spec.description.metadata.userDefined
    del described[_DATE_KEY]
    described.update(entries)
    write_bytes(path / _MODEL, spec.SerializeToString(deterministic=True))
    items = {
        str(uuid.uuid5(uuid.NAMESPACE_URL, place)): {
            "author": "com.apple.CoreML",
            "description": description,
            "name": PurePosixPath(place).name,
            "path": str(PurePosixPath(place).relative_to("Data")),
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
    write_json(path / _MANIFEST, manifest)
    (path / _WEIGHTS).chmod(0o644)  # coremltools made it as a private temporary file
