"""SmolLM2-135M on the built-in suite, through each target's runtime, in Markdown.

    python -m benchmarks.suites [BUNDLE...] [--per-task N] [--json FILE] [--write]
        [--work FOLDER]

A BUNDLE is TARGET:RECIPE; by default all targets with the default recipe, and onnx with w4a8-rtn.
Each is exported and measured as `llama-edge eval BUNDLE --suite on-device` does; the ios package
runs in our interpreter. Full precision answers once; its answers are kept in the cache. `--work`
keeps the bundles, and a later run takes them from there. `--write` puts the tables into
docs/suites.md.
"""

import argparse
import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from llama_edge.backends.base import LowerOptions
from llama_edge.bundle.folder import is_bundle
from llama_edge.cli.console import StageLines
from llama_edge.evaluate.evaluate import evaluate
from llama_edge.evaluate.report import EvalRequest
from llama_edge.gate.intervals import Estimate
from llama_edge.pipeline.export import ExportRequest, export_model
from llama_edge.quantize import DEFAULT_RECIPE
from llama_edge.suites.request import SuiteRequest
from llama_edge.suites.scores import Group, SuiteReport

MODEL: Final = "smollm2-135m"
#: The longest prompt has some 500 tokens in SmolLM2's tokenizer, which knows little Thai.
CONTEXT: Final = 1024
BUNDLES: Final = (
    f"android:{DEFAULT_RECIPE}",
    f"onnx:{DEFAULT_RECIPE}",
    f"ios:{DEFAULT_RECIPE}",
    "onnx:w4a8-rtn",
)
PAGE: Final = Path(__file__).parents[1] / "docs" / "suites.md"
MARKED: Final = re.compile(r"(<!-- benchmarks/suites.py -->\n).*(<!-- end -->)", re.DOTALL)
#: Title, metric, and the same of full precision's own answers.
TABLES: Final = (
    ("Agreement with full precision", "agreement", None),
    ("Same answer, token by token", "same_answer", None),
    ("Checks passed", "checks", "full_checks"),
    ("Valid tool calls, of the prompts that offer tools", "tool_call", "full_tool_call"),
    ("The same with constrained decoding", "constrained_tool_call", None),
)


def measure(bundle: str, work: Path, per_task: int | None) -> SuiteReport:
    """Export it, unless it is there, and run the suite."""
    target, recipe = bundle.split(":")
    out, progress = work / bundle.replace(":", "-"), StageLines()
    if not is_bundle(out):
        options = LowerOptions(max_context=CONTEXT)
        request = ExportRequest(model=MODEL, target=target, recipe=recipe, out=out, options=options)
        export_model(request, progress)
    suite = SuiteRequest(suite="on-device", per_task=per_task)
    [subject] = evaluate(EvalRequest(subjects=(str(out),), suite=suite), progress).subjects
    progress.finish()
    assert subject.suite is not None, "a suite was asked for"
    return subject.suite


def tables(names: Sequence[str], reports: Sequence[SuiteReport]) -> str:
    """One table a metric: a row for each group, a column for each bundle."""
    lines = []
    for title, own, full in TABLES:
        columns = [*(["full precision"] if full else []), *names]
        lines += [f"### {title}", "", f"| | prompts | {' | '.join(columns)} |"]
        lines.append("|---" * (2 + len(columns)) + "|")
        for groups in zip(*(report.groups for report in reports), strict=True):
            lines += _row(groups, own, full)
        lines.append("")
    return "\n".join(lines)


def _row(groups: Sequence[Group], own: str, full: str | None) -> list[str]:
    first = groups[0]
    if own not in first.metrics:
        return []
    found = [group.metrics[own] for group in groups]
    if full is not None:
        found.insert(0, first.metrics[full])
    has_interval = full is None and first.name is None
    cells = " | ".join(_cell(one, has_interval=has_interval) for one in found)
    return [f"| {first.name or 'all'} | {first.prompts} | {cells} |"]


def _cell(found: Estimate, *, has_interval: bool) -> str:
    value = f"{found.value:.1%}"
    if not has_interval or found.low is None or found.high is None:
        return value
    return f"{value} [{found.low:.1%}, {found.high:.1%}]"


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundles", nargs="*", default=BUNDLES, metavar="BUNDLE")
    parser.add_argument("--per-task", type=int, help="so many prompts of a task in a language")
    parser.add_argument("--work", type=Path, help="keep the bundles here")
    parser.add_argument("--json", type=Path, help="write the reports, answers included")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/suites.md")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = arguments.work or Path(folder)
        reports = [measure(bundle, work, arguments.per_task) for bundle in arguments.bundles]
    if arguments.json:
        named = zip(arguments.bundles, reports, strict=True)
        value = {name: report.to_json() for name, report in named}
        arguments.json.write_text(json.dumps(value, ensure_ascii=False, indent=2))
    text = tables(arguments.bundles, reports)
    print(text)
    if arguments.write:
        page = PAGE.read_text("utf-8")
        PAGE.write_text(MARKED.sub(rf"\g<1>\n{text}\n\g<2>", page), "utf-8")


if __name__ == "__main__":
    main()
