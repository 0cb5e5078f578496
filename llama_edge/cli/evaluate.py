"""`eval`: how good a bundle is on the user's own text and tasks."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Final

import typer

from llama_edge.cli.console import (
    JsonOption,
    PublicKeyOption,
    RuntimeOption,
    print_json,
    print_table,
    progress_on_stderr,
    say,
    trust_in,
)
from llama_edge.cli.model import Revision, all_revised
from llama_edge.cli.suite import PerTaskOption, RequireOption, SuiteOption, print_suite
from llama_edge.evaluate.report import (
    DEFAULT_WINDOW,
    EvalReport,
    EvalRequest,
    TaskScore,
    TextResult,
)
from llama_edge.gate.intervals import CONFIDENCE, MIN_WINDOWS, Estimate
from llama_edge.suites.request import suite_request

_LABELS: Final[Mapping[str, tuple[str, Callable[[float], str]]]] = {
    "perplexity": ("perplexity", "{:.4g}".format),
    "perplexity_ratio": ("perplexity / full", "{:.4f}".format),
    "mean_kl": ("mean KL, nats", "{:.3g}".format),
    "p99_kl": ("99 % KL, nats", "{:.3g}".format),
    "p999_kl": ("99.9 % KL, nats", "{:.3g}".format),
    "top1_agreement": ("top-1 agreement", "{:.2%}".format),
}


def evaluate(
    subject: Annotated[str, typer.Argument(help="A bundle's folder, or a full-precision MODEL.")],
    other: Annotated[
        str | None, typer.Argument(help="A second one, for the difference of both.")
    ] = None,
    *,
    text: Annotated[
        list[Path] | None,
        typer.Option(help="A UTF-8 file that calibration never saw; may be repeated."),
    ] = None,
    tasks: Annotated[
        list[Path] | None,
        typer.Option(
            help="A task of lm-eval, a YAML file with local data; may be repeated. It may run "
            "Python code that is next to it, so use only those you trust."
        ),
    ] = None,
    window: Annotated[
        int, typer.Option(help="Tokens that are read from an empty cache.")
    ] = DEFAULT_WINDOW,
    max_windows: Annotated[
        int | None, typer.Option(help="Take so many windows from the start of each text.")
    ] = None,
    suite: SuiteOption = None,
    require: RequireOption = None,
    per_task: PerTaskOption = None,
    against: Annotated[
        str | None,
        typer.Option(help="A bundle's full-precision MODEL; by default the built-in one."),
    ] = None,
    revision: Revision = None,
    runtime: Annotated[str | None, RuntimeOption] = None,
    public_key: Annotated[Path | None, PublicKeyOption] = None,
    as_json: Annotated[bool, JsonOption] = False,
) -> None:
    """Measure the distance to full precision on text and on a suite of prompts; run tasks."""
    from llama_edge.evaluate.evaluate import evaluate as measure

    *subjects, against = all_revised((subject, other, against), revision)
    request = EvalRequest(
        subjects=tuple(each for each in subjects if each is not None),
        texts=tuple(text or ()),
        tasks=tuple(tasks or ()),
        window=window,
        max_windows=max_windows,
        suite=suite_request(suite, require, per_task),
        against=against,
        runtime=runtime,
        trust=trust_in(public_key),
    )
    with progress_on_stderr() as progress:
        report = measure(request, progress)
    if as_json:
        print_json(report.to_json())
    else:
        _print(report, request)
    if report.missed:
        raise typer.Exit(1)


def _print(report: EvalReport, request: EvalRequest) -> None:
    if request.texts:
        _print_texts(report)
    if request.tasks:
        _print_tasks(report)
    for subject in report.subjects:
        if subject.suite is not None:
            print_suite(subject.name, subject.suite)


def _print_texts(report: EvalReport) -> None:
    columns = [subject.results for subject in report.subjects]
    names = [subject.name for subject in report.subjects]
    if report.difference:
        columns.append(report.difference)
        names.append("second - first")
    rows = [row for results in zip(*columns, strict=True) for row in _rows(results)]
    print_table("", ("text", "windows", "", *names), rows)
    say(
        f"windows of {report.window} tokens; in brackets {CONFIDENCE:.0%} intervals over windows "
        f"(none below {MIN_WINDOWS} windows)"
    )
    for subject in report.subjects:
        if subject.runtime is not None and subject.against is None:
            say(f"{subject.name}: no KL without its full-precision model (--against MODEL)")


def _print_tasks(report: EvalReport) -> None:
    rows = []
    for scores in zip(*(subject.tasks for subject in report.subjects), strict=True):
        first = scores[0]
        rows.append((first.task, str(first.samples), first.metric, *map(_task_cell, scores)))
    names = [subject.name for subject in report.subjects]
    print_table("", ("task", "samples", "", *names), rows)


def _task_cell(score: TaskScore) -> str:
    if score.standard_error is None:
        return f"{score.value:.4g}"
    return f"{score.value:.4g} ± {score.standard_error:.2g}"


def _rows(results: tuple[TextResult, ...]) -> Iterator[tuple[str, ...]]:
    """One text: a row per metric."""
    head = (results[0].text, str(results[0].windows))
    for name, (label, show) in _LABELS.items():
        cells = [result.metrics.get(name) for result in results]
        if any(cells):
            yield (*head, label, *(_cell(cell, show) for cell in cells))
            head = ("", "")


def _cell(found: Estimate | None, show: Callable[[float], str]) -> str:
    if found is None:
        return "-"
    if found.low is None or found.high is None:
        return show(found.value)
    return f"{show(found.value)} [{show(found.low)}, {show(found.high)}]"
