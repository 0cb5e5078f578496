import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from llama_edge.core.errors import OutputError
from llama_edge.core.progress import SilentProgress, Steps
from llama_edge.core.unfinished import MARKER, empty, is_unfinished_folder, unfinished_folder


class Told(SilentProgress):
    def __init__(self) -> None:
        self.waits = threading.Event()

    def start(self, stage: str, steps: Steps, done: int = 0) -> None:
        assert stage == "wait for another run that does the same"
        self.waits.set()


def test_it_is_removed_at_a_good_end_and_kept_after_an_error_on_request(tmp_path: Path) -> None:
    place = tmp_path / "work"
    with unfinished_folder(place) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").touch()
    assert not place.exists()
    for keep in (True, False):
        with pytest.raises(KeyboardInterrupt), unfinished_folder(place, keep=keep) as folder:
            (folder / "state").touch()
            raise KeyboardInterrupt
        assert (place / "state").exists() is keep


def test_the_dead_hold_nothing_and_their_files_are_found(tmp_path: Path) -> None:
    place = tmp_path / "work"
    program = (
        "import os, signal, sys; from pathlib import Path\n"
        "from llama_edge.core.unfinished import unfinished_folder\n"
        "with unfinished_folder(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'state').touch()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(place)], check=False)
    assert done.returncode == -signal.SIGKILL
    with unfinished_folder(place) as folder:
        assert (folder / "state").exists()
        assert list(empty(folder / "state-folder").iterdir()) == []
    assert not place.exists()


def test_the_living_are_waited_for_or_named(tmp_path: Path) -> None:
    place, told, order = tmp_path / "work", Told(), []

    def second() -> None:
        with unfinished_folder(place, waiting=told):
            order.append("second")

    with unfinished_folder(place):
        with pytest.raises(OutputError, match="another run works here"), unfinished_folder(place):
            pass
        thread = threading.Thread(target=second)
        thread.start()
        assert told.waits.wait(10)
        time.sleep(0.05)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]
    assert not place.exists()


def plant_file(place: Path, text: str = "mine") -> Path:
    place.mkdir(exist_ok=True)
    (place / "thesis.tex").write_text(text)
    return place


def left(place: Path) -> Path:
    """A genuine one, as an interrupted run leaves it."""
    with pytest.raises(KeyboardInterrupt), unfinished_folder(place, keep=True):
        plant_file(place)
        raise KeyboardInterrupt
    return place


def plant_copy(place: Path) -> None:
    """The marker names another folder."""
    shutil.copytree(left(place.with_name("w")), place)


def plant_marker(make: Callable[[Path, Path], object]) -> Callable[[Path], None]:
    """A folder with the user's file and a marker that `make` puts at its second argument."""

    def plant(place: Path) -> None:
        plant_file(place)
        victim = place.with_name("victim")
        victim.write_text("")
        make(victim, place / MARKER)

    return plant


def forged(place: Path) -> None:
    plant_file(place)
    (place / MARKER).write_text(json.dumps({"made_by": "llama-edge", "inode": 1}))


def alone(make: Callable[[Path, Path], object]) -> Callable[[Path], None]:
    """As `plant_marker`, and nothing next to the marker."""

    def plant(place: Path) -> None:
        plant_marker(make)(place)
        (place / "thesis.tex").unlink()

    return plant


NOT_OURS: Final[dict[str, Callable[[Path], object]]] = {
    "the user's folder": plant_file,
    "a file": lambda place: place.write_text("mine"),
    "a named pipe": os.mkfifo,
    "a link to a folder": lambda place: place.symlink_to(plant_file(place.with_name("victim"))),
    "a link to an empty folder": lambda place: place.symlink_to(empty(place.with_name("victim"))),
    "a link to nowhere": lambda place: place.symlink_to("nowhere"),
    "a link to one of ours": lambda place: place.symlink_to(left(place.with_name("w"))),
    "a copy of one of ours": plant_copy,
    "a marker that was made up": forged,
    "a marker that is empty": plant_marker(lambda _, marker: marker.touch()),
    "a marker that is no JSON": plant_marker(lambda _, marker: marker.write_text("[" * 100_000)),
    "a marker that is a link": plant_marker(lambda victim, marker: marker.symlink_to(victim)),
    "a marker that is a link to nowhere": alone(lambda _, marker: marker.symlink_to("../new")),
    "a marker with a second name": alone(lambda victim, marker: os.link(victim, marker)),
    "a marker that is a pipe": plant_marker(lambda _, marker: os.mkfifo(marker)),
    "a marker that is a folder": plant_marker(lambda _, marker: marker.mkdir()),
}


@pytest.mark.parametrize("kind", NOT_OURS)
def test_what_was_not_made_here_is_named_and_not_touched(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "work"
    NOT_OURS[kind](place)
    before = sorted((str(path), path.lstat()[:3]) for path in tmp_path.rglob("*"))
    for waiting in (None, Told()):
        with (
            pytest.raises(
                OutputError, match=r"work: is needed .* was not made there by llama-edge"
            ),
            unfinished_folder(place, waiting=waiting),
        ):
            pass
    assert not is_unfinished_folder(place)
    assert sorted((str(path), path.lstat()[:3]) for path in tmp_path.rglob("*")) == before


def test_another_users_folder_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt), unfinished_folder(tmp_path / "work", keep=True):
        raise KeyboardInterrupt
    assert is_unfinished_folder(tmp_path / "work")
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(OutputError, match="for this user"), unfinished_folder(tmp_path / "work"):
        pass


def test_an_empty_folder_and_one_killed_before_its_mark_are_taken(tmp_path: Path) -> None:
    place = tmp_path / "work"
    place.mkdir()
    with unfinished_folder(place):
        assert is_unfinished_folder(place)
    place.mkdir()
    (place / MARKER).touch()
    with unfinished_folder(place):
        assert is_unfinished_folder(place)
    assert not place.exists()


def test_a_link_in_it_is_removed_and_not_what_it_points_to(tmp_path: Path) -> None:
    victim = plant_file(tmp_path / "victim")
    with unfinished_folder(tmp_path / "work") as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "link").symlink_to(victim)
        (folder / "output").symlink_to(victim)
        os.link(victim / "thesis.tex", folder / "second name")
        assert list(empty(folder / "output").iterdir()) == []
    assert (victim / "thesis.tex").read_text() == "mine"
    assert not (tmp_path / "work").exists()
