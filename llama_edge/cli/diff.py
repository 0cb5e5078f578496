"""`diff`: contents of two artifacts, bundles or checkpoints."""

from pathlib import Path
from typing import Annotated, Final

import typer

from llama_edge.cli.console import (
    JsonOption,
    PublicKeyOption,
    print_json,
    print_table,
    progress_on_stderr,
    say,
    trust_in,
)
from llama_edge.cli.model import Revision, all_revised

_WHAT: Final = "A bundle, a .pte, .onnx folder or .mlpackage, a quantized checkpoint, or a MODEL."
#: Differences of one kind that the table shows; `--json` has them all.
_SHOWN: Final = 5


def diff(
    first: Annotated[str, typer.Argument(metavar="A", help=_WHAT)],
    second: Annotated[str, typer.Argument(metavar="B", help="Likewise, of any format.")],
    *,
    revision: Revision = None,
    public_key: Annotated[Path | None, PublicKeyOption] = None,
    as_json: Annotated[bool, JsonOption] = False,
) -> None:
    """Say what differs in the files: config, codes and scales, graph, tokenizer, template, size.

    `compare` shows what was measured of bundles side by side; this opens the files and holds their
    contents against each other. Exit code 1: something that computes or speaks differs. Recipe,
    metadata and size never count; graph and arithmetic count within one format alone, since two
    formats compute the same by other operators.
    """
    from llama_edge.debug.diff import diff as hold

    one, two = map(str, all_revised((first, second), revision))
    with progress_on_stderr() as progress:
        report = hold(one, two, progress, trust_in(public_key))
    if as_json:
        print_json(report.to_json())
    else:
        rows = []
        for section in report.sections:
            count = len(section.differences)
            verdict = "equal" if not count else f"{count} differ"
            verdict = verdict if section.compared else "not compared: not in both"
            verdict += "" if section.matters or not count else " (does not count)"
            note = f" ({section.note})" if section.note else ""
            rows.append((section.name, verdict + note))
            shown = section.differences[:_SHOWN]
            rows += [("", _line(item.what, item.first, item.second)) for item in shown]
            if count > _SHOWN:
                rows.append(("", f"and {count - _SHOWN} more: --json has them all"))
        say(f"A: {report.first}", f"B: {report.second}")
        print_table("", ("content", "found"), rows)
        say("equal" if report.equal else "different")
    if not report.equal:
        raise typer.Exit(1)


def _line(what: str, first: str | None, second: str | None) -> str:
    if first is None and second is not None and ("differ" in second):
        return f"{what}: {second}"
    return f"{what}: A {_cut(first)}, B {_cut(second)}"


def _cut(value: str | None) -> str:
    if value is None:
        return "has none"
    return value if len(value) <= 120 else f"{value[:117]}..."
