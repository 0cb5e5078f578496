"""How far the estimates of what is left are off: the steps of an export, recorded and replayed.

    python benchmarks/step_times.py MODEL --target TARGET --recipe NAME --json FILE
    python benchmarks/step_times.py --json FILE

With a model it is exported and the moment of every step is kept; without one, what is kept is
shown. The table has each stage's planned and measured seconds, and by which factor the estimate of
what is left was off at most while more than 10 s were left: as the program estimates, and by the
rule that takes all steps of a stage for equal. `--clock cpu` counts CPU seconds, those of processes
that ended included, where other programs use the machine.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import msgspec

from llama_edge.cli.pace import Pace
from llama_edge.core.progress import Job, SilentProgress, Step, Steps
from llama_edge.pipeline.export import ExportRequest, export_model
from llama_edge.plan.host import stage_seconds

#: What is left is judged while it is more than this.
LEAST_S: Final = 10.0
#: A log's first line about a stage comes after so much of it.
FIRST_S: Final = 20.0

Clock = Literal["wall", "cpu"]


class Moment(msgspec.Struct, frozen=True):
    """Seconds since the recording began."""

    wall: float
    cpu: float

    def at(self, clock: Clock) -> float:
        """By one of the two clocks."""
        return self.wall if clock == "wall" else self.cpu


class Stage(msgspec.Struct):
    """One stage: its steps, or how many there are, and when each was done."""

    name: str
    steps: int | list[Step]
    began: Moment
    done: list[Moment] = msgspec.field(default_factory=list)
    ended: Moment | None = None


class Recording(msgspec.Struct):
    """One export."""

    model: str
    recipe: str
    planned: dict[str, float] = msgspec.field(default_factory=dict)
    stages: list[Stage] = msgspec.field(default_factory=list)


@dataclass(slots=True)
class Recorder(SilentProgress):
    """`Progress` that keeps the moments."""

    recording: Recording
    _began: tuple[float, float] = field(default_factory=lambda: (time.monotonic(), _cpu_s()))

    def _now(self) -> Moment:
        wall, cpu = self._began
        return Moment(round(time.monotonic() - wall, 3), round(_cpu_s() - cpu, 3))

    def expect(self, job: Job) -> None:
        """See `Progress`."""
        self.recording.planned = stage_seconds(job)

    def start(self, stage: str, steps: Steps, done: int = 0) -> None:
        """See `Progress`."""
        now = self.end()
        kept = steps if isinstance(steps, int) else list(steps)
        self.recording.stages.append(Stage(name=stage, steps=kept, began=now))

    def advance(self, steps: int = 1) -> None:
        """See `Progress`."""
        self.recording.stages[-1].done.append(self._now())

    def end(self) -> Moment:
        """The running stage has ended."""
        now = self._now()
        if self.recording.stages:
            self.recording.stages[-1].ended = now
        return now


def _cpu_s() -> float:
    used = time.process_time()
    for tasks in Path("/proc/self/task").glob("*/children"):
        for pid in tasks.read_text().split():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            used += (int(fields[11]) + int(fields[12])) / 100
    return used


@dataclass(frozen=True, slots=True, kw_only=True)
class Guess:
    """What was estimated at one moment, and what was true."""

    stage: str
    #: since the stage began
    after_s: float
    estimated_s: float
    real_s: float

    @property
    def factor(self) -> float:
        """How far it is off, whether too much or too little."""
        low, high = sorted((max(self.estimated_s, 0.001), self.real_s))
        return high / low


def replay(recording: Recording, clock: Clock, *, equal: bool = False) -> Iterator[Guess]:
    """What the program would have said after each step.

    Args:
        recording: What happened.
        clock: Whose seconds count.
        equal: By the rule that all steps take as long, and nothing is planned.
    """
    now = 0.0
    pace = Pace(lambda: now)
    pace.expect({} if equal else recording.planned)
    for stage in recording.stages:
        assert stage.ended is not None
        began, ended = stage.began.at(clock), stage.ended.at(clock)
        now = began
        pace.start(stage.name, len(stage.done) if equal else stage.steps)
        for moment in stage.done:
            now = moment.at(clock)
            pace.advance()
            left = pace.left_s()
            if left is not None:
                yield Guess(
                    stage=stage.name, after_s=now - began, estimated_s=left, real_s=ended - now
                )
        now = ended


def judged(guesses: Iterator[Guess]) -> Iterator[Guess]:
    """Those that a log may show and whose error matters."""
    return (one for one in guesses if one.after_s >= FIRST_S and one.real_s >= LEAST_S)


def _record(model: str, target: str, recipe: str) -> Recording:
    recorder = Recorder(Recording(model=model, recipe=recipe))
    with tempfile.TemporaryDirectory() as scratch:
        request = ExportRequest(model=model, target=target, recipe=recipe, out=Path(scratch, "out"))
        export_model(request, recorder)
    recorder.end()
    return recorder.recording


def _print(recording: Recording, clock: Clock) -> None:
    print("| stage | planned s | measured s | off at most | off by equal steps |")
    print("|---|--:|--:|--:|--:|")
    ours, equal = (list(judged(replay(recording, clock, equal=rule))) for rule in (False, True))
    for stage in recording.stages:
        assert stage.ended is not None
        cells = [
            f"{max(factors):.2f}" if factors else ""
            for factors in (
                [one.factor for one in guesses if one.stage == stage.name]
                for guesses in (ours, equal)
            )
        ]
        planned = recording.planned.get(stage.name)
        shown = "" if planned is None else f"{planned:.1f}"
        measured = stage.ended.at(clock) - stage.began.at(clock)
        print(f"| {stage.name} | {shown} | {measured:.1f} | {' | '.join(cells)} |")


def main() -> None:
    """Record, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--target", default="android")
    parser.add_argument("--recipe", default="w4a8-mixed")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    asked = parser.parse_args()
    if asked.model is not None:
        recording = _record(asked.model, asked.target, asked.recipe)
        asked.json.write_bytes(msgspec.json.encode(recording) + b"\n")
    _print(msgspec.json.decode(asked.json.read_bytes(), type=Recording), asked.clock)


if __name__ == "__main__":
    main()
