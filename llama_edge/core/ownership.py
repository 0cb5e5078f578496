"""Which folders llama-edge wrote: nothing else is ever replaced or removed.

An output folder is recognised by what is in it: a bundle's `manifest.json`, a quantized
checkpoint's `quantization.json`, or, in any other output, a record of its own. Each of them
accounts for every file of the folder; one file more, and the folder is the user's.
"""

import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from llama_edge.core.errors import OutputError
from llama_edge.core.json_files import MAX_INDEX_BYTES, read_json_object
from llama_edge.core.regular import kind_of, real_path
from llama_edge.core.walk import walk

#: What `record_of` says, in an output folder that has no manifest.
RECORD_FILE: Final = ".llama-edge.json"
_PRODUCT: Final = "llama-edge"
_BUNDLE_FILE: Final = "manifest.json"
_CHECKPOINT_FILE: Final = "quantization.json"
#: A bundle's signature, which its manifest does not list.
_SIGNATURE_FILE: Final = "manifest.sig"
_MOUNTS_FILE: Final = Path("/proc/self/mountinfo")
_OCTAL_ESCAPE: Final = re.compile(r"\\([0-7]{3})")


def record_of(folder: Path) -> dict[str, Any] | None:
    """What `RECORD_FILE` has to say of `folder`; None: a manifest or `quantization.json` does."""
    if (folder / _BUNDLE_FILE).is_file() or (folder / _CHECKPOINT_FILE).is_file():
        return None
    names = sorted(entry.name for entry in walk(folder, OutputError) if not entry.is_folder)
    return {"written_by": _PRODUCT, "files": names}


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
    entries = list(walk(path, OutputError))
    known = _known_files(path)
    filled = {entry.name.rpartition("/")[0] for entry in entries}
    for entry in entries:
        names = filled if entry.is_folder else known if entry.is_file else ()
        if entry.name not in names:
            raise OutputError(
                f"{path}: holds {entry.name}, which llama-edge did not write there, so the folder "
                "is not replaced; move it away, or name another --out"
            )


def _known_files(folder: Path) -> frozenset[str]:
    """The files that llama-edge says it wrote."""
    for name, files_of in _RECORDS.items():
        record = _read_record(folder / name)
        files = None if record is None else files_of(record)
        if files is not None:
            return files | {name}
    return frozenset()


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
    real = real_path(folder)
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
        inner = (folder / entry.name for entry in walk(folder, OutputError))
        yield from (path for path in (folder, *inner) if os.path.ismount(path))
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
