"""Walking a folder that somebody else may have made: no link is followed, and it ends.

Python's own walks leave out what they cannot list, and go as deep as there are folders.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from llama_edge.core.errors import ArtifactError
from llama_edge.core.regular import ErrorClass

#: A Core ML package has four levels, an output of llama-edge one more.
MAX_DEPTH: Final = 32
#: A checkpoint has some hundred files.
MAX_ENTRIES: Final = 100_000


@dataclass(frozen=True, slots=True)
class Entry:
    """Something in a folder; `status` is its own and not that of what a link points to."""

    #: relative to the folder, with forward slashes
    name: str
    status: os.stat_result

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder, and no link to one."""
        return stat.S_ISDIR(self.status.st_mode)

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file, and no link to one."""
        return stat.S_ISREG(self.status.st_mode)


def walk(
    folder: Path, error_class: ErrorClass = ArtifactError, *, depth: int = MAX_DEPTH
) -> Iterator[Entry]:
    """Everything below `folder`, folders included; a folder's entries in the order of their names.

    What disappears meanwhile is left out.

    Args:
        folder: It may itself be reached through links.
        error_class: Of what is raised.
        depth: Levels of folders that there may be; 1 lists `folder` alone, and its folders are not
            looked into.

    Raises:
        LlamaEdgeError: An `error_class`: a folder cannot be listed; or there are more levels than
            `MAX_DEPTH`, or more than `MAX_ENTRIES` entries.
    """
    count = 0
    unseen = [""]
    while unseen:
        prefix = unseen.pop()
        level = prefix.count("/")
        if level >= depth:
            if depth < MAX_DEPTH:
                continue
            raise error_class(
                f"{folder}: holds folders in folders, more than {MAX_DEPTH} levels deep; give a "
                "folder that a program for models wrote"
            )
        entries = _entries(folder, prefix, error_class, MAX_ENTRIES - count)
        count += len(entries)
        yield from entries
        unseen += [f"{entry.name}/" for entry in reversed(entries) if entry.is_folder]


def _entries(folder: Path, prefix: str, error_class: ErrorClass, most: int) -> list[Entry]:
    try:
        with os.scandir(folder / prefix) as listed:
            found = list(islice(listed, most + 1))
    except FileNotFoundError as error:
        if prefix:
            return []
        raise error_class(f"{folder}: there is no such folder") from error
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise error_class(f"{folder / prefix}: cannot be listed: {why}") from error
    if len(found) > most:
        raise error_class(f"{folder}: holds more than {MAX_ENTRIES} files and folders")
    entries = []
    for each in sorted(found, key=lambda item: item.name):
        try:
            entries.append(Entry(f"{prefix}{each.name}", each.stat(follow_symlinks=False)))
        except FileNotFoundError:
            continue
    return entries
