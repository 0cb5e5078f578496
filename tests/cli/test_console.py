from dataclasses import replace

import pytest
from rich.console import Console
from rich.progress import Progress as RichProgress

from llama_edge.cli.console import COLUMNS, StageLines, _Bars
from llama_edge.core.model_shapes import SHAPES
from llama_edge.core.progress import Job, Step, layer_name
from llama_edge.quantize import W4A8_RTN


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
        "long: 2 of 10; about 88 s left",
        "long: 4 of 10; about 66 s left",
        "long: 6 of 10; about 44 s left",
        "long: 8 of 10; about 22 s left",
        "long: 110.0 s",
    ]


def test_lines_name_what_is_being_done_and_what_is_left_of_a_resumed_stage(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = 0.0
    lines = StageLines(clock=lambda: now)
    steps = [Step(layer_name(layer, 10, "down_proj")) for layer in range(10)]
    lines.start("resumed", steps, done=6)
    now = 90.0
    lines.advance()
    assert capsys.readouterr().err.splitlines() == [
        "resumed: 6 of 10 are there already",
        "resumed: layer 8 of 10, down_proj; about 4 min left",
    ]


JOB = Job(config=SHAPES["llama-3.2-1b"].config, recipe=W4A8_RTN, backend="onnx")


def test_the_whole_time_is_said_once_and_when_the_first_stage_begins(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = {"quantize": 100.0, "lower": 80.0, "run": 60.0}
    monkeypatch.setattr("llama_edge.plan.host.stage_seconds", lambda job: planned)
    now = 0.0
    whole, resumed, suite, short = (StageLines(clock=lambda: now) for _ in range(4))
    whole.expect(JOB)
    assert capsys.readouterr().err == ""
    whole.start("wait for another run", 1)
    whole.start("quantize", 1)
    whole.start("lower", 1)
    resumed.expect(JOB)
    resumed.start("lower", 1)
    suite.expect(replace(JOB, besides="the suite"))
    suite.start("run", 1)
    planned = {"run": 29.0}
    short.expect(JOB)
    short.start("run", 1)
    said = [line for line in capsys.readouterr().err.splitlines() if "about" in line]
    assert said == [
        "about 4 min in all (planned)",
        "about 2 min in all (planned)",
        "about 60 s in all, and the suite (planned)",
    ]


def test_a_bar_is_as_long_as_the_work_and_names_the_step() -> None:
    now = 0.0
    with RichProgress(*COLUMNS, console=Console(quiet=True), get_time=lambda: now) as rich_progress:
        bars = _Bars(rich_progress)
        bars.start("resumed", [Step("table", 1.0), Step("layer", 2.0), Step("head", 1.0)], done=1)
        (task,) = rich_progress.tasks
        assert (task.completed, task.fields["doing"]) == (0.25, "layer")
        now += 30.0
        bars.advance()
        assert (task.completed, task.fields["doing"]) == (0.75, "head")
        assert str(COLUMNS[-1](task)) == "about 15 s left"
        bars.finish()
        assert (task.completed, task.fields["doing"]) == (1.0, "2 of 3")
        assert str(COLUMNS[-1](task)) == ""
