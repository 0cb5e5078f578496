from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.peer_page import COLUMNS, CPU, DECODE, FILE, KL, Row, Run, page, plot
from llama_edge.core.recipe import Recipe
from llama_edge.quantize import DEFAULT_RECIPE, W4A8_RTN, get_recipe
from tests.conftest import DEBUG_CONFIG

DEFAULT = Row(
    name="default",
    title="ours",
    cpu_s=500,
    peak_mib=1900,
    file_mib=92.1,
    decode_tokens_per_s=150,
    long_decode_tokens_per_s=90,
    prefill_tokens_per_s=700,
    mean_kl_nats=0.06,
)
PLAIN = replace(DEFAULT, name="rtn", title="plain", cpu_s=77, mean_kl_nats=0.43)
OTHER = replace(
    DEFAULT, name="other", title="theirs", cpu_s=2, decode_tokens_per_s=200, mean_kl_nats=0.3
)
SLOW = replace(OTHER, name="slow", title="slow one", cpu_s=900, decode_tokens_per_s=100)


def run_of(*rows: Row, recipe: Recipe | None = None, text_cpu_s: float | None = None) -> Run:
    return Run(
        rows=rows,
        ours=frozenset({"default", "rtn"}),
        default="default",
        plain="rtn",
        recipe=recipe or get_recipe(DEFAULT_RECIPE),
        model="a model",
        config=DEBUG_CONFIG,
        context=2048,
        rounds=5,
        text_cpu_s=text_cpu_s,
    )


def one_line(text: str) -> str:
    return " ".join(text.split())


def test_the_table_has_a_line_for_each_row_and_a_cell_for_each_column() -> None:
    lines = page(run_of(DEFAULT, OTHER)).splitlines()
    assert "| ours | 500 | 1900 | 92.1 | 150.0 | 90.0 | 700 | 0.060 |" in lines
    widths = {line.count("|") for line in lines if line.startswith(("| ours", "| theirs", "| |"))}
    assert len(COLUMNS) + 2 in widths


def test_a_missing_row_says_why_and_takes_no_part() -> None:
    missing = Row(name="other", title="theirs", missing="build failed: a | b")
    text = page(run_of(DEFAULT, missing))
    assert "| theirs | build failed: a   b | | | | | | |" in text
    assert "Where the default" not in text


@pytest.mark.parametrize(
    ("own", "other", "decode", "cost"),
    [(100, 90, "ahead", "behind"), (90, 100, "behind", "ahead"), (99, 100, "level", "level")],
)
def test_verdicts(own: float, other: float, decode: str, cost: str) -> None:
    ours, theirs = (
        replace(DEFAULT, decode_tokens_per_s=value, cpu_s=value) for value in (own, other)
    )
    assert DECODE.verdict(ours, theirs) == decode
    assert CPU.verdict(ours, theirs) == cost


def test_where_the_default_is_behind_is_computed() -> None:
    text = page(run_of(DEFAULT, PLAIN, OTHER, SLOW))
    assert "| CPU s | 500 | 2, theirs | 250.00 x | behind |" in text
    assert "| decode tok/s | 150.0 | 200.0, theirs | 0.75 x | behind |" in text
    assert "| file MiB | 92.1 | 92.1, theirs | 1.00 x | level |" in text
    assert "| mean KL nats | 0.060 | 0.300, theirs | 0.20 x | ahead |" in text
    reasons = [line for line in text.splitlines() if line.startswith("- **")]
    assert [line.partition("**:")[0] for line in reasons] == ["- **CPU s", "- **decode tok/s"]
    assert "plain has 77." in one_line(text)
    assert "the closest, theirs, has 5.0 times the default's KL" in one_line(text)


def test_reasons_are_those_of_the_recipe() -> None:
    slower = run_of(DEFAULT, OTHER)
    assert "R4 is computed" in page(slower)
    assert "R4 is computed" not in page(replace(slower, recipe=W4A8_RTN))
    assert "writes calibration text" in one_line(page(slower))
    assert "writes calibration text" not in one_line(page(replace(slower, recipe=W4A8_RTN)))


def test_a_peer_that_is_as_close_is_named() -> None:
    close = replace(OTHER, mean_kl_nats=0.05)
    text = one_line(page(run_of(DEFAULT, close, SLOW)))
    assert "At least as close to full precision as the default: theirs." in text
    assert f"**{KL.heading}**" in text
    assert f"**{FILE.heading}**" not in text


def test_the_cost_of_the_text_is_said_where_there_is_an_importance_matrix() -> None:
    assert "importance matrix" not in page(run_of(DEFAULT, OTHER))
    text = one_line(page(run_of(DEFAULT, OTHER, text_cpu_s=97.4)))
    assert "took 97 CPU seconds, which are in our rows and not in theirs" in text


def test_a_width_that_k_quants_do_not_divide_is_said() -> None:
    measured = run_of(DEFAULT, OTHER)
    assert "A row of 96 weights is no multiple of llama.cpp's k-quant block" in one_line(
        page(measured)
    )
    wide = replace(measured, config=replace(DEBUG_CONFIG, hidden_size=256))
    assert "k-quant" not in page(wide)


def test_lines_are_wrapped_and_the_plot_is_written(tmp_path: Path) -> None:
    measured = run_of(DEFAULT, PLAIN, OTHER, SLOW, text_cpu_s=1.0)
    assert all(len(line) <= 100 or line.startswith("|") for line in page(measured).splitlines())
    plot(measured.rows, tmp_path / "plot.svg")
    assert (tmp_path / "plot.svg").read_text().startswith("<?xml")
