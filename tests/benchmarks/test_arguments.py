import argparse
from pathlib import Path

import pytest

from benchmarks.arguments import writable_folder


def test_a_folder_is_made_where_there_is_none(tmp_path: Path) -> None:
    folder = writable_folder(str(tmp_path / "not" / "yet"), "page.md")
    assert folder == tmp_path / "not" / "yet"
    assert list(folder.iterdir()) == []


def test_a_file_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("before")
    writable_folder(str(tmp_path), "page.md")
    assert (tmp_path / "page.md").read_text() == "before"


@pytest.mark.parametrize("below", ["", "folder"])
def test_a_file_in_its_place_is_refused(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(argparse.ArgumentTypeError, match=r"file.*name another folder"):
        writable_folder(str(tmp_path / "file" / below))


def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "page.md").mkdir()
    with pytest.raises(argparse.ArgumentTypeError, match=r"page\.md: cannot be written"):
        writable_folder(str(tmp_path), "page.md")
