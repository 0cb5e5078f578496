"""Estimates of what is left, by a clock that the tests set."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from llama_edge.cli.pace import Pace, duration
from llama_edge.core.progress import Step


@dataclass
class Clock:
    now: float = 0.0
    pace: Pace = field(init=False)

    def __post_init__(self) -> None:
        self.pace = Pace(lambda: self.now)

    def step(self, seconds: float) -> None:
        self.now += seconds
        self.pace.advance()


def test_equal_steps_that_nobody_planned_are_extrapolated() -> None:
    clock = Clock()
    clock.pace.start("even", 10)
    assert clock.pace.left_s() is None
    clock.step(1.5)
    assert clock.pace.left_s() is None  # too little to say anything
    clock.step(1.5)
    assert clock.pace.left_s() == pytest.approx(12)
    clock.now += 1.0
    assert clock.pace.left_s() == pytest.approx(11)


def test_steps_count_by_their_work() -> None:
    clock = Clock()
    steps = [Step("table", 1.0), Step("layer 1", 30.0), Step("layer 2", 30.0)]
    clock.pace.start("uneven", steps)
    clock.step(2.0)
    assert clock.pace.left_s() == pytest.approx(120)
    assert clock.pace.fraction == pytest.approx(1 / 61)
    assert (clock.pace.doing, clock.pace.count) == ("layer 1", "1 of 3")
    clock.step(60.0)
    clock.step(60.0)
    assert (clock.pace.left_s(), clock.pace.fraction) == (0, 1)
    assert clock.pace.doing == "3 of 3"


def test_what_an_earlier_run_did_says_nothing_about_the_speed() -> None:
    clock = Clock()
    clock.pace.start("resumed", 10, done=6)
    clock.step(30.0)
    assert clock.pace.left_s() == pytest.approx(90)


def test_the_plan_is_said_at_once_and_replaced_by_what_is_measured() -> None:
    clock = Clock()
    clock.pace.expect({"first": 100.0, "later": 50.0})
    clock.pace.start("first", 100)
    assert clock.pace.left_s() == pytest.approx(100)
    assert clock.pace.in_all_s() == pytest.approx(150)
    for _ in range(10):
        clock.step(2.0)  # twice as slow as planned
    left = clock.pace.left_s()
    assert left is not None
    assert 180 / 1.5 < left < 180
    for _ in range(40):
        clock.step(2.0)
    assert clock.pace.left_s() == pytest.approx(100, rel=0.1)


def test_how_far_a_stage_was_off_corrects_those_after_it() -> None:
    clock = Clock()
    clock.pace.expect({"first": 100.0, "skipped": 40.0, "later": 50.0, "last": 10.0})
    clock.pace.start("first", 10)
    for _ in range(10):
        clock.step(20.0)
    clock.pace.start("later", 5)
    assert clock.pace.left_s() == pytest.approx(100, rel=0.05)
    assert clock.pace.in_all_s() == pytest.approx(120, rel=0.05)


def test_half_a_stage_is_compared_with_half_of_its_plan() -> None:
    clock = Clock()
    clock.pace.expect({"resumed": 100.0, "later": 50.0})
    clock.pace.start("resumed", 10, done=5)
    assert clock.pace.in_all_s() == pytest.approx(100)
    for _ in range(5):
        clock.step(10.0)
    clock.pace.start("later", 5)
    assert clock.pace.left_s() == pytest.approx(50)


def test_a_step_that_takes_longer_than_it_should_raises_the_estimate() -> None:
    clock = Clock()
    clock.pace.expect({"slow": 20.0})
    clock.pace.start("slow", 2)
    clock.now += 9.0
    assert clock.pace.left_s() == pytest.approx(11)
    clock.now += 31.0
    left = clock.pace.left_s()
    assert left is not None
    assert 25 < left < 40


def test_a_stage_without_steps_or_plan_says_nothing() -> None:
    clock = Clock()
    assert (clock.pace.left_s(), clock.pace.in_all_s()) == (None, None)
    clock.pace.start("empty", 0)
    clock.now += 100.0
    assert (clock.pace.left_s(), clock.pace.in_all_s()) == (None, None)
    clock.pace.finish()
    assert clock.pace.stage == ""


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0 s"),
        (89.4, "89 s"),
        (89.6, "1 min"),
        (200, "3 min"),
        (89 * 60, "89 min"),
        (130 * 60, "2 h 10 min"),
        (179.7 * 60, "3 h"),
    ],
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def worst(*, equal_steps: bool, planned: bool = True) -> float:
    """By which factor what is left of recorded stages was off, while more than 10 s were left.

    CPU seconds of one thread: w4a8-mixed on SmolLM2-135M's first six layers.
    """
    recorded = json.loads(Path(__file__).with_name("step_times.json").read_text())
    clock = Clock()
    clock.pace.expect(recorded["planned"] if planned else {})
    factors: list[float] = []
    for stage in recorded["stages"]:
        steps = [Step(name, work) for name, work in stage["steps"]]
        began = clock.now
        clock.pace.start(stage["name"], len(steps) if equal_steps else steps)
        for done in stage["done"]:
            clock.now = began + done
            clock.pace.advance()
            left, real = clock.pace.left_s(), stage["ended"] - done
            if left is not None and real > 10:
                factors.append(max(left / real, real / left))
        clock.now = began + stage["ended"]
    return max(factors)


def test_recorded_stages_are_estimated_within_half_from_the_first_step_on() -> None:
    assert worst(equal_steps=False) < 1.5


def test_equal_steps_would_be_far_off() -> None:
    assert worst(equal_steps=True, planned=False) > 10
