"""A stranger's folder is walked without following a link, and to an end."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from llama_edge.core.errors import ArtifactError, OutputError
from llama_edge.core.ownership import require_own
from llama_edge.core.walk import MAX_DEPTH, walk


def nest(folder: Path, levels: int) -> None:
    folder.mkdir()
    place = os.open(folder, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d", dir_fd=place)
        inner = os.open("d", os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = inner
    os.close(place)


def names(folder: Path, depth: int = MAX_DEPTH) -> list[str]:
    return [entry.name for entry in walk(folder, depth=depth)]


def test_everything_is_listed_as_the_system_lists_it(tmp_path: Path) -> None:
    for name in ("b/c/d.bin", "a.txt", ".hidden", "b/a", "z/y"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "empty").mkdir()
    assert names(tmp_path) == [
        *(".hidden", "a.txt", "b", "empty", "z"),
        *("b/a", "b/c", "b/c/d.bin", "z/y"),
    ]
    assert sorted(names(tmp_path)) == sorted(
        path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")
    )
    assert names(tmp_path, depth=1) == [".hidden", "a.txt", "b", "empty", "z"]


def test_a_link_is_an_entry_and_no_way(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(".", target_is_directory=True)
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "outside").symlink_to("/", target_is_directory=True)
    entries = list(walk(tmp_path))
    assert [entry.name for entry in entries] == ["loop", "outside", "self"]
    assert all(stat.S_ISLNK(entry.status.st_mode) for entry in entries)
    assert not any(entry.is_folder or entry.is_file for entry in entries)


def test_pipes_and_odd_names_are_entries(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    odd = os.fsdecode(b"\xff\xfe\x1b[2J")
    (tmp_path / odd).touch()
    (tmp_path / ("x" * 255)).touch()
    found = {entry.name: entry.is_file for entry in walk(tmp_path)}
    assert found == {"pipe": False, odd: True, "x" * 255: True}


def test_a_folder_as_deep_as_allowed_is_walked(tmp_path: Path) -> None:
    nest(tmp_path / "deep", MAX_DEPTH - 1)
    assert len(names(tmp_path / "deep")) == MAX_DEPTH - 1


@pytest.mark.parametrize("levels", [MAX_DEPTH, 500])
def test_a_deeper_folder_is_refused(tmp_path: Path, levels: int) -> None:
    nest(tmp_path / "deep", levels)
    with pytest.raises(ArtifactError, match="deep: holds folders in folders, more than 32 levels"):
        names(tmp_path / "deep")
    with pytest.raises(OutputError, match="more than 32 levels"):
        require_own(tmp_path / "deep")


def test_more_entries_than_any_model_has_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llama_edge.core.walk.MAX_ENTRIES", 5)
    (tmp_path / "sub").mkdir()
    for name in ("a", "b", "sub/c", "sub/d"):
        (tmp_path / name).touch()
    assert len(names(tmp_path)) == 5
    (tmp_path / "sub/e").touch()
    with pytest.raises(ArtifactError, match="holds more than 5 files and folders"):
        names(tmp_path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "there is no such folder"),
        (lambda path: path.touch(), "cannot be listed: Not a directory"),
        (lambda path: path.symlink_to(path.name), "cannot be listed: Too many levels"),
    ],
)
def test_what_is_no_folder_is_a_message(
    tmp_path: Path, make: Callable[[Path], object], message: str
) -> None:
    make(tmp_path / "folder")
    with pytest.raises(ArtifactError, match=f"folder: {message}"):
        names(tmp_path / "folder")


def test_a_folder_that_cannot_be_listed_is_not_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "closed").mkdir()
    real = os.scandir

    def refusing(path: Path) -> object:
        if path.name == "closed":  # the user root reads everything, so the refusal is planted
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(ArtifactError, match="closed: cannot be listed: Permission denied"):
        names(tmp_path)
