"""Folders for work that is not finished: one run at a time, and what a killed one left is found.

Who works in a folder holds an advisory lock (`flock`) on a file in it. The system lets go of it
however the process ends, so a folder that nobody holds is a killed run's.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from llama_edge.core.errors import OutputError
from llama_edge.core.progress import Progress

_LOCK: Final = "lock"


@contextmanager
def unfinished_folder(
    path: Path, *, keep: bool = False, waiting: Progress | None = None
) -> Iterator[Path]:
    """The folder `path`, made where it is absent, held by this process alone while the block runs.

    It is removed when the block ends well. What an earlier run left in it is still there.

    Args:
        path: The folder; its parent exists.
        keep: After an error, an interrupt included, it stays as it is for the next run.
        waiting: Told when another process holds the folder, which is then waited for.

    Raises:
        OutputError: Another process holds it, and `waiting` is None.
    """
    descriptor = _hold(path, waiting)
    try:
        yield path
    except BaseException:
        if not keep:
            _remove(path)
        raise
    else:
        _remove(path)
    finally:
        os.close(descriptor)


def empty(folder: Path) -> Path:
    """The folder without what a killed run left in it; made where it is absent."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _remove(path: Path) -> None:
    """The lock goes last: who then holds a new one finds nothing that is still to be removed."""
    for entry in path.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        elif entry.name != _LOCK:
            entry.unlink(missing_ok=True)
    (path / _LOCK).unlink(missing_ok=True)
    with suppress(OSError):  # another run is in it already
        path.rmdir()


def _hold(path: Path, waiting: Progress | None) -> int:
    """A descriptor whose lock is held, of a lock file that is still in its place."""
    told = False
    while True:
        path.mkdir(exist_ok=True)
        try:
            descriptor = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except FileNotFoundError:  # its owner has just finished and removed the folder
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting is None:
                os.close(descriptor)
                raise OutputError(
                    f"{path}: another run works here; wait for it to end, or choose another --out"
                ) from None
            if not told:
                waiting.start("wait for another run that does the same", 1)
                told = True
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:
            os.close(descriptor)
            raise
        if _is_in_place(descriptor, path / _LOCK):
            return descriptor
        os.close(descriptor)


def _is_in_place(descriptor: int, path: Path) -> bool:
    """Whether the file that was opened is the one of that name; its owner may have removed it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
