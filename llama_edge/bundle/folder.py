"""Writing and reading a bundle: one flat folder of the artifact, its text files and the manifest.

Layout: `manifest.json`, `parity.json` (the measurements in full), the backend's files, and the
tokenizer as Hugging Face's tools expect it. The manifest lists every other file with its hash, and
nothing else may be in the folder.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from llama_edge.bundle.finding_codes import (
    ContractCheckError,
    ContractFinding,
    ContractViolationError,
    not_a_file,
)
from llama_edge.bundle.manifest import (
    MANIFEST_FILE,
    SIGNATURE_FILE,
    FileEntry,
    Manifest,
    TensorEntry,
)
from llama_edge.bundle.signing import NO_KEY, Trust
from llama_edge.core.errors import ArtifactError, CheckFailedError, ConfigError
from llama_edge.core.files import write_text
from llama_edge.core.json_files import canonical_json, parse_json_object
from llama_edge.core.packing import QuantizedTensor, tensor_sha256
from llama_edge.core.progress import Progress
from llama_edge.core.quantized import QuantizedWeights
from llama_edge.core.regular import FileState, kind_of, open_inside, read_regular, stream_sha256
from llama_edge.core.walk import walk

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
    #: the bytes of `manifest.json` from which the manifest was parsed
    source: bytes = field(repr=False)
    #: of each file whose hash was compared, before it was read
    checked: dict[str, FileState] = field(default_factory=dict, compare=False, repr=False)

    def require_unchanged(self) -> None:
        """Libraries open the files by name: afterwards, what they opened is what was checked.

        Raises:
            ContractCheckError: A file is another one, or has been written to, since its hash was
                compared with the manifest's.
        """
        for finding in check_unchanged(self):
            raise ContractCheckError(finding, self.root / finding.where)


def list_files(folder: Path, first: Sequence[str]) -> tuple[FileEntry, ...]:
    """Every file of `folder` but the manifest: those of `first` in their order, then by name."""
    found = {entry.name for entry in walk(folder) if entry.is_file} - _NOT_LISTED
    return tuple(_entry(folder, name) for name in (*first, *sorted(found.difference(first))))


def _entry(folder: Path, name: str) -> FileEntry:
    with open_inside(folder, name) as stream:
        size_bytes = FileState.of(stream).size_bytes
        return FileEntry(path=name, size_bytes=size_bytes, sha256=stream_sha256(stream))


def _names(folder: Path) -> set[str]:
    """Everything that a manifest has to list, and every folder with nothing in it."""
    entries = list(walk(folder))
    filled = {entry.name.rpartition("/")[0] for entry in entries}
    found = {entry.name for entry in entries if not (entry.is_folder and entry.name in filled)}
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
        for name, wanted in asdict(want).items():
            value = getattr(have, name)
            if value != wanted:
                raise CheckFailedError(
                    f"{want.name}: {name} read back from the artifact is {value} and must be "
                    f"{wanted}; the file is damaged or wrongly lowered"
                )


def write_manifest(folder: Path, manifest: Manifest) -> Bundle:
    """Write `manifest.json`, the last file of a bundle.

    Raises:
        ArtifactError: The manifest breaks its own schema.
    """
    text = canonical_json(manifest.to_json())
    write_text(folder / MANIFEST_FILE, text)
    return Bundle(root=folder, manifest=manifest, source=text.encode())


def is_bundle(path: Path) -> bool:
    """Whether `path` is a folder with something called as a manifest is, whatever it is."""
    return os.path.lexists(path / MANIFEST_FILE)


def open_bundle(folder: Path, trust: Trust = NO_KEY) -> Bundle:
    """Read an untrusted bundle and compare every file with its manifest.

    Whoever then opens the files by name calls `Bundle.require_unchanged` afterwards.

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
        ContractViolationError: As `parse_manifest`; or a path leaves the folder, or something in it
            is no regular file.
        ContractCheckError: As `parse_manifest`; or a file is there that the manifest does not list.
    """
    bundle = parse_manifest(folder, trust)
    for finding in check_places(bundle):
        raise ContractViolationError(finding, folder / finding.where)
    for finding in check_unlisted(bundle):
        raise ContractCheckError(finding, folder / finding.where)
    return bundle


def parse_manifest(folder: Path, trust: Trust | None = NO_KEY) -> Bundle:
    """The manifest, before any of its words has been compared with the folder.

    Of bytes whose signature does not hold nothing is parsed.

    Args:
        folder: The bundle.
        trust: Whose signature it must have; None does not look at a signature, which is about to be
            replaced.

    Raises:
        ContractViolationError: There is none, or it breaks the schema, or is of a newer format.
        ContractCheckError: The signature is not the one that `trust` demands.
    """
    path = folder / MANIFEST_FILE
    source = _read_source(path)
    finding = None if trust is None else trust.check(folder, source)
    if finding is not None:
        raise ContractCheckError(finding, folder / finding.where)
    try:
        value = parse_json_object(source, str(path))
    except ArtifactError as error:
        found = str(error).removeprefix(f"{path}: ")
        raise _unread("manifest.not_json", path, "a JSON object", found) from error
    try:
        manifest = Manifest.from_json(value, str(path))
    except ConfigError as error:
        raise _unread("manifest.schema", path, "a model and a recipe", str(error)) from error
    return Bundle(root=folder, manifest=manifest, source=source)


def _read_source(path: Path) -> bytes:
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _unread("manifest.missing", path, MANIFEST_FILE, "no such file") from error
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be opened: {error.strerror}") from error
    if stat.S_ISLNK(status.st_mode):
        raise ContractViolationError(not_a_file(MANIFEST_FILE, status.st_mode), path)
    if not stat.S_ISREG(status.st_mode):
        raise _unread("manifest.missing", path, MANIFEST_FILE, kind_of(status.st_mode))
    if status.st_size > MAX_MANIFEST_BYTES:
        expected = f"at most {MAX_MANIFEST_BYTES} bytes"
        raise _unread("manifest.too_large", path, expected, f"{status.st_size} bytes")
    return read_regular(path, MAX_MANIFEST_BYTES, follow_links=False)


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
    for found in walk(bundle.root):
        if not found.is_folder and not found.is_file:
            yield not_a_file(found.name, found.status.st_mode)


def check_listed(bundle: Bundle) -> Iterator[ContractFinding]:
    """Every file that the manifest lists is there, whole and unchanged."""
    for entry in bundle.manifest.files:
        finding = _check_file(bundle, entry)
        if finding is not None:
            yield finding


def check_unchanged(bundle: Bundle) -> Iterator[ContractFinding]:
    """Every file that `check_listed` found right is still the same file."""
    for name, state in bundle.checked.items():
        try:
            with open_inside(bundle.root, name) as stream:
                found = FileState.of(stream)
        except ArtifactError:
            found = None
        if found != state:
            yield _about_file(
                "sha256", name, "the file whose hash was checked", "one that was changed since"
            )


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


def _check_file(bundle: Bundle, entry: FileEntry) -> ContractFinding | None:
    """Size and hash of what was opened, and which file that was."""
    try:
        with open_inside(bundle.root, entry.path) as stream:
            state = FileState.of(stream)
            if state.size_bytes != entry.size_bytes:
                expected, found = f"{entry.size_bytes} bytes", f"{state.size_bytes} bytes"
                return _about_file("size", entry.path, expected, found)
            sha256 = stream_sha256(stream)
    except ArtifactError as error:
        found = str(error).removeprefix(f"{bundle.root / entry.path}: ")
        return _about_file("missing", entry.path, f"{entry.size_bytes} bytes", found)
    if sha256 != entry.sha256:
        return _about_file("sha256", entry.path, f"SHA-256 {entry.sha256}", sha256)
    bundle.checked[entry.path] = state
    return None


def _about_file(kind: str, where: str, expected: str, found: str) -> ContractFinding:
    return ContractFinding(code=f"files.{kind}", where=where, expected=expected, found=found)
