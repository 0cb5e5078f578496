"""A file is opened once, never waited for, and is what its descriptor says."""

import codecs
import hashlib
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from llama_edge.core.errors import ArtifactError, CheckpointError, TextError
from llama_edge.core.regular import (
    FileState,
    file_sha256,
    kind_of,
    map_regular,
    open_inside,
    open_regular,
    plain_newlines,
    read_regular,
    read_regular_text,
)

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n"


def listen(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (os.mkfifo, "is a named pipe; a regular file is needed"),
        (Path.mkdir, "is a folder; a regular file is needed"),
        (listen, "is a socket; a regular file is needed"),
        (lambda path: path.symlink_to("/dev/zero"), "is a device; a regular file is needed"),
        (lambda path: path.symlink_to("nowhere"), "the file is missing"),
        (lambda path: path.symlink_to("file"), "Too many levels of symbolic links"),
        (lambda path: None, "the file is missing"),
        (lambda path: path.write_bytes(POINTER), "is a Git LFS pointer.*`git lfs pull`"),
    ],
)
def test_what_is_no_regular_file_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[Path], object],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    path = tmp_path / "file"
    make(path)
    for read in (
        lambda: read_regular(path, 9999, CheckpointError),
        lambda: read_regular_text(path, 9999, CheckpointError),
        lambda: map_regular(path, CheckpointError),
        lambda: file_sha256(path, CheckpointError),
    ):
        with pytest.raises(CheckpointError, match=f"^{path}: .*{message}"):
            read()


def test_a_name_that_no_system_takes_is_a_message(tmp_path: Path) -> None:
    for name in ("x" * 300, "a\0b"):
        with pytest.raises(ArtifactError, match="cannot be opened"):
            read_regular(tmp_path / name, 1)
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="the file is missing"):
        read_regular(tmp_path / "file" / "inner", 1)


def test_a_link_is_followed_only_where_that_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"weights")
    (tmp_path / "link").symlink_to("blob")
    assert read_regular(tmp_path / "link", 7) == b"weights"
    with pytest.raises(ArtifactError, match="is a symbolic link; a regular file is needed"):
        read_regular(tmp_path / "link", 7, follow_links=False)


def test_a_link_planted_after_the_look_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "file").write_bytes(b"file")
    real = os.open

    def swapped(path: Path, flags: int, dir_fd: int | None = None) -> int:
        path.unlink()
        path.symlink_to("secret")
        return real(path, flags, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", swapped)
    with pytest.raises(ArtifactError, match="cannot be opened: Too many levels"):
        read_regular(tmp_path / "file", 99, follow_links=False)


def test_a_pipe_planted_after_the_look_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"file")
    real = os.open

    def swapped(path: Path, flags: int, dir_fd: int | None = None) -> int:
        path.unlink()
        os.mkfifo(path)
        return real(path, flags, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", swapped)
    with pytest.raises(ArtifactError, match="is a named pipe"):
        read_regular(tmp_path / "file", 99)


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345678")
    assert read_regular(path, 8) == b"12345678"
    with pytest.raises(ArtifactError, match="has 8 bytes; at most 7 are read"):
        read_regular(path, 7)
    os.truncate(path, 2**40)  # sparse: reading it would fill the memory
    with pytest.raises(ArtifactError, match="has 1099511627776 bytes; at most 8 are read"):
        read_regular(path, 8)


def test_a_file_that_grows_while_it_is_read_is_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"123")
    real = os.fstat

    def grown(descriptor: int) -> os.stat_result:
        status = real(descriptor)
        with path.open("ab") as stream:
            stream.write(b"45678")
        return status

    monkeypatch.setattr(os, "fstat", grown)
    with pytest.raises(ArtifactError, match="bytes; at most 4 are read"):
        read_regular(path, 4)


def test_text_is_utf_8_with_or_without_a_mark(tmp_path: Path) -> None:
    path = tmp_path / "text"
    for data in ("Grüße\n".encode(), codecs.BOM_UTF8 + "Grüße\n".encode()):
        path.write_bytes(data)
        assert read_regular_text(path, 99) == "Grüße\n"
    path.write_bytes("Grüße\n".encode("utf-16"))
    with pytest.raises(TextError, match="is saved as UTF-16, as Windows PowerShell does"):
        read_regular_text(path, 99, TextError)
    path.write_bytes("Grüße\n".encode("latin-1"))
    with pytest.raises(TextError, match=r"is not UTF-8 text: .* at byte 2; save it as UTF-8"):
        read_regular_text(path, 99, TextError)


@pytest.mark.parametrize("text", ["a\nb", "a\r\nb\r\n\r\n", "a\rb\r", "\u2028\x0b", ""])
def test_line_ends_are_those_of_a_text_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "text").write_bytes(text.encode())
    assert plain_newlines(text) == (tmp_path / "text").read_text(encoding="utf-8")


def test_hash_of_a_file_longer_than_a_piece(tmp_path: Path) -> None:
    data = os.urandom(3 * 2**20 + 17)
    (tmp_path / "a").write_bytes(data)
    assert file_sha256(tmp_path / "a") == hashlib.sha256(data).hexdigest()
    assert bytes(map_regular(tmp_path / "a")) == data


def test_an_empty_file_is_not_mapped(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(ArtifactError, match="a: cannot be read: cannot mmap an empty file"):
        map_regular(tmp_path / "a")


def test_what_is_read_is_what_was_opened(tmp_path: Path) -> None:
    """A file that takes the name afterwards is another one."""
    (tmp_path / "file").write_bytes(b"first")
    (tmp_path / "other").write_bytes(b"other")
    with open_regular(tmp_path / "file") as stream:
        (tmp_path / "other").replace(tmp_path / "file")
        assert stream.read() == b"first"


def test_no_link_on_the_way_is_followed(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "sub/deep").mkdir(parents=True)
    for name in ("a", "sub/deep/b"):
        (folder / name).write_text(name)
    (folder / "link").symlink_to("sub", target_is_directory=True)
    (folder / "sub/link").symlink_to("deep/b")
    (tmp_path / "linked").symlink_to("folder", target_is_directory=True)
    for root in (folder, tmp_path / "linked"):
        for name in ("a", "sub/deep/b"):
            with open_inside(root, name) as stream:
                assert stream.read().decode() == name
        for name in ("link/deep/b", "sub/link", "sub/none", "none/b", "a/b", "sub"):
            with pytest.raises(ArtifactError, match=f"^{root / name}: "), open_inside(root, name):
                pass


def test_a_state_tells_another_file_and_other_content(tmp_path: Path) -> None:
    path = tmp_path / "file"

    def state() -> FileState:
        with open_regular(path) as stream:
            return FileState.of(stream)

    path.write_bytes(b"first")
    first = state()
    assert state() == first
    times = path.stat()
    path.write_bytes(b"other")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as who would hide it
    assert state() != first
    (tmp_path / "copy").write_bytes(b"first")
    (tmp_path / "copy").replace(path)
    assert state() != first


def test_kinds_have_names() -> None:
    assert kind_of(stat.S_IFCHR) == kind_of(stat.S_IFBLK) == "a device"
    assert kind_of(stat.S_IFREG) == "a file"
