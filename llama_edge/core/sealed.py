"""A folder that this program left for a later run of its own, which takes it only as it was left.

A seal is a file with the SHA-256 of every other file, and the key of what was made: it is written
last, and is the first to be read. It finds damage, an edit, and what was made for something else.
Who can write to the folder can write another seal; so it belongs in a folder of this user alone.
"""

import os
import stat
from pathlib import Path
from typing import Final

from llama_edge.core.errors import ArtifactError
from llama_edge.core.files import write_json
from llama_edge.core.json_files import MAX_INDEX_BYTES, read_json_object
from llama_edge.core.ownership import RECORD_FILE
from llama_edge.core.regular import kind_of, open_inside, stream_sha256
from llama_edge.core.walk import walk

SEAL_FILE: Final = "sealed.json"
#: What is no part of what was made.
_NOT_SEALED: Final = frozenset((SEAL_FILE, RECORD_FILE))


def seal(folder: Path, key: str, file: Path | None = None) -> None:
    """Write down what is in `folder`, which is finished.

    Args:
        folder: Regular files, in folders or not.
        key: Of everything that they were made from.
        file: Where to; None: in the folder itself.
    """
    files = {name: _sha256(folder, name) for name in sealed_files(folder)}
    write_json(file or folder / SEAL_FILE, {"files": files, "key": key})


def sealed_files(folder: Path) -> list[str]:
    """The files that `seal` writes down, by name."""
    names = (entry.name for entry in walk(folder) if not entry.is_folder)
    return sorted(name for name in names if name not in _NOT_SEALED)


def fault(folder: Path, key: str, file: Path | None = None) -> str | None:
    """Why `folder` is not what was sealed under `key`; None: it is."""
    try:
        mode = folder.lstat().st_mode
        if not stat.S_ISDIR(mode):
            return f"is {kind_of(mode)}"
        written = read_json_object(
            file or folder / SEAL_FILE, limit=MAX_INDEX_BYTES, follow_links=False
        )
        if any(entry.status.st_uid != os.geteuid() for entry in walk(folder)):
            return "belongs to another user"
        listed = written.get("files")
        if written.get("key") != key or not isinstance(listed, dict):
            return "was made for something else"
        found = {name: _sha256(folder, name) for name in sealed_files(folder)}
    except (ArtifactError, OSError) as error:
        return str(error).removeprefix(f"{folder}/")
    changed = {name for name in {*found, *listed} if found.get(name) != listed.get(name)}
    return f"{min(changed)} is not as it was left" if changed else None


def _sha256(folder: Path, name: str) -> str:
    with open_inside(folder, name) as stream:
        return stream_sha256(stream)
