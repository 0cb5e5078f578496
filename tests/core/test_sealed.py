"""A folder is taken only as it was sealed."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from llama_edge.core.files import output_folder
from llama_edge.core.sealed import SEAL_FILE, fault, seal, sealed_files


def made(place: Path) -> Path:
    (place / "sub").mkdir(parents=True)
    (place / "weights").write_bytes(b"weights" * 1000)
    (place / "sub/config.json").write_text("{}")
    seal(place, "key")
    return place


def edited(place: Path, name: str, old: str, new: str) -> None:
    text = (place / name).read_text()
    assert old in text
    (place / name).write_text(text.replace(old, new, 1))


def linked(place: Path) -> None:
    (place / "weights").rename(place.with_name("weights"))
    (place / "weights").symlink_to("../weights")


def elsewhere(place: Path) -> None:
    place.rename(place.with_name("elsewhere"))
    place.symlink_to("elsewhere")


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a byte": (lambda place: edited(place, "weights", "w", "W"), "weights is not as it was left"),
    "a deep file": (
        lambda place: edited(place, "sub/config.json", "{", "{ "),
        "sub/config.json is not as it was left",
    ),
    "cut": (lambda place: os.truncate(place / "weights", 10), "weights is not as it was left"),
    "gone": (lambda place: (place / "weights").unlink(), "weights is not as it was left"),
    "one more": (lambda place: (place / "chat_template.jinja").touch(), "chat_template.jinja is"),
    "a link": (linked, "weights: cannot be opened|weights: is a symbolic link"),
    "a pipe": (lambda place: os.mkfifo(place / "pipe"), "pipe: is a named pipe"),
    "a link to it": (elsewhere, "is a symbolic link"),
    "no seal": (lambda place: (place / SEAL_FILE).unlink(), "sealed.json: the file is missing"),
    "half a seal": (
        lambda place: os.truncate(place / SEAL_FILE, 20),
        "sealed.json: not readable as JSON",
    ),
    "another key": (
        lambda place: edited(place, SEAL_FILE, '"key": "key"', '"key": "other"'),
        "was made for something else",
    ),
    "no files in the seal": (
        lambda place: (place / SEAL_FILE).write_text('{"files": {}, "key": "key"}'),
        "sub/config.json is not as it was left",
    ),
    "another seal": (
        lambda place: (place / SEAL_FILE).write_text('{"files": 7, "key": "key"}'),
        "was made for something else",
    ),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_change_is_found(tmp_path: Path, kind: str) -> None:
    place = made(tmp_path / "place")
    assert fault(place, "key") is None
    change, why = CHANGES[kind]
    change(place)
    found = fault(place, "key")
    assert found is not None
    assert any(words in found for words in why.split("|")), found


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    assert "No such file" in str(fault(tmp_path / "none", "key"))
    (tmp_path / "file").touch()
    assert fault(tmp_path / "file", "key") == "is a file"


def test_a_seal_may_be_next_to_the_folder(tmp_path: Path) -> None:
    place = made(tmp_path / "place")
    (place / SEAL_FILE).unlink()
    file = tmp_path / "seal"
    seal(place, "key", file)
    assert fault(place, "key", file) is None
    edited(place, "weights", "w", "W")
    assert fault(place, "key", file) == "weights is not as it was left"


def test_the_record_of_an_output_is_not_sealed(tmp_path: Path) -> None:
    with output_folder(tmp_path / "out", force=False) as folder:
        made(folder / "inner")
        seal(folder, "key")
    assert fault(tmp_path / "out", "key") is None
    # A seal of a folder inside counts as none of its own.
    assert sealed_files(tmp_path / "out") == [
        "inner/sealed.json",
        "inner/sub/config.json",
        "inner/weights",
    ]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_another_users_file_is_found(tmp_path: Path) -> None:
    place = made(tmp_path / "place")
    os.chown(place / "weights", 65534, -1)
    assert fault(place, "key") == "belongs to another user"
