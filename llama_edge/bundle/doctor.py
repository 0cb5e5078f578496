"""`doctor`: what is wrong with a bundle, or with a folder that another program wrote."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from llama_edge.bundle import doctor_child
from llama_edge.bundle.examination import Diagnosis
from llama_edge.bundle.finding_codes import ContractFinding
from llama_edge.confined import ConfinedError, Limits, Worker
from llama_edge.core.errors import LlamaEdgeError
from llama_edge.core.progress import Progress
from llama_edge.core.regular import real_path
from llama_edge.core.walk import MAX_DEPTH, Entry, walk

#: A process that it starts has the same limit of its own: with what both have besides, under 2 GiB.
_MEMORY_BYTES: Final = 1600 << 20
_BASE_S: Final = 55
#: Read, hashed and compared, on a slow disk.
_BYTES_PER_S: Final = 50_000_000


def diagnose(path: Path, public_key: Path | None, progress: Progress) -> Diagnosis:
    """`examine.examine` in a child process with limits, which ends whatever is at `path`.

    Raises:
        LlamaEdgeError: As `examine.examine`.
    """
    told = _Told(progress)
    worker = Worker(
        doctor_child.__name__, _limits(path), readable=_readable(path, public_key), children=True
    )
    key = None if public_key is None else str(public_key.absolute())
    try:
        reply = worker.ask({"path": str(path), "public_key": key}, told.hear)
    except ConfinedError as error:
        return Diagnosis(
            path=path,
            kind="folder or file",
            findings=(
                ContractFinding(
                    code="examination.stopped",
                    where=f"{path.name}: {told.stage}",
                    expected="files that a model has",
                    found=str(error),
                ),
            ),
            checked=tuple(told.checked),
            notes=(),
        )
    finally:
        worker.close()
    return doctor_child.diagnosis(path, reply)


def _readable(path: Path, public_key: Path | None) -> tuple[Path, ...]:
    """What the examination opens; a file has its tokenizer next to it."""
    folders = [path if path.is_dir() else path.absolute().parent]
    if path.suffix == ".mlpackage":
        folders.append(path.absolute().parent)
    keys = [] if public_key is None else [public_key]
    # Links, as in a hub's cache, lead to files elsewhere.
    links = [
        folder / entry.name
        for folder in folders
        for entry in _entries(folder, depth=1)
        if not entry.is_folder and not entry.is_file
    ]
    targets = [real_path(link) for link in links]
    return tuple(place for place in (*folders, *keys, *targets) if place.exists())


def _entries(folder: Path, depth: int) -> Iterator[Entry]:
    """What is in a folder, as far as it can be walked; the examination says what is wrong."""
    with suppress(LlamaEdgeError):
        yield from walk(folder, depth=depth)


def _limits(path: Path) -> Limits:
    """A minute, and more for what is really on the disk; a sparse file is not."""
    blocks = 0
    if path.is_dir():
        blocks = sum(entry.status.st_blocks for entry in _entries(path, MAX_DEPTH))
    elif path.exists():
        blocks = path.stat().st_blocks
    seconds = _BASE_S + blocks * 512 // _BYTES_PER_S
    return Limits(memory_bytes=_MEMORY_BYTES, cpu_s=seconds, wall_s=seconds)


class _Told:
    """Passes the child's progress on, and remembers where it was."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.stage = "at the beginning"
        self.checked: list[str] = []

    def hear(self, event: object) -> None:
        match event:
            case ["start", str(stage), int(total)]:
                self.stage = stage
                self._progress.start(stage, total)
            case ["advance", int(steps)]:
                self.checked.append(self.stage)
                self._progress.advance(steps)
