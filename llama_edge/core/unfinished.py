"""Folders for work that is not finished: one run at a time, and what a killed one left is found.

A work folder has a marker file, which holds the folder's own inode number: a folder that somebody
else made, copied or unpacked has another, and nothing in it is touched. Who works in the folder
holds an advisory lock on the marker. The system releases it however the process ends, so a folder
that nobody holds is an interrupted run's. The lock is taken on an open descriptor, by portalocker:
filelock opens the path itself, follows a link there and truncates what it finds.
"""

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import portalocker
from portalocker import LockFlags
from portalocker.exceptions import AlreadyLocked

from llama_edge.core.errors import OutputError
from llama_edge.core.json_files import parse_json_object
from llama_edge.core.ownership import refuse_mounts, remove_tree
from llama_edge.core.progress import Progress
from llama_edge.core.regular import NO_LINK, NO_WAITING

MARKER: Final = "llama-edge.lock"
_MAX_MARKER_BYTES: Final = 4096
_NO_SURPRISE: Final = NO_LINK | NO_WAITING


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
        OutputError: Something of that name exists that this program did not make here; or another
            process holds the folder, and `waiting` is None.
    """
    descriptor = _hold(path, waiting)
    try:
        refuse_mounts(path)
        yield path
    except BaseException:
        if not keep:
            with suppress(OutputError):  # the error of the block is the one to tell
                _remove(path)
        raise
    else:
        _remove(path)
    finally:
        os.close(descriptor)


def is_unfinished_folder(path: Path) -> bool:
    """Whether `path` is a work folder of this program, held or left by an interrupted run."""
    try:
        with _opened(path) as folder:
            marker = os.open(MARKER, os.O_RDONLY | _NO_SURPRISE, dir_fd=folder)
            try:
                return _is_private(marker) and _is_marker_of(folder, marker)
            finally:
                os.close(marker)
    except (OutputError, OSError):
        return False


def require_unfinished_place(path: Path) -> None:
    """Refuse before any work what `unfinished_folder` would refuse; nothing is made or removed.

    Raises:
        OutputError: Something of that name exists that this program did not make here.
    """
    try:
        with _opened(path) as folder:
            is_empty = not _names(folder)
    except FileNotFoundError:
        return
    if not is_empty and not is_unfinished_folder(path):
        raise _foreign(path)


def empty(folder: Path) -> Path:
    """The folder without what an interrupted run left in it; made where it is absent.

    Args:
        folder: Lies in a folder of `unfinished_folder`.
    """
    remove_tree(folder)
    folder.mkdir()
    return folder


def _remove(path: Path) -> None:
    """The marker goes last: who then makes a new folder finds nothing still to be removed."""
    refuse_mounts(path)
    for entry in path.iterdir():
        if entry.name != MARKER:
            remove_tree(entry)
    (path / MARKER).unlink(missing_ok=True)
    with suppress(OSError):  # another run is in it already
        path.rmdir()


def _hold(path: Path, waiting: Progress | None) -> int:
    """A descriptor whose lock is held, of a marker that is still in its place."""
    told = False
    while True:
        try:
            descriptor = _open_marker(path)
        except FileNotFoundError:  # its owner has just finished and removed the folder
            continue
        try:
            portalocker.lock(descriptor, LockFlags.EXCLUSIVE | LockFlags.NON_BLOCKING)
        except AlreadyLocked:
            if waiting is None:
                os.close(descriptor)
                raise OutputError(
                    f"{path}: another run works here; wait for it to end, or choose another --out"
                ) from None
            if not told:
                waiting.start("wait for another run that does the same", 1)
                told = True
            portalocker.lock(descriptor, LockFlags.EXCLUSIVE)
        if _is_in_place(descriptor, path / MARKER):
            _require_mark(path, descriptor)
            return descriptor
        os.close(descriptor)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A descriptor of the folder itself; a link is not followed."""
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | _NO_SURPRISE)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            raise _foreign(path) from error
        raise
    try:
        yield folder
    finally:
        os.close(folder)


def _names(folder: int) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries]


def _open_marker(path: Path) -> int:
    """The marker, made where the folder is absent or empty.

    Raises:
        FileNotFoundError: The folder was removed meanwhile.
        OutputError: What is there is no folder, or the user's.
    """
    with suppress(FileExistsError):
        path.mkdir(0o700)
    with _opened(path) as folder:
        names = _names(folder)
        if names and MARKER not in names:
            raise _foreign(path)
        try:
            marker = os.open(MARKER, os.O_RDWR | os.O_CREAT | _NO_SURPRISE, 0o600, dir_fd=folder)
        except FileNotFoundError:
            raise
        except OSError as error:  # a link, a folder, a device without a driver
            raise _foreign(path) from error
    if not _is_private(marker):
        os.close(marker)
        raise _foreign(path)
    return marker


def _require_mark(path: Path, marker: int) -> None:
    """Write the mark of a folder that is new, and refuse one that is marked as another's."""
    with _opened(path) as folder:
        place = os.fstat(folder)
        is_new = os.fstat(marker).st_size == 0 and _names(folder) == [MARKER]
        if is_new and place.st_uid == os.geteuid():
            mark = {"made_by": "llama-edge", "inode": place.st_ino}
            os.pwrite(marker, f"{json.dumps(mark)}\n".encode(), 0)
        elif not _is_marker_of(folder, marker):
            os.close(marker)
            raise _foreign(path)
        os.fchmod(folder, 0o700)  # it may have been empty before, or an earlier version's


def _is_private(marker: int) -> bool:
    """A regular file of this user, with no other name."""
    file = os.fstat(marker)
    return stat.S_ISREG(file.st_mode) and file.st_nlink == 1 and file.st_uid == os.geteuid()


def _is_marker_of(folder: int, marker: int) -> bool:
    place = os.fstat(folder)
    try:
        mark = parse_json_object(os.pread(marker, _MAX_MARKER_BYTES, 0), MARKER, OutputError)
    except OutputError:
        return False
    return mark.get("inode") == place.st_ino and place.st_uid == os.geteuid()


def _foreign(path: Path) -> OutputError:
    return OutputError(
        f"{path}: is needed for work that is not finished, and what is there was not made there "
        "by llama-edge for this user; nothing in it was touched: move it away or remove it"
    )


def _is_in_place(descriptor: int, path: Path) -> bool:
    """Whether the file that was opened is the one of that name; its owner may have removed it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False
