"""Which folders llama-edge wrote: nothing else is ever replaced or removed.

An output folder is recognised by what is in it: a bundle's `manifest.json`, a quantized
checkpoint's `quantization.json`, or, in any other output, the record that `write_record` left.
Each of them accounts for every file of the folder; one file more, and the folder is the user's.
"""

import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from llama_edge.core.errors import OutputError
from llama_edge.core.json_files import MAX_INDEX_BYTES, read_json_object
from llama_edge.core.regular import kind_of

#: In an output folder that has no manifest of its own: what llama-edge wrote into it.
RECORD_FILE: Final = ".llama-edge.json"
_PRODUCT: Final = "llama-edge"
_BUNDLE_FILE: Final = "manifest.json"
_CHECKPOINT_FILE: Final = "quantization.json"
#: A bundle's signature, which its manifest does not list.
_SIGNATURE_FILE: Final = "manifest.sig"
_MOUNTS_FILE: Final = Path("/proc/self/mountinfo")
_OCTAL_ESCAPE: Final = re.compile(r"\\([0-7]{3})")


def write_record(folder: Path) -> None:
    """Note in `folder` what is there, unless a manifest or `quantization.json` tells it."""
    if (folder / _BUNDLE_FILE).is_file() or (folder / _CHECKPOINT_FILE).is_file():
        return
    names = sorted(_relative(folder, path) for path in _entries(folder) if not path.is_dir())
    record = {"written_by": _PRODUCT, "files": names}
    text = json.dumps(record, indent=2, ensure_ascii=True) + "\n"
    (folder / RECORD_FILE).write_text(text, encoding="utf-8")


def require_own(path: Path) -> None:
    """Refuse to replace `path`, which exists, unless llama-edge wrote it or it is an empty folder.

    Raises:
        OutputError: It is a link, a file, a device, the place of a mount, or a folder with
            something in it that llama-edge did not write; the message names that.
    """
    mode = path.lstat().st_mode
    if not stat.S_ISDIR(mode):
        raise OutputError(
            f"{path}: is {kind_of(mode)}, and only an empty folder, or one that llama-edge wrote, "
            "is replaced; move it away, or name another --out"
        )
    refuse_mounts(path)
    with os.scandir(path) as entries:
        if not any(entries):
            return
    known = _known_files(path)
    for entry in _entries(path):
        if known is None or not _is_accounted(path, entry, known):
            raise OutputError(
                f"{path}: holds {_relative(path, entry)}, which llama-edge did not write there, so "
                "the folder is not replaced; move it away, or name another --out"
            )


def _entries(folder: Path) -> Iterator[Path]:
    """Everything below `folder`, folders included; no link is followed."""
    for root, folders, files in os.walk(folder):
        for name in sorted(files) + sorted(folders):
            yield Path(root, name)


def _relative(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()


def _is_accounted(folder: Path, entry: Path, known: frozenset[str]) -> bool:
    """A regular file that is listed, or a folder on the way to one."""
    name, mode = _relative(folder, entry), entry.lstat().st_mode
    if stat.S_ISDIR(mode):
        return any(listed.startswith(f"{name}/") for listed in known)
    return stat.S_ISREG(mode) and name in known


def _known_files(folder: Path) -> frozenset[str] | None:
    """The files that llama-edge says it wrote; None: nothing here says so."""
    for name, files_of in _RECORDS.items():
        record = _read_record(folder / name)
        files = None if record is None else files_of(record)
        if files is not None:
            return files | {name}
    return None


def _read_record(path: Path) -> dict[str, Any] | None:
    try:
        return read_json_object(path, OutputError, limit=MAX_INDEX_BYTES, follow_links=False)
    except OutputError:
        return None


def _files_of_bundle(manifest: dict[str, Any]) -> frozenset[str] | None:
    """Of any version: the names by which every manifest of ours is known have to be there."""
    signs = ("format_version", "verdict", "recipe", "backend", "tensors")
    files = manifest.get("files")
    if not all(sign in manifest for sign in signs) or not isinstance(files, list):
        return None
    paths = [entry.get("path") for entry in files if isinstance(entry, dict)]
    return frozenset(path for path in paths if isinstance(path, str)) | {_SIGNATURE_FILE}


def _files_of_checkpoint(description: dict[str, Any]) -> frozenset[str] | None:
    signs = ("format_version", "config", "recipe", "source_sha256", "calibration")
    if not all(sign in description for sign in signs):
        return None
    return frozenset(
        (
            "generation_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "weights.safetensors",
        )
    )


def _files_of_record(record: dict[str, Any]) -> frozenset[str] | None:
    files = record.get("files")
    if record.get("written_by") != _PRODUCT or not isinstance(files, list):
        return None
    return frozenset(name for name in files if isinstance(name, str))


_RECORDS: Final[Mapping[str, Callable[[dict[str, Any]], frozenset[str] | None]]] = {
    _BUNDLE_FILE: _files_of_bundle,
    _CHECKPOINT_FILE: _files_of_checkpoint,
    RECORD_FILE: _files_of_record,
}


def refuse_mounts(folder: Path) -> None:
    """Refuse to remove a folder through which another file system would be emptied.

    Raises:
        OutputError: `folder` or one in it is where something is mounted.
    """
    real = folder.resolve()
    for mount in _mounts(real):
        raise OutputError(
            f"{folder}: something is mounted at {mount}, and would be emptied with it; unmount it, "
            "or name another --out"
        )


def _mounts(folder: Path) -> Iterator[Path]:
    """Mount points at or below `folder`, bind mounts of the same file system included on Linux."""
    try:
        lines = _MOUNTS_FILE.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:  # not Linux
        yield from (path for path in (folder, *_entries(folder)) if os.path.ismount(path))
        return
    for line in lines:
        place = _OCTAL_ESCAPE.sub(lambda found: chr(int(found[1], 8)), line.split(" ")[4])
        if Path(place).is_relative_to(folder):
            yield Path(place)


def remove_tree(path: Path) -> None:
    """Remove what is at `path`, a link and never what it points to; nothing there is no fault.

    Raises:
        OutputError: Something is mounted below it.
    """
    try:
        is_folder = stat.S_ISDIR(path.lstat().st_mode)
    except FileNotFoundError:
        return
    if not is_folder:
        path.unlink(missing_ok=True)
        return
    refuse_mounts(path)
    shutil.rmtree(path, ignore_errors=True)
