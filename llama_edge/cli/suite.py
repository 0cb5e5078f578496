"""What `eval` and `export` share about suites: their options and their tables."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Final

import typer

from llama_edge.cli.console import print_table, say

if TYPE_CHECKING:
    from llama_edge.gate.intervals import Estimate
    from llama_edge.suites.scores import Group, SuiteReport

SuiteOption = Annotated[
    str | None,
    typer.Option(
        "--suite",
        help="Compare with full precision on prompts whose answers a program can check: on-device, "
        "or a JSON file.",
    ),
]
RequireOption = Annotated[
    list[str] | None,
    typer.Option(
        "--require",
        metavar="METRIC[.GROUP]=VALUE",
        help="What the suite must reach, such as agreement=0.9, agreement.th=0.85, "
        "checks_loss.every=0.1 (a loss: at most); may be repeated. Exit code 1 if one is missed.",
    ),
]
PerTaskOption = Annotated[
    int | None,
    typer.Option(
        "--per-task", help="Take so many of the suite's prompts of each task in each language."
    ),
]
#: Title, the bundle's metric, and full precision's.
_COLUMNS: Final = (
    ("agreement", "agreement", None),
    ("same answer", "same_answer", None),
    ("checks, of full", "checks", "full_checks"),
    ("tool calls, of full", "tool_call", "full_tool_call"),
    ("constrained", "constrained_tool_call", None),
)


def print_suite(name: str, report: "SuiteReport") -> None:
    """Scores of one bundle, and what was missed."""
    header = (report.suite, "prompts", *(title for title, _, _ in _COLUMNS))
    print_table(name, header, list(suite_rows(report)))
    say(*(f"missed: {line}" for line in report.missed))


def suite_rows(report: "SuiteReport") -> Iterator[tuple[str, ...]]:
    """A row for all prompts, and for each language and task."""
    for group in report.groups:
        cells = (_cell(group, own, full) for _, own, full in _COLUMNS)
        yield (group.name or "all", str(group.prompts), *cells)


def _cell(group: "Group", own: str, full: str | None) -> str:
    if own not in group.metrics:
        return "-"
    if full is None:
        return _with_interval(group.metrics[own])
    return f"{group.metrics[own].value:.1%}, {group.metrics[full].value:.1%}"


def _with_interval(found: "Estimate") -> str:
    if found.low is None or found.high is None:
        return f"{found.value:.1%}"
    return f"{found.value:.1%} [{found.low:.1%}, {found.high:.1%}]"
