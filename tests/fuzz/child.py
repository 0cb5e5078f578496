"""The process in which inputs are read: it may die of one, and the next begins after that one.

Arguments: a reader's name or `module:NAME` of one, the folder with its seed, a seed, the first and
the last number, and two files: one that always has the number of the input that is being read, and
one that gets a line for each input, with how it ended.
"""

import importlib
import json
import mmap
import resource
import signal
import sys
import traceback
from pathlib import Path
from random import Random
from typing import Any, Final

from llama_edge.confined import ConfinedError, Worker
from llama_edge.confined.child import RefusedError, _data_bytes
from llama_edge.confined.worker import visible
from llama_edge.core.errors import LlamaEdgeError
from tests.fuzz.mutations import mutate
from tests.fuzz.readers import READERS, Reader

#: Of one input.
LIMIT_BYTES: Final = 1 << 30
#: What a bad input may end with, and what a bad request of `serve` has.
_EXIT_CODES: Final = (1, 3)
#: How an input ended that broke the contract.
FAULT: Final = "fault"
PACKAGE: Final = Path(__file__).parents[2]


def get_reader(name: str) -> Reader:
    """One of the table, or of a module, as tests have their own."""
    module, _, attribute = name.partition(":")
    if not attribute:
        return READERS[name]
    reader: Reader = getattr(importlib.import_module(module), attribute)
    return reader


class Inputs:
    """The mutated files of a reader: the same number gives the same input."""

    def __init__(self, name: str, seed_folder: Path, seed: int) -> None:
        self._name = name
        self._seed = seed
        reader = get_reader(name)
        self._files = {
            path.relative_to(seed_folder): path.read_bytes()
            for path in sorted(seed_folder.rglob("*"))
            if path.is_file()
        }
        self._targets = sorted(
            path.relative_to(seed_folder)
            for path in {found for target in reader.targets for found in seed_folder.glob(target)}
            if path.is_file()
        )

    def make(self, number: int) -> tuple[Path, bytes]:
        """The mutated file: its place in the folder, and its bytes."""
        random = Random(f"{self._name} {self._seed} {number}")
        target = random.choice(self._targets)
        others = [self._files[path] for path in self._targets]
        return target, mutate(self._files[target], random, others)

    def restore(self, folder: Path) -> None:
        """Write every file that is not as it was."""
        for path, data in self._files.items():
            place = folder / path
            if not place.is_file() or place.read_bytes() != data:
                put(place, data)


def put(place: Path, data: bytes) -> None:
    """Another file in its place: what was read of the former may still be mapped."""
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    place.write_bytes(data)


class StoppedError(ConfinedError):
    """What the parent says of a confined child that ended: no memory, or a panic in Rust."""


def confine_nothing() -> None:
    """Let `Worker` answer in this process, which has limits of its own: starting one costs 0.3 s.

    That a child which dies becomes a message is shown elsewhere; here, whether it has to.
    """
    last: dict[str, int] = {}

    def ask(worker: Any, request: Any, heard: Any = None) -> Any:  # noqa: ANN401
        del heard
        module = worker._module
        if worker._opening is not None and last.get(module) != id(worker):
            open_(worker)
        return _answer(module, request)

    def open_(worker: Any) -> Any:  # noqa: ANN401
        module = worker._module
        last[module] = id(worker)
        return _answer(module, worker._opening)

    for name, function in {"ask": ask, "open": open_, "close": lambda worker: None}.items():
        setattr(Worker, name, function)


def _answer(module: str, request: Any) -> Any:  # noqa: ANN401
    """As the pipe has it: JSON both ways."""
    answer = importlib.import_module(module).answer
    try:
        return json.loads(json.dumps(answer(json.loads(json.dumps(request)))))
    except RefusedError as error:
        raise ConfinedError(visible(str(error)), refused=True) from error
    except BaseException as error:
        if isinstance(error, MemoryError) or type(error).__name__ == "PanicException":
            raise StoppedError(str(error)) from error
        raise


def read(reader: Reader, folder: Path) -> tuple[str, str]:
    """How an input ended.

    Returns:
        `read`; the class of one of our errors, or `stopped`, and the message; or `fault`, with the
        exception and its place.
    """
    try:
        reader.read(folder)
    except LlamaEdgeError as error:
        stopped = isinstance(error.__cause__, StoppedError)
        if error.exit_code in _EXIT_CODES:
            return "stopped" if stopped else type(error).__name__, str(error)
        return FAULT, f"{type(error).__name__}, exit code {error.exit_code}: {str(error)[:200]!r}"
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic of a Rust library is none narrower
        return FAULT, _place(error)
    return "read", ""


def _place(error: BaseException) -> str:
    """The exception with the innermost line of this project."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [
        frame
        for frame in frames
        if frame.filename.startswith(str(PACKAGE)) and "site-packages" not in frame.filename
    ]
    inner = own[-1] if own else frames[-1]
    file = Path(inner.filename)
    name = file.relative_to(PACKAGE) if file.is_relative_to(PACKAGE) else file.name
    return f"{type(error).__name__} at {name}:{inner.lineno}: {str(error)[:200]}"


def main() -> None:
    """Read one input after the other."""
    name, seed_folder, seed, first, last, progress_file, outcomes_file = sys.argv[1:]
    reader = get_reader(name)
    inputs = Inputs(name, Path(seed_folder), int(seed))
    folder = Path(progress_file).parent / "input"
    inputs.restore(folder)
    confine_nothing()
    outcome, why = read(reader, folder)
    if outcome != "read":
        sys.exit(f"the seed is not read: {outcome} {why}")
    _limit_memory()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    with Path(progress_file).open("r+b") as file, Path(outcomes_file).open("a") as outcomes:
        progress = mmap.mmap(file.fileno(), 8)

        for number in range(int(first), int(last)):
            progress[:] = number.to_bytes(8, "little")
            target, data = inputs.make(number)
            put(folder / target, data)
            signal.setitimer(signal.ITIMER_REAL, reader.limit_s)
            outcome, why = read(reader, folder)
            signal.setitimer(signal.ITIMER_REAL, 0)
            inputs.restore(folder)
            ended = {"number": number, "outcome": outcome, "why": why if outcome == FAULT else ""}
            outcomes.write(json.dumps(ended) + "\n")
            outcomes.flush()
        progress[:] = int(last).to_bytes(8, "little")


def _limit_memory() -> None:
    """What an input may take beyond what the process has."""
    limit = (_data_bytes() or 0) + LIMIT_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main()
