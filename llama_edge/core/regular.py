"""Reading regular files that somebody else may have made.

A path may name a pipe that nobody writes to, a device without an end, or another file a moment
later. So a file is opened once and without waiting; what it is, how long it is and its bytes all
come from that one descriptor.
"""

import hashlib
import io
import json
import mmap
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, Self

from llama_edge.core.errors import ArtifactError, LlamaEdgeError

#: A named pipe does not wait for its other end; absent on Windows.
NO_WAITING: Final = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
NO_LINK: Final = getattr(os, "O_NOFOLLOW", 0)
_FOLDER: Final = os.O_RDONLY | NO_WAITING | getattr(os, "O_DIRECTORY", 0)
_CHUNK: Final = 1 << 20
#: Of a text to calibrate on or to evaluate on, which is tokenized whole: 1 to 4 million tokens, for
#: which the tokenizer's process has just enough memory.
MAX_TEXT_BYTES: Final = 4 << 20
#: Git LFS's own limit on a pointer file, and how each of them begins.
_MAX_POINTER_BYTES: Final = 1024
_POINTER: Final = b"version https://git-lfs.github.com/spec/"

ErrorClass = type[LlamaEdgeError]


def kind_of(mode: int) -> str:
    """What a path names, in words, by its `st_mode`."""
    kinds: Mapping[str, Callable[[int], bool]] = {
        "a symbolic link": stat.S_ISLNK,
        "a file": stat.S_ISREG,
        "a folder": stat.S_ISDIR,
        "a named pipe": stat.S_ISFIFO,
        "a socket": stat.S_ISSOCK,
    }
    return next((name for name, holds in kinds.items() if holds(mode)), "a device")


def real_path(path: Path | str) -> Path:
    """Where a path leads, through all links, whether anything is there or not.

    A link that leads to itself is left as it is: `Path.resolve` of Python up to 3.12 raises a
    RuntimeError, and who opens the path says what is wrong with it.
    """
    return Path(os.path.realpath(path))


@dataclass(frozen=True, slots=True)
class FileState:
    """Which file it is, and when it was last written or renamed."""

    device: int
    inode: int
    size_bytes: int
    mtime_ns: int
    #: the system's own, which no program puts back
    ctime_ns: int

    @classmethod
    def of(cls, stream: BinaryIO) -> Self:
        """Of an open file."""
        status = os.fstat(stream.fileno())
        return cls(
            device=status.st_dev,
            inode=status.st_ino,
            size_bytes=status.st_size,
            mtime_ns=status.st_mtime_ns,
            ctime_ns=status.st_ctime_ns,
        )


@contextmanager
def open_regular(
    path: Path, error_class: ErrorClass = ArtifactError, *, follow_links: bool = True
) -> Iterator[BinaryIO]:
    """Open a file to read.

    Args:
        path: The file.
        error_class: Of what is raised.
        follow_links: A symbolic link is opened where it points to; otherwise it is refused. Folders
            on the way to the file are always followed.

    Raises:
        LlamaEdgeError: An `error_class`: it is absent, not a regular file, a Git LFS pointer, or
            cannot be opened.
    """
    with _explained(path, error_class):
        descriptor = _open_file(path, path, error_class, follow_links=follow_links)
    with os.fdopen(descriptor, "rb") as stream:
        _check_opened(path, stream, error_class)
        yield stream


@contextmanager
def open_inside(
    folder: Path, name: str, error_class: ErrorClass = ArtifactError
) -> Iterator[BinaryIO]:
    """Open a file below `folder` to read, without following any link on the way to it.

    Args:
        folder: It may itself be reached through links.
        name: The file's path relative to it, with forward slashes and without `..`.
        error_class: Of what is raised.

    Raises:
        LlamaEdgeError: An `error_class`: as `open_regular`.
    """
    path = folder / name
    *folders, last = name.split("/")
    with ExitStack() as stack:
        with _explained(path, error_class):
            place = os.open(folder, _FOLDER)
            stack.callback(os.close, place)
            for part in folders:
                place = os.open(part, _FOLDER | NO_LINK, dir_fd=place)
                stack.callback(os.close, place)
            descriptor = _open_file(path, last, error_class, follow_links=False, dir_fd=place)
        stream = stack.enter_context(os.fdopen(descriptor, "rb"))
        _check_opened(path, stream, error_class)
        yield stream


@contextmanager
def _explained(path: Path, error_class: ErrorClass) -> Iterator[None]:
    """Around opening `path`: the system's errors as messages."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise error_class(f"{path}: the file is missing") from error
    except OSError as error:
        raise error_class(f"{path}: cannot be opened: {error.strerror}") from error
    except ValueError as error:  # a name with a zero byte
        raise error_class(f"{path}: cannot be opened: {error}") from error


def _open_file(
    path: Path,
    name: Path | str,
    error_class: ErrorClass,
    *,
    follow_links: bool,
    dir_fd: int | None = None,
) -> int:
    """Open `name`; `path` is for messages. A device may act when it is opened, so look first."""
    status = os.stat(name, dir_fd=dir_fd, follow_symlinks=follow_links)
    _require_regular(path, status.st_mode, error_class)
    flags = os.O_RDONLY | NO_WAITING | (0 if follow_links else NO_LINK)
    return os.open(name, flags, dir_fd=dir_fd)


def _check_opened(path: Path, stream: BinaryIO, error_class: ErrorClass) -> None:
    status = os.fstat(stream.fileno())
    _require_regular(path, status.st_mode, error_class)
    is_small = status.st_size <= _MAX_POINTER_BYTES
    if is_small and os.pread(stream.fileno(), len(_POINTER), 0) == _POINTER:
        raise error_class(
            f"{path}: is a Git LFS pointer, which only names the file: run `git lfs pull` in its "
            "repository, or download the file itself"
        )


def _require_regular(path: Path, mode: int, error_class: ErrorClass) -> None:
    if not stat.S_ISREG(mode):
        raise error_class(f"{path}: is {kind_of(mode)}; a regular file is needed")


def read_regular(
    path: Path,
    limit: int,
    error_class: ErrorClass = ArtifactError,
    *,
    follow_links: bool = True,
) -> bytes:
    """The bytes of a file of at most `limit` bytes.

    Raises:
        LlamaEdgeError: An `error_class`: as `open_regular`; or the file is larger.
    """
    with open_regular(path, error_class, follow_links=follow_links) as stream:
        size = os.fstat(stream.fileno()).st_size
        data = b""
        if size <= limit:
            try:
                data = stream.read(limit + 1)
            except OSError as error:
                raise error_class(f"{path}: cannot be read: {error.strerror}") from error
        if max(size, len(data)) > limit:
            raise error_class(f"{path}: has {max(size, len(data))} bytes; at most {limit} are read")
        return data


def read_regular_text(
    path: Path,
    limit: int,
    error_class: ErrorClass = ArtifactError,
    *,
    follow_links: bool = True,
) -> str:
    """The text of a UTF-8 file of at most `limit` bytes, without a byte order mark.

    Raises:
        LlamaEdgeError: An `error_class`: as `read_regular`; or the file is not UTF-8.
    """
    data = read_regular(path, limit, error_class, follow_links=follow_links)
    return decode_text(data, str(path), error_class)


def decode_text(data: bytes, where: str, error_class: ErrorClass = ArtifactError) -> str:
    """UTF-8 with or without a byte order mark.

    Args:
        data: The bytes of a whole file.
        where: Names the file in messages.
        error_class: Of what is raised.

    Raises:
        LlamaEdgeError: An `error_class`: it is of another encoding, which the message names.
    """
    encoding = json.detect_encoding(data)
    if not encoding.startswith("utf-8"):
        name = encoding.removesuffix("-le").removesuffix("-be").upper()
        raise error_class(
            f"{where}: is saved as {name}, as Windows PowerShell does; save it as UTF-8"
        )
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise error_class(
            f"{where}: is not UTF-8 text: {error.reason} at byte {error.start}; save it as UTF-8"
        ) from error


def plain_newlines(text: str) -> str:
    r"""Every line's end as `\n`, as Python's text files give it."""
    return io.IncrementalNewlineDecoder(None, translate=True).decode(text, final=True)


def map_regular(path: Path, error_class: ErrorClass = ArtifactError) -> memoryview:
    """The bytes of a file, mapped: what is read of it is loaded when it is read.

    Raises:
        LlamaEdgeError: An `error_class`: as `open_regular`; or the file is empty.
    """
    with open_regular(path, error_class) as stream:
        try:
            return memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
        except (OSError, ValueError) as error:  # an empty file cannot be mapped
            raise error_class(f"{path}: cannot be read: {error}") from error


def file_sha256(path: Path, error_class: ErrorClass = ArtifactError) -> str:
    """SHA-256 of a file, read in pieces.

    Raises:
        LlamaEdgeError: An `error_class`: as `open_regular`.
    """
    with open_regular(path, error_class) as stream:
        return stream_sha256(stream)


def stream_sha256(stream: BinaryIO) -> str:
    """SHA-256 of what is still to be read, in pieces."""
    digest = hashlib.sha256()
    while piece := stream.read(_CHUNK):
        digest.update(piece)
    return digest.hexdigest()
