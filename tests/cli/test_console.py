import pytest
from rich.console import Console
from rich.progress import Progress as RichProgress

from llama_edge.cli.console import StageLines, _Bars


def test_a_long_stage_says_what_is_left_and_a_short_one_only_its_time(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = 0.0
    lines = StageLines(clock=lambda: now)
    lines.start("short", 2)
    now = 1.5
    lines.advance()
    lines.start("long", 10)
    for _ in range(10):
        now += 11.0
        lines.advance()
    lines.finish()
    assert capsys.readouterr().err.splitlines() == [
        "short: 1.5 s",
        "long: 2 of 10, about 88 s left",
        "long: 4 of 10, about 66 s left",
        "long: 6 of 10, about 44 s left",
        "long: 8 of 10, about 22 s left",
        "long: 110.0 s",
    ]


def test_what_an_earlier_run_did_says_nothing_about_the_speed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = 0.0
    lines = StageLines(clock=lambda: now)
    lines.start("resumed", 10)
    lines.skip(6)
    now = 30.0
    lines.advance()
    assert capsys.readouterr().err.splitlines() == [
        "resumed: 6 of 10 are there already",
        "resumed: 7 of 10, about 90 s left",
    ]


def test_a_bar_forgets_steps_that_it_did_not_take() -> None:
    now = 0.0
    with RichProgress(console=Console(quiet=True), get_time=lambda: now) as rich_progress:
        bars = _Bars(rich_progress)
        bars.start("resumed", 10)
        bars.skip(6)
        for _ in range(2):
            now += 30.0
            bars.advance()
        (task,) = rich_progress.tasks
        assert (task.completed, task.time_remaining) == (8, 60)
