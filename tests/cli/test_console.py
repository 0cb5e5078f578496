import pytest

from llama_edge.cli.console import StageLines


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
