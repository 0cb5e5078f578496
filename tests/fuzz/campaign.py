"""Read many mutated files, each within limits, and count how that ends."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from tests.fuzz import child
from tests.fuzz.child import Inputs, get_reader

#: A child that dies before it has read anything is broken itself.
_STARTS: Final = 3
_POLL_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Fault:
    """An input that broke the contract."""

    number: int
    #: the exception and its place, or how the process ended
    why: str
    #: the mutated file, in the reader's folder
    target: str
    data: bytes

    @property
    def kind(self) -> str:
        """What faults of one cause have in common."""
        return self.why.split(": ")[0]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A campaign."""

    reader: str
    inputs: int
    seconds: float
    #: how inputs ended: `read`, classes of our errors, `stopped`, `fault`
    counts: Mapping[str, int]
    faults: tuple[Fault, ...]


def run(
    name: str, *, seed: int = 0, count: int, seconds: float | None = None, first: int = 0
) -> Outcome:
    """Read `count` inputs, or as many as `seconds` allow.

    Args:
        name: A reader of the table, or `module:NAME` of another.
        seed: Of the mutations.
        count: The last input has the number `first + count - 1`.
        seconds: Begin no further input after that long; None reads all.
        first: The number of the first input.

    Raises:
        RuntimeError: The reader does not read its seed, or its process does not start.
    """
    with TemporaryDirectory() as place:
        seed_folder = Path(place) / "seed"
        seed_folder.mkdir()
        get_reader(name).build(seed_folder)
        return _Campaign(name, seed, Path(place)).run(first, count, seconds)


class _Campaign:
    def __init__(self, name: str, seed: int, place: Path) -> None:
        self._name = name
        self._seed = seed
        self._place = place
        self._progress = place / "progress"
        self._outcomes = place / "outcomes"
        self._outcomes.touch()
        self._inputs = Inputs(name, place / "seed", seed)
        self._counts: Counter[str] = Counter()
        self._faults: list[Fault] = []

    def run(self, first: int, count: int, seconds: float | None) -> Outcome:
        begin = time.monotonic()
        until = None if seconds is None else begin + seconds
        number, last, starts = first, first + count, 0
        while number < last:
            self._progress.write_bytes(number.to_bytes(8, "little"))
            code, said = self._child(number, last, until)
            reached = int.from_bytes(self._progress.read_bytes(), "little")
            if code == 0 or (code == -signal.SIGKILL and until and time.monotonic() >= until):
                number = reached
                break
            starts = starts + 1 if reached == number else 0
            if starts == _STARTS or code == 1:
                raise RuntimeError(f"{self._name}: its process ends with {code}: {said}")
            self._died(reached, code, said)
            number = reached + 1
        self._collect()
        return Outcome(
            reader=self._name,
            inputs=number - first,
            seconds=time.monotonic() - begin,
            counts=self._counts,
            faults=tuple(self._faults),
        )

    def _child(self, number: int, last: int, until: float | None) -> tuple[int, str]:
        """Exit code, or minus the signal, and the last words."""
        with (self._place / "said").open("w+b") as said:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    child.__name__,
                    self._name,
                    str(self._place / "seed"),
                    str(self._seed),
                    str(number),
                    str(last),
                    str(self._progress),
                    str(self._outcomes),
                ],
                stdout=said,
                stderr=said,
                env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
            )
            try:
                while process.poll() is None:
                    time.sleep(_POLL_S)
                    if until is not None and time.monotonic() > until:
                        process.kill()
            finally:
                process.kill()
                process.wait()
            said.seek(0)
            words = said.read().decode(errors="replace").split("\n")
        telling = [word for word in words if word.strip() and not word.startswith("note:")]
        return process.returncode, telling[-1][:300] if telling else "it said nothing"

    def _died(self, number: int, code: int, said: str) -> None:
        """For a file that a confined child reads, dying is an answer; for others not."""
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        reader = get_reader(self._name)
        why = f"{how}: {said}"
        if code == -signal.SIGALRM:
            why = f"{how}: it takes more than {reader.limit_s} s"
        self._counts["died"] += 1
        target, _ = self._inputs.make(number)
        if not any(target.match(pattern) for pattern in reader.confined):
            self._fault(number, why)

    def _fault(self, number: int, why: str) -> None:
        target, data = self._inputs.make(number)
        self._faults.append(Fault(number, why, str(target), data))

    def _collect(self) -> None:
        for line in self._outcomes.read_text().splitlines():
            ended = json.loads(line)
            self._counts[ended["outcome"]] += 1
            if ended["outcome"] == child.FAULT:
                self._fault(ended["number"], ended["why"])
