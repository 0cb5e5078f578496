"""How long a command still takes: as planned at first, then more and more as was measured.

A stage says how its steps compare, `plan` how long the stage should take. That counts as some
seconds of measurement, so the first steps correct the plan a little and a minute of them replaces
it. How far stages were off so far corrects those to come: the machine is not the one that was
planned for, or others use it.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from llama_edge.core.progress import Steps

#: As how much measurement what was planned counts, or as this share of what it says.
_PRIOR_S: Final = 5.0
_PRIOR_SHARE: Final = 0.05
#: A stage that nobody planned says nothing about itself before.
_MEASURED_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class _Known:
    """So much work took so many seconds; as an estimate it counts as much as a measurement."""

    work: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: "_Known") -> "_Known":
        return _Known(self.work + other.work, self.seconds + other.seconds)

    @property
    def seconds_per_work(self) -> float:
        return self.seconds / self.work


class Pace:
    """The stages of one command, and the clock.

    Args:
        clock: Seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        #: seconds by stage, in their order
        self._planned: Mapping[str, float] = {}
        #: of the stages before: planned seconds, and what they took
        self._machine = _Known(_PRIOR_S, _PRIOR_S)
        self._stage = ""
        self._steps: Steps = 0
        self._work: tuple[float, ...] = ()
        self._skipped = self._done = 0
        self._began = self._reached = clock()

    def expect(self, planned: Mapping[str, float]) -> None:
        """Seconds that stages should take, in their order; one may be missing or never begin."""
        self._planned = planned

    def start(self, stage: str, steps: Steps, done: int = 0) -> None:
        """See `Progress`."""
        self.finish()
        self._stage, self._steps = stage, steps
        self._work = (1.0,) * steps if isinstance(steps, int) else tuple(s.work for s in steps)
        self._skipped = self._done = done
        self._began = self._reached = self._clock()

    def advance(self, steps: int = 1) -> None:
        """See `Progress`."""
        self._done += steps
        self._reached = self._clock()

    def finish(self) -> None:
        """The stage has ended; what it took says how fast this machine is."""
        if self._stage in self._planned and self._work:
            share = sum(self._work[self._skipped :]) / sum(self._work)
            self._machine += _Known(self._planned[self._stage] * share, self.elapsed_s)
        self._stage = ""

    @property
    def stage(self) -> str:
        """What runs; empty after its end."""
        return self._stage

    @property
    def elapsed_s(self) -> float:
        """Since the stage began."""
        return self._clock() - self._began

    @property
    def fraction(self) -> float:
        """Of the stage's work, what is done."""
        return sum(self._work[: self._done]) / (sum(self._work) or 1.0)

    @property
    def count(self) -> str:
        """How many steps are done."""
        return f"{self._done} of {len(self._work)}"

    @property
    def doing(self) -> str:
        """The present step's name, or how many steps are done where they have none."""
        if isinstance(self._steps, int) or self._done >= len(self._steps):
            return self.count
        return self._steps[self._done].name

    def left_s(self) -> float | None:
        """Of the stage; None while nothing is known."""
        prior = self._prior()
        measured = _Known(sum(self._work[self._skipped : self._done]), self._reached - self._began)
        present = sum(self._work[self._done : self._done + 1])
        since_s = self._clock() - self._reached
        if prior is None and (measured.seconds < _MEASURED_S or not measured.work):
            return None
        known = measured if prior is None else prior + measured
        pace = known.seconds_per_work
        if since_s > present * pace:  # the present step takes longer than it should
            pace = (known + _Known(present, since_s)).seconds_per_work
        after = sum(self._work[self._done + 1 :])
        return pace * after + max(pace * present - since_s, 0.0)

    def _prior(self) -> _Known | None:
        """What was planned for the stage, corrected by the stages before."""
        planned_s = self._planned.get(self._stage, 0.0) * self._machine.seconds_per_work
        total = sum(self._work)
        if not planned_s or not total:
            return None
        counts_s = max(_PRIOR_S, _PRIOR_SHARE * planned_s)
        return _Known(total * counts_s / planned_s, counts_s)

    def in_all_s(self) -> float | None:
        """Of this stage and those planned after it; None where it was not planned."""
        names = list(self._planned)
        if self._stage not in names:
            return None
        later = sum(self._planned[name] for name in names[names.index(self._stage) + 1 :])
        here = self.left_s() or 0.0
        return here + later * self._machine.seconds_per_work


def duration(seconds: float) -> str:
    """In words that promise no more than an estimate can: "40 s", "3 min", "2 h 10 min"."""
    whole = round(seconds)
    if whole < 90:
        return f"{whole} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(round(minutes, -1), 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"
