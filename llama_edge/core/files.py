"""Writing: the one module through which every command writes, whole or not at all.

A single file is new, or replaces one by a rename; a folder becomes the output by a rename. Nothing
is written through a link, planted or not. What is written inside of a folder that only this run has
(`output_folder`, `unfinished_folder`) is new there, by `open_new`.
"""

import errno
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Final

from llama_edge.core.errors import OutputError
from llama_edge.core.json_files import canonical_json
from llama_edge.core.ownership import RECORD_FILE, record_of, remove_tree, require_own
from llama_edge.core.regular import NO_LINK, NO_WAITING, open_inside, real_path
from llama_edge.core.unfinished import (
    MARKER,
    empty,
    is_unfinished_folder,
    require_unfinished_place,
    unfinished_folder,
)
from llama_edge.core.walk import walk

#: In the folder of what is not finished: what becomes the output; before its name, a whole one on
#: its way into its place, and an old one on its way out.
_OUTPUT: Final = "output"
_READY: Final = "new-"
_ASIDE: Final = "old-"
_ELSEWHERE: Final = "choose another place with --out"
_CHUNK: Final = 1 << 20
#: What file systems without hard links answer (FAT, and some of networks).
_NO_HARD_LINKS: Final = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
#: Of a file's name in the name of the one that is renamed to it: a name has at most 255 bytes.
_SHOWN: Final = 32


def write_json(path: Path, value: Any) -> None:  # noqa: ANN401
    """Write `canonical_json`, as `write_bytes` does."""
    write_text(path, canonical_json(value))


def write_text(path: Path, text: str) -> None:
    """Write UTF-8, as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a new file and rename it: nobody finds half of it, and no power failure leaves half.

    What was at `path` is replaced and not written through: another name of the same file (a hard
    link), or what a symbolic link points to, keeps its content.
    """
    temporary = _temporary(path)
    try:
        write_new(temporary, data)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A path next to `path`; its file gets that name when the block ends well, whole or not at all.

    Raises:
        FileExistsError: Something of that name is there by then, be it a link; it stays as it is.
    """
    temporary = _temporary(path)
    try:
        yield temporary
        sync(temporary)
        try:
            path.hardlink_to(temporary)  # unlike a rename, this replaces nothing
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            if _is_taken(path):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
            temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name[:_SHOWN]}.{secrets.token_hex(8)}.partial")


def remove_file(path: Path) -> None:
    """Remove a file that llama-edge wrote, if it is there; no power failure brings it back."""
    path.unlink(missing_ok=True)
    sync(path.parent)


def write_new(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write a file that does not exist yet; `mode` is its mode without the umask's bits.

    Raises:
        FileExistsError: Something of that name is there, be it a link to nowhere.
    """
    with open_new(path, mode) as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def open_new(path: Path, mode: int = 0o666) -> BinaryIO:
    """A file that does not exist yet, to be written; no link at its place is followed.

    Raises:
        FileExistsError: Something of that name is there, be it a link to nowhere.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_LINK | getattr(os, "O_BINARY", 0)
    return os.fdopen(os.open(path, flags, mode), "wb")


def private_folder(path: Path, *, follow_links: bool = False) -> Path:
    """A folder for this user alone, made where it is absent; other users' rights are taken away.

    Raises:
        OutputError: It belongs to another user.
        OSError: It cannot be made, or is no folder.
    """
    with suppress(FileExistsError):
        path.mkdir(0o700)
    flags = os.O_RDONLY | os.O_DIRECTORY | NO_WAITING | (0 if follow_links else NO_LINK)
    descriptor = os.open(path, flags)
    try:
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid():
            raise OutputError(
                f"{path}: belongs to the user {status.st_uid}, who could change what is exported; "
                "remove it, or set LLAMA_EDGE_CACHE to a folder of your own"
            )
        if status.st_mode & 0o077:
            os.fchmod(descriptor, 0o700)
    finally:
        os.close(descriptor)
    return path


def copy_files(source: Path, target: Path, names: Iterable[str]) -> None:
    """Copy files of a folder to a folder that has none of these names yet."""
    for name in names:
        with open_inside(source, name) as given, open_new(target / name) as taken:
            shutil.copyfileobj(given, taken, _CHUNK)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Around writing to a place that the user named: what the system says is a message.

    Raises:
        OutputError: `path` cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from error


def sync(path: Path) -> None:
    """Put a file or a folder's list of names on the disk: no power failure takes it back."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_free_space(folder: Path, size_bytes: int) -> None:
    """Fail before writing what would not fit.

    What an interrupted run for the same `folder` left is no obstacle: the next one reuses it, or
    removes it before it writes anything.

    Raises:
        OutputError: The file system that will hold `folder` has less than `size_bytes` free.
    """
    free = shutil.disk_usage(_existing(folder)).free
    left = _left_bytes(_place_of(folder.absolute()))
    if free + left < size_bytes:
        taken_over = (
            f", and {left / 2**20:.0f} MiB of an interrupted run are reused" if left else ""
        )
        raise OutputError(
            f"{folder}: needs {size_bytes / 2**20:.0f} MiB and {free / 2**20:.0f} MiB are free"
            f"{taken_over}; free some space or choose another place with --out"
        )


def _existing(path: Path) -> Path:
    """The path, or its nearest parent that exists."""
    place = path.absolute()
    while not place.exists():
        place = place.parent
    return place


def _left_bytes(place: Path) -> int:
    """On disk under the folder of what is not finished, without an old output moved aside there."""
    if not is_unfinished_folder(place):
        return 0
    kept = (entry for entry in walk(place, OutputError) if not entry.name.startswith(_ASIDE))
    files = (entry for entry in kept if entry.is_file and entry.name != MARKER)
    return sum(512 * entry.status.st_blocks for entry in files)


def require_place(target: Path, *, force: bool) -> None:
    """Refuse before any work what `output_folder` would refuse; nothing is made or removed.

    Raises:
        OutputError: `target` exists and `force` is off; or llama-edge did not write what is there,
            or at the place of unfinished work; or nothing can be written there.
    """
    _require_replaceable(target.absolute(), force=force)
    parent = _existing(target.absolute().parent)
    if not parent.is_dir():
        raise OutputError(f"{target}: cannot be created: {parent} is not a folder; {_ELSEWHERE}")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"{target}: cannot be created: {parent} is not writable; {_ELSEWHERE}")
    try:
        require_unfinished_place(_place_of(target.absolute()))
    except OSError as error:
        raise OutputError(f"{target}: cannot be created: {error.strerror}") from error


@contextmanager
def output_folder(target: Path, *, force: bool) -> Iterator[Path]:
    """An empty folder on the same disk that becomes `target` when the block ends well.

    It is in a folder of this target's own, `.NAME.unfinished` next to it, where the block may
    keep more. On any error, an interrupt included, all that is removed and `target` is as it was
    before; what an interrupted run left there is found by the next one.

    Raises:
        OutputError: `target` exists and `force` is off, or llama-edge did not write what is there;
            another run is writing it; or the disk is full or read-only.
    """
    target = target.absolute()
    _require_replaceable(target, force=force)
    made = [place for place in target.parents if not place.exists()]
    with ExitStack() as stack:
        stack.callback(_remove_empty, made)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            place = stack.enter_context(unfinished_folder(_place_of(target)))
            _recover(place)
            folder = empty(place / _OUTPUT)
        except OSError as error:
            raise OutputError(f"{target}: cannot be created: {error.strerror}") from error
        _require_replaceable(target, force=force)
        try:
            yield folder
            _write_record(folder)
            replace_folder(folder, target)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                raise OutputError(
                    f"{target}: {os.strerror(error.errno)}; free some space or choose another "
                    "place with --out"
                ) from error
            raise


def _write_record(folder: Path) -> None:
    record = record_of(folder)
    if record is not None:
        write_json(folder / RECORD_FILE, record)


def _place_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.unfinished")


def _recover(place: Path) -> None:
    """A run that was killed between two renames had moved an old output aside, and has a whole one.

    The new one goes where the old one was. One that has no old one to replace is made again.
    """
    for aside in place.glob(f"{_ASIDE}*"):
        name = aside.name.removeprefix(_ASIDE)
        ready, target = place / f"{_READY}{name}", place.with_name(name)
        if not _is_taken(target):
            (ready if _is_taken(ready) else aside).rename(target)
            sync(place.parent)
    for ready in place.glob(f"{_READY}*"):
        remove_tree(ready)


def _require_replaceable(target: Path, *, force: bool) -> None:
    """Refuse a taken target, and even with `force` one that is the user's or holds the user."""
    try:
        if not _is_taken(target):
            return
        if not force:
            raise OutputError(
                f"{target}: exists already; pass --force to replace it if llama-edge wrote it, or "
                "name another --out"
            )
        if Path.cwd().is_relative_to(real_path(target)):
            raise OutputError(
                f"{target}: holds the current folder and will not be replaced; name a new --out"
            )
        require_own(target)
    except OSError as error:
        raise OutputError(f"{target}: cannot be created: {error.strerror}") from error


def _is_taken(path: Path) -> bool:
    """Something of that name exists, be it a link to nowhere.

    Raises:
        OSError: The name is too long, or a folder on the way to it cannot be searched.
    """
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _remove_empty(folders: list[Path]) -> None:
    """Take back the parents that were made for nothing, innermost first."""
    for folder in folders:
        with suppress(OSError):  # not empty: the output, or somebody else's file, is in it
            folder.rmdir()


def replace_folder(folder: Path, target: Path) -> None:
    """Rename `folder`, which is in a folder of `output_folder`, to `target`.

    What llama-edge wrote at `target` is moved aside first, so that it is never half gone, and
    removed with the folder of what is not finished. Between the two renames the new one is already
    whole, on the disk, and named: after a kill there, the next run puts it in its place.

    Raises:
        OutputError: `target` is the user's.
    """
    if _is_taken(target):
        _require_replaceable(target, force=True)
    for entry in walk(folder, OutputError):
        sync(folder / entry.name)
    sync(folder)
    folder.chmod(0o755)
    aside, ready = (folder.with_name(f"{prefix}{target.name}") for prefix in (_ASIDE, _READY))
    remove_tree(aside)
    remove_tree(ready)
    folder.rename(ready)
    sync(folder.parent)
    try:
        if _is_taken(target):
            target.rename(aside)
        ready.rename(target)
        sync(target.parent)
    finally:
        # Whatever stopped it, an interrupt included, the old one goes back to an empty place.
        if _is_taken(aside) and not _is_taken(target):
            aside.rename(target)
