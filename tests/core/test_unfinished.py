import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from llama_edge.core.errors import OutputError
from llama_edge.core.progress import SilentProgress
from llama_edge.core.unfinished import empty, unfinished_folder


class Told(SilentProgress):
    def __init__(self) -> None:
        self.waits = threading.Event()

    def start(self, stage: str, total: int, done: int = 0) -> None:
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
