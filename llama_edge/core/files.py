"""Writing: output that is whole or not there at all."""

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from llama_edge.core.errors import OutputError
from llama_edge.core.json_files import canonical_json
from llama_edge.core.ownership import RECORD_FILE, record_of, remove_tree, require_own
from llama_edge.core.unfinished import (
    MARKER,
    empty,
    is_unfinished_folder,
    require_unfinished_place,
    unfinished_folder,
)

#: In the folder of what is not finished: what becomes the output, and before its name, an old one
#: on its way out.
_OUTPUT = "output"
_ASIDE = "old-"
_ELSEWHERE = "choose another place with --out"


def write_json(path: Path, value: Any) -> None:  # noqa: ANN401
    """Write `canonical_json`, as `write_text` does."""
    write_text(path, canonical_json(value))


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 into a new file and rename it: nobody finds half of it.

    What was at `path` is replaced and not written through: another name of the same file (a hard
    link), or what a symbolic link points to, keeps its content.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with temporary.open("x", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


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
    total = 0
    for root, folders, files in os.walk(place):
        if Path(root) == place:
            folders[:] = [name for name in folders if not name.startswith(_ASIDE)]
            files.remove(MARKER)
        for name in files:
            with suppress(FileNotFoundError):  # a run that lives, and will be reported as such
                total += 512 * os.lstat(Path(root) / name).st_blocks
    return total


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
    """A run that was killed between two renames had moved an old output aside."""
    for aside in place.glob(f"{_ASIDE}*"):
        target = place.with_name(aside.name.removeprefix(_ASIDE))
        if not _is_taken(target):
            aside.rename(target)


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
        if Path.cwd().is_relative_to(target.resolve()):
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
    removed with the folder of what is not finished.

    Raises:
        OutputError: `target` is the user's.
    """
    folder.chmod(0o755)
    if not _is_taken(target):
        folder.rename(target)
        return
    _require_replaceable(target, force=True)
    aside = folder.with_name(f"{_ASIDE}{target.name}")
    remove_tree(aside)
    try:
        target.rename(aside)
        folder.rename(target)
    finally:
        # Whatever stopped it, an interrupt included, the old one goes back to an empty place.
        if _is_taken(aside) and not _is_taken(target):
            aside.rename(target)
