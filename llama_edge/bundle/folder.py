"""Writing and reading a bundle: one flat folder of the artifact, its text files and the manifest.

Layout: `manifest.json`, `parity.json` (the measurements in full), the backend's files, and the
tokenizer as Hugging Face's tools expect it. The manifest lists every other file with its hash, and
nothing else may be in the folder.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llama_edge.bundle.finding_codes import (
    ContractCheckError,
    ContractFinding,
    ContractViolationError,
)
from llama_edge.bundle.manifest import (
    MANIFEST_FILE,
    SIGNATURE_FILE,
    FileEntry,
    Manifest,
    TensorEntry,
)
from llama_edge.bundle.signing import NO_KEY, Trust
from llama_edge.core.errors import ArtifactError, CheckFailedError
from llama_edge.core.files import write_json
from llama_edge.core.json_files import read_json_object
from llama_edge.core.packing import QuantizedTensor, tensor_sha256
from llama_edge.core.progress import Progress
from llama_edge.core.quantized import QuantizedWeights
from llama_edge.core.regular import file_sha256, kind_of

PARITY_FILE: Final = "parity.json"

#: What no manifest lists: itself, and what is made of it afterwards.
_NOT_LISTED: Final = frozenset({MANIFEST_FILE, SIGNATURE_FILE})

#: A 3B manifest with a Llama 3 template has well under one MiB.
MAX_MANIFEST_BYTES: Final = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A bundle on disk, and its manifest, which follows the schema."""

    root: Path
    manifest: Manifest


def list_files(folder: Path, first: Sequence[str]) -> tuple[FileEntry, ...]:
    """Every file of `folder` but the manifest: those of `first` in their order, then by name."""
    found = {name for name in _names(folder) if (folder / name).is_file()}
    names = [*first, *sorted(found.difference(first))]
    return tuple(
        FileEntry(
            path=name,
            size_bytes=(folder / name).stat().st_size,
            sha256=file_sha256(folder / name),
        )
        for name in names
    )


def _names(folder: Path) -> set[str]:
    """Every file that a manifest has to list, and every folder with nothing in it."""
    found = set()
    for root, folders, files in os.walk(folder):
        here = Path(root).relative_to(folder)
        found |= {(here / name).as_posix() for name in files}
        if not folders and not files and here.parts:
            found.add(here.as_posix())
    return found - _NOT_LISTED


def list_tensors(
    weights: QuantizedWeights, progress: Progress, stage: str = "read values back"
) -> tuple[TensorEntry, ...]:
    """Every quantized matrix with the hashes of its codes and scales, in canonical order."""
    names = weights.quantized_names()
    progress.start(stage, len(names))

    def entries() -> Iterator[TensorEntry]:
        for name in names:
            yield tensor_entry(name, weights.quantized(name))
            progress.advance()

    return tuple(entries())


def tensor_entry(name: str, tensor: QuantizedTensor) -> TensorEntry:
    """One matrix with the hashes of its codes and scales."""
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


def open_bundle(folder: Path, trust: Trust = NO_KEY) -> Bundle:
    """Read an untrusted bundle and compare every file with its manifest.

    Args:
        folder: The bundle.
        trust: Whose signature it must have, if anybody's.

    Raises:
        ContractViolationError: As `read_manifest`.
        ContractCheckError: As `read_manifest`; or a file is missing, or its size or hash is not the
            manifest's.
    """
    bundle = read_manifest(folder, trust)
    for finding in check_listed(bundle):
        raise ContractCheckError(finding, folder / finding.where)
    return bundle


def read_manifest(folder: Path, trust: Trust = NO_KEY) -> Bundle:
    """Read the manifest of a bundle whose files may be damaged; none of them is opened.

    Raises:
        ContractViolationError: No bundle, a manifest that breaks the schema or is of a newer
            format, a path that leaves the folder, or something in it that is no regular file.
        ContractCheckError: The signature is not the one that `trust` demands, or a file is there
            that the manifest does not list.
    """
    _require_manifest_file(folder)
    for finding in trust.check(folder):
        raise ContractCheckError(finding, folder / finding.where)
    bundle = parse_manifest(folder)
    for finding in check_places(bundle):
        raise ContractViolationError(finding, folder / finding.where)
    for finding in check_unlisted(bundle):
        raise ContractCheckError(finding, folder / finding.where)
    return bundle


def parse_manifest(folder: Path) -> Bundle:
    """The manifest, before any of its words has been compared with the folder.

    Raises:
        ContractViolationError: There is none, or it breaks the schema, or is of a newer format.
    """
    _require_manifest_file(folder)
    path = folder / MANIFEST_FILE
    try:
        value = read_json_object(path, limit=MAX_MANIFEST_BYTES)
    except ArtifactError as error:
        found = str(error).removeprefix(f"{path}: ")
        raise _unread("manifest.not_json", path, "a JSON object", found) from error
    return Bundle(root=folder, manifest=Manifest.from_json(value, str(path)))


def _require_manifest_file(folder: Path) -> None:
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise _unread("manifest.missing", path, MANIFEST_FILE, "no such file")
    size = path.stat().st_size
    if size > MAX_MANIFEST_BYTES:
        expected = f"at most {MAX_MANIFEST_BYTES} bytes"
        raise _unread("manifest.too_large", path, expected, f"{size} bytes")


def _unread(code: str, path: Path, expected: str, found: str) -> ContractViolationError:
    finding = ContractFinding(code=code, where=MANIFEST_FILE, expected=expected, found=found)
    return ContractViolationError(finding, path)


def check_places(bundle: Bundle) -> Iterator[ContractFinding]:
    """Paths stay in the folder, and everything in it, listed or not, is a folder or a plain file.

    A link is refused wherever it points: what it points to can be changed after the check. A named
    pipe or a device gives its reader other bytes each time, or none.
    """
    for entry in bundle.manifest.files:
        if not {"", ".", ".."}.isdisjoint(entry.path.split("/")):
            yield ContractFinding(
                code="files.outside",
                where=MANIFEST_FILE,
                expected="paths inside of the bundle",
                found=repr(entry.path),
            )
    for path in sorted(bundle.root.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode) or stat.S_ISREG(mode):
            continue
        yield ContractFinding(
            code="files.symlink" if stat.S_ISLNK(mode) else "files.kind",
            where=path.relative_to(bundle.root).as_posix(),
            expected="a file of the bundle's own",
            found=kind_of(mode),
        )


def check_listed(bundle: Bundle) -> Iterator[ContractFinding]:
    """Every file that the manifest lists is there, whole and unchanged."""
    for entry in bundle.manifest.files:
        finding = _check_file(bundle.root, entry)
        if finding is not None:
            yield finding


def check_unlisted(bundle: Bundle) -> Iterator[ContractFinding]:
    """Nothing else is there: what no manifest lists, nobody has checked."""
    listed = {entry.path for entry in bundle.manifest.files}
    for name in sorted(_names(bundle.root) - listed):
        yield ContractFinding(
            code="files.unlisted",
            where=name,
            expected=f"the {len(listed)} files of {MANIFEST_FILE} alone",
            found="one more",
        )


def _check_file(folder: Path, entry: FileEntry) -> ContractFinding | None:
    path = folder / entry.path

    def finding(kind: str, expected: str, found: str) -> ContractFinding:
        code = f"files.{kind}"
        return ContractFinding(code=code, where=entry.path, expected=expected, found=found)

    if not path.is_file():
        return finding("missing", f"{entry.size_bytes} bytes", "no such file")
    size = path.stat().st_size
    if size != entry.size_bytes:
        return finding("size", f"{entry.size_bytes} bytes", f"{size} bytes")
    sha256 = file_sha256(path)
    if sha256 != entry.sha256:
        return finding("sha256", f"SHA-256 {entry.sha256}", sha256)
    return None
