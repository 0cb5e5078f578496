import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple, NoReturn

import pytest

from llama_edge.core.errors import OutputError
from llama_edge.core.files import (
    new_file,
    open_new,
    output_folder,
    require_free_space,
    require_place,
    write_bytes,
    write_new,
    write_text,
)
from llama_edge.core.ownership import RECORD_FILE
from llama_edge.core.unfinished import MARKER, unfinished_folder


def contents(folder: Path) -> dict[str, str]:
    """Every file under a folder, hidden ones and left-over temporary ones included, but records."""
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.is_file() and path.name != RECORD_FILE
    }


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fill(target: Path, text: str, *, force: bool = False) -> None:
    with output_folder(target, force=force) as folder:
        (folder / "file").write_text(text)


def test_output_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "er" / "out"
    with output_folder(target, force=False) as folder:
        # The same file system: a rename is atomic.
        assert folder == target.parent / ".out.unfinished" / "output"
        assert not target.exists()
        (folder / "file").write_text("new")
    assert contents(tmp_path) == {"deep/er/out/file": "new"}
    assert target.stat().st_mode & 0o777 == 0o755


def test_a_taken_target_needs_force(tmp_path: Path) -> None:
    fill(tmp_path / "out", "old")
    with pytest.raises(OutputError, match="exists already; pass --force"):
        fill(tmp_path / "out", "new")
    assert contents(tmp_path) == {"out/file": "old"}
    fill(tmp_path / "out", "new", force=True)
    assert contents(tmp_path) == {"out/file": "new"}
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("has_old", [False, True])
def test_a_failed_block_leaves_everything_as_it_was(
    tmp_path: Path, error: type[BaseException], has_old: bool
) -> None:
    target = tmp_path / "a" / "b" / "out"
    if has_old:
        fill(target, "old")
    before = contents(tmp_path)

    def fail() -> None:
        with output_folder(target, force=True) as folder:
            (folder / "half").write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert contents(tmp_path) == before
    assert names(tmp_path) == (["a"] if has_old else [])


def test_an_interrupt_between_the_two_renames_brings_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    fill(target, "old")
    rename = Path.rename

    def interrupted(self: Path, to: Path) -> Path:
        if to == target and (self / "file").read_text() == "new":
            raise KeyboardInterrupt
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fill(target, "new", force=True)
    assert contents(tmp_path) == {"out/file": "old"}
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_disk_is_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def full(*_: object, **__: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OutputError, match=f"out: {os.strerror(number)}; free some space"):
        fill(tmp_path / "out", "new")
    assert names(tmp_path) == []


def test_another_system_error_of_the_block_is_not_renamed(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), output_folder(tmp_path / "out", force=False):
        (tmp_path / "no such file").read_text()
    assert names(tmp_path) == []


def test_a_parent_that_cannot_hold_it_is_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be created"):
        fill(tmp_path / "file" / "out", "new")
    with pytest.raises(OutputError, match="cannot be created: File name too long"):
        fill(tmp_path / ("x" * 300), "new")

    def denied(*_: object, **__: object) -> NoReturn:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    # The user root writes everywhere, so the refusal is planted.
    monkeypatch.setattr("llama_edge.core.files.unfinished_folder", denied)
    with pytest.raises(OutputError, match="cannot be created: Permission denied"):
        fill(tmp_path / "new" / "out", "new")
    assert names(tmp_path) == ["file"]


def test_the_current_folder_is_not_replaced_even_with_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = tmp_path / "project" / "inner"
    inner.mkdir(parents=True)
    (inner / "mine").write_text("mine")
    monkeypatch.chdir(inner)
    for target in (Path(), inner.parent, Path("/")):
        with pytest.raises(OutputError, match="holds the current folder"):
            fill(target, "new", force=True)
    assert contents(tmp_path) == {"project/inner/mine": "mine"}


class _Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_too_little_space_is_known_before_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def usage(place: Path) -> _Usage:
        asked.append(place)
        return _Usage(total=10 * 2**20, used=5 * 2**20, free=5 * 2**20)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    target = tmp_path / "not" / "there" / "yet"
    require_free_space(target, 5 * 2**20)
    with pytest.raises(OutputError, match="needs 6 MiB and 5 MiB are free; free some space"):
        require_free_space(target, 6 * 2**20)
    assert asked == [tmp_path, tmp_path]
    assert names(tmp_path) == []


def with_free(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    usage = _Usage(total=10 * 2**20, used=10 * 2**20 - free, free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)


def leave(place: Path) -> Path:
    """A work folder as an interrupted run leaves it."""
    with pytest.raises(KeyboardInterrupt), unfinished_folder(place, keep=True):
        raise KeyboardInterrupt
    return place


def test_what_a_killed_run_left_counts_as_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    with_free(monkeypatch, 2**20)
    with pytest.raises(OutputError, match="needs 3 MiB and 1 MiB are free; free some space"):
        require_free_space(target, 3 * 2**20)
    left = leave(tmp_path / ".out.unfinished")
    (left / "quantized").mkdir(parents=True)
    (left / "quantized" / "weights").write_bytes(os.urandom(2 * 2**20))
    require_free_space(target, 3 * 2**20)
    # Of another output, and too little even with it.
    with pytest.raises(OutputError, match="1 MiB are free; free some space"):
        require_free_space(tmp_path / "other", 3 * 2**20)
    with pytest.raises(
        OutputError,
        match="needs 4 MiB and 1 MiB are free, and 2 MiB of an interrupted run are reused",
    ):
        require_free_space(target, 4 * 2**20)


def test_an_old_output_set_aside_is_no_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next run puts it back in its place."""
    aside = leave(tmp_path / ".out.unfinished") / "old-out"
    aside.mkdir(parents=True)
    (aside / "weights").write_bytes(os.urandom(2 * 2**20))
    with_free(monkeypatch, 2**20)
    with pytest.raises(OutputError, match="needs 2 MiB and 1 MiB are free; free some space"):
        require_free_space(tmp_path / "out", 2 * 2**20)


def test_a_place_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    require_place(tmp_path / "not" / "there" / "yet", force=False)
    for name, message in (
        ("file", "exists already; pass --force"),
        ("file/out", "file is not a folder; choose another place with --out"),
        ("file/deep/out", "cannot be created: .*file"),
        ("x" * 300, "cannot be created: File name too long"),
    ):
        with pytest.raises(OutputError, match=message):
            require_place(tmp_path / name, force=False)
    # The user root writes everywhere, so the refusal is planted.
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(OutputError, match=f"{tmp_path} is not writable; choose another place"):
        require_place(tmp_path / "new" / "out", force=False)
    assert names(tmp_path) == ["file"]


def killed(target: Path, *, at: str) -> None:
    """A process that replaces `target` and dies by SIGKILL when it is about to rename to `at`."""
    program = f"""
import os, signal
from pathlib import Path
from llama_edge.core.files import output_folder
rename = Path.rename
def killing(self, to):
    if Path(to).name == {at!r}:
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, to)
Path.rename = killing
with output_folder(Path({str(target)!r}), force=True) as folder:
    (folder / "file").write_text("new")
"""
    done = subprocess.run([sys.executable, "-c", program], check=False)
    assert done.returncode == -signal.SIGKILL


def test_what_a_killed_run_left_is_cleaned_by_the_next(tmp_path: Path) -> None:
    target = tmp_path / "out"
    killed(target, at="out")
    left = contents(tmp_path)
    assert left.keys() == {f".out.unfinished/{MARKER}", ".out.unfinished/new-out/file"}
    fill(target, "next")
    assert contents(tmp_path) == {"out/file": "next"}


@pytest.mark.parametrize(("at", "kept"), [("old-out", "old"), ("new-out", "old"), ("out", "new")])
def test_neither_output_is_lost_by_a_kill_between_renames(
    tmp_path: Path, at: str, kept: str
) -> None:
    """Once the old one is out of its place, the new one is whole, and goes there."""
    target = tmp_path / "out"
    fill(target, "old")
    killed(target, at=at)
    both = contents(tmp_path).values()
    assert {"old", "new"} <= set(both)
    assert target.exists() is (at != "out")
    with pytest.raises(OutputError, match="exists already"):
        fill(target, "next")
    assert (target / "file").read_text() == kept
    fill(target, "next", force=True)
    assert contents(tmp_path) == {"out/file": "next"}
    assert names(tmp_path) == ["out"]


def test_an_old_output_goes_back_where_the_new_one_is_gone(tmp_path: Path) -> None:
    fill(tmp_path / "out", "old")
    killed(tmp_path / "out", at="out")
    shutil.rmtree(tmp_path / ".out.unfinished/new-out")
    with pytest.raises(OutputError, match="exists already"):
        fill(tmp_path / "out", "next")
    assert contents(tmp_path) == {"out/file": "old"}


def test_two_runs_do_not_write_one_output(tmp_path: Path) -> None:
    with output_folder(tmp_path / "out", force=False) as folder:
        (folder / "file").write_text("first")
        with pytest.raises(OutputError, match="another run works here"):
            fill(tmp_path / "out", "second")
    assert contents(tmp_path) == {"out/file": "first"}


def test_an_old_output_that_a_killed_run_left_behind_goes_with_the_next(tmp_path: Path) -> None:
    """Killed when the new output was in place and the old one not yet removed."""
    fill(tmp_path / "out", "whole")
    left = leave(tmp_path / ".out.unfinished")
    shutil.copytree(tmp_path / "out", left / "old-out")
    fill(tmp_path / "out", "next", force=True)
    assert contents(tmp_path) == {"out/file": "next"}
    assert names(tmp_path) == ["out"]


def test_a_work_folder_is_its_owners_alone(tmp_path: Path) -> None:
    """And so is everything that is written there, until it is whole."""
    (tmp_path / ".out.unfinished").mkdir(0o777)
    (tmp_path / ".out.unfinished").chmod(0o777)
    with output_folder(tmp_path / "out", force=False) as folder:
        assert folder.parent.stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755


def test_a_new_file_is_new(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "link").symlink_to("victim")
    (tmp_path / "dangling").symlink_to("created")
    os.link(tmp_path / "victim", tmp_path / "second name")
    for name in ("victim", "link", "dangling", "second name"):
        with pytest.raises(FileExistsError):
            write_new(tmp_path / name, b"new")
        with pytest.raises(FileExistsError):
            open_new(tmp_path / name)
    assert (tmp_path / "victim").read_text() == "mine"
    assert not (tmp_path / "created").exists()
    write_new(tmp_path / "key", b"secret", 0o600)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "key").read_bytes() == b"secret"


def test_what_is_written_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        fsync(descriptor)
        done.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")

    def renamed(self: Path, target: Path) -> Path:
        done.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    write_bytes(tmp_path / "a", b"new")
    assert done == ["file", "rename", "folder"]


def test_a_whole_file_takes_a_free_name_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def put(name: str, text: str) -> None:
        with new_file(tmp_path / name) as unfinished:
            assert unfinished.parent == tmp_path
            unfinished.write_text(text)

    (tmp_path / "victim").write_text("mine")
    (tmp_path / "dangling").symlink_to("created")

    def without_hard_links(*_: object) -> NoReturn:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    for taken in ("victim", "dangling"):
        with pytest.raises(FileExistsError):
            put(taken, "new")
    put("linked", "new")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "hardlink_to", without_hard_links)
        for taken in ("victim", "dangling"):
            with pytest.raises(FileExistsError):
                put(taken, "new")
        put("renamed", "new")
    assert {name: (tmp_path / name).read_text() for name in ("linked", "renamed", "victim")} == {
        "linked": "new",
        "renamed": "new",
        "victim": "mine",
    }
    with pytest.raises(KeyboardInterrupt), new_file(tmp_path / "stopped") as unfinished:
        unfinished.write_text("half")
        raise KeyboardInterrupt
    monkeypatch.setattr(Path, "hardlink_to", lambda *_: os.fstat(-1))
    with pytest.raises(OSError, match="Bad file descriptor"):
        put("stopped", "new")
    assert names(tmp_path) == ["dangling", "linked", "renamed", "victim"]


def test_a_name_as_long_as_a_name_may_be(tmp_path: Path) -> None:
    write_text(tmp_path / ("x" * 255), "new")
    assert (tmp_path / ("x" * 255)).read_text() == "new"


def test_a_text_is_replaced_and_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "linked").symlink_to("victim")
    os.link(tmp_path / "victim", tmp_path / "second name")
    (tmp_path / ".plain.partial").symlink_to("victim")
    for name in ("linked", "second name", "plain"):
        write_text(tmp_path / name, "new\n")
        assert (tmp_path / name).read_bytes() == b"new\n"
        assert not (tmp_path / name).is_symlink()
    assert (tmp_path / "victim").read_text() == "mine"
    assert (tmp_path / "plain").stat().st_mode & 0o777 == 0o666 & ~umask()
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "plain", "\ud800")
    assert (tmp_path / "plain").read_text() == "new\n"
    assert names(tmp_path) == [".plain.partial", "linked", "plain", "second name", "victim"]


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
