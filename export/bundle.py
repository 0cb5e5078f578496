"""Writing and reading a bundle: one flat folder of the artifact, its text files and the manifest.

Layout: `manifest.json`, `parity.json` (the measurements in full), the backend's files, and the
tokenizer as Hugging Face's tools expect it. The manifest lists every other file with its hash.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from llama_edge.core.errors import ArtifactError, CheckFailedError
from llama_edge.core.files import file_sha256, read_json_object, write_json
from llama_edge.core.manifest import FileEntry, Manifest, TensorEntry
from llama_edge.core.packing import QuantizedTensor, tensor_sha256
from llama_edge.core.progress import Progress
from llama_edge.core.types import QuantizedWeights

MANIFEST_FILE: Final = "manifest.json"
PARITY_FILE: Final = "parity.json"

#: A 3B manifest with a Llama 3 template has well under one MiB.
MAX_MANIFEST_BYTES: Final = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A bundle on disk whose manifest follows the schema and whose files are all there, whole."""

    root: Path
    manifest: Manifest


def list_files(folder: Path, first: Sequence[str]) -> tuple[FileEntry, ...]:
    """Every file of `folder` but the manifest: those of `first` in their order, then by name."""
    found = {
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    } - {MANIFEST_FILE}
    names = [*first, *sorted(found.difference(first))]
    return tuple(
        FileEntry(
            path=name,
            size_bytes=(folder / name).stat().st_size,
            sha256=file_sha256(folder / name),
        )
        for name in names
    )


def list_tensors(
    weights: QuantizedWeights, progress: Progress, stage: str = "read codes back"
) -> tuple[TensorEntry, ...]:
    """Every quantized matrix with the hashes of its codes and scales, in canonical order."""
    names = weights.quantized_names()
    progress.start(stage, len(names))

    def entries() -> Iterator[TensorEntry]:
        for name in names:
            yield _tensor_entry(name, weights.quantized(name))
            progress.advance()

    return tuple(entries())


def _tensor_entry(name: str, tensor: QuantizedTensor) -> TensorEntry:
    return TensorEntry(
        name=name,
        shape=tensor.shape,
        bits=tensor.bits,
        group_size=tensor.group_size,
        codes_sha256=tensor_sha256(tensor.codes),
        scales_sha256=tensor_sha256(tensor.scales),
    )


def compare_tensors(expected: Sequence[TensorEntry], found: Sequence[TensorEntry]) -> None:
    """Both lists must be the same, entry by entry.

    Raises:
        CheckFailedError: Naming the first matrix that differs and how.
    """
    if len(expected) != len(found):
        raise CheckFailedError(
            f"the artifact holds {len(found)} quantized matrices and {len(expected)} were given; "
            "the file was not written from this checkpoint"
        )
    for want, have in zip(expected, found, strict=True):
        for field in ("name", "shape", "bits", "group_size", "codes_sha256", "scales_sha256"):
            if getattr(want, field) != getattr(have, field):
                raise CheckFailedError(
                    f"{want.name}: {field} read back from the artifact is {getattr(have, field)} "
                    f"and must be {getattr(want, field)}; the file is damaged or wrongly lowered"
                )


def write_manifest(folder: Path, manifest: Manifest) -> Bundle:
    """Write `manifest.json`, the last file of a bundle.

    Raises:
        ArtifactError: The manifest breaks its own schema.
    """
    write_json(folder / MANIFEST_FILE, manifest.to_json())
    return Bundle(root=folder, manifest=manifest)


def is_bundle(path: Path) -> bool:
    """Whether `path` is a folder with a manifest, whatever the manifest says."""
    return (path / MANIFEST_FILE).is_file()


def open_bundle(folder: Path) -> Bundle:
    """Read an untrusted bundle and hold every file against its manifest.

    Raises:
        ArtifactError: No bundle, a manifest that breaks the schema or is of a newer format, or a
            path or symlink that leaves the folder.
        CheckFailedError: A file is missing, or its size or hash is not the manifest's.
    """
    bundle = read_manifest(folder)
    for entry in bundle.manifest.files:
        _check_file(folder, entry)
    return bundle


def read_manifest(folder: Path) -> Bundle:
    """Read the manifest alone: for showing it, not for trusting the files.

    Raises:
        ArtifactError: As `open_bundle`, but no file is opened.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise ArtifactError(f"{folder}: no {MANIFEST_FILE}; this is not a llama-edge bundle")
    size = path.stat().st_size
    if size > MAX_MANIFEST_BYTES:
        raise ArtifactError(f"{path}: has {size} bytes; at most {MAX_MANIFEST_BYTES} are read")
    manifest = Manifest.from_json(read_json_object(path), str(path))
    for entry in manifest.files:
        _check_inside(folder, entry.path)
    return Bundle(root=folder, manifest=manifest)


def _check_inside(folder: Path, name: str) -> None:
    """No absolute path, no `..`, no symlink that points out of the folder."""
    parts = PurePosixPath(name).parts
    inside = not PurePosixPath(name).is_absolute() and ".." not in parts and "\\" not in name
    if not inside or not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise ArtifactError(
            f"{folder / MANIFEST_FILE}: the file {name!r} lies outside the bundle; "
            "do not trust this bundle"
        )


def _check_file(folder: Path, entry: FileEntry) -> None:
    path = folder / entry.path
    if not path.is_file():
        raise CheckFailedError(f"{path}: the file is missing; copy or export the bundle again")
    size = path.stat().st_size
    if size != entry.size_bytes:
        raise CheckFailedError(
            f"{path}: has {size} bytes and the manifest says {entry.size_bytes}; "
            "copy or export the bundle again"
        )
    sha256 = file_sha256(path)
    if sha256 != entry.sha256:
        raise CheckFailedError(
            f"{path}: its SHA-256 is {sha256} and the manifest says {entry.sha256}; the file was "
            "changed: copy or export the bundle again"
        )
