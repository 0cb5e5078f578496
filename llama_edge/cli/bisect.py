"""`bisect`: where an artifact leaves its reference."""

import shlex
from pathlib import Path
from typing import Annotated

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


def bisect(
    bundle: Annotated[Path, typer.Argument(help="A bundle's folder, whole or damaged.")],
    *,
    against: Annotated[
        str | None,
        typer.Option(
            help="What is right: a full-precision MODEL, or another bundle or quantized "
            "checkpoint of the same quantized values; by default the built-in model that it "
            "came from."
        ),
    ] = None,
    revision: Revision = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Where to write bisect.json, layers.png and repro/; bisect/BUNDLE."),
    ] = None,
    force: Annotated[bool, typer.Option(help="Replace an existing folder.")] = False,
    public_key: Annotated[Path | None, PublicKeyOption] = None,
    as_json: Annotated[bool, JsonOption] = False,
) -> None:
    """Name the first layer and operator at which an artifact is wrong, and write it down alone.

    Codes and scales are compared with the manifest's hashes (or the other's codes), and each
    operator against what its own input and weights make of it, so that nothing adds up: activation
    codes that fall the other way on a rounding boundary are undone first. Exit code 1: something
    is wrong.
    """
    from llama_edge.core.files import output_folder, require_place
    from llama_edge.core.regular import real_path
    from llama_edge.debug.bisect import bisect as search
    from llama_edge.debug.bisect_repro import bisection_json, write_bisection

    (against,) = all_revised((against,), revision)
    place = out or Path("bisect") / real_path(bundle).name
    require_place(place, force=force)
    with progress_on_stderr() as progress:
        found = search(bundle, against, progress, trust_in(public_key))
    with output_folder(place, force=force) as folder:
        write_bisection(found, folder)
    value = bisection_json(found)
    if as_json:
        print_json({**value, "folder": str(place)})
    else:
        _print(bundle, place, value)
    if not found.passed:
        raise typer.Exit(1)


def _print(bundle: Path, place: Path, value: dict) -> None:  # type: ignore[type-arg]
    against = value["against"]
    header = ["layer", "lowest operator", "its SNR (dB)", "rounding flips"]
    rows = [
        [
            str(row["layer"]),
            row["lowest_operator"],
            f"{row['operator_snr_db']:.1f}",
            str(row["rounding_flips"]),
            *([] if against is None else [_decibels(row["stream_snr_db"])]),
        ]
        for row in value["layers"]
    ]
    if against is not None:
        aligned = ", up to a rotation" if value["streams_aligned_by_a_rotation"] else ""
        header.append(f"stream against {against}{aligned} (dB)")
    print_table("", header, rows)
    first = value["first"]
    if first is None:
        say("nothing is wrong: every code is right, and every operator on its own input")
    else:
        say(f"first wrong: layer {first['layer']}, {first['operator']}: {first['message']}")
        others = sum(len(value[kind]) for kind in ("weights", "constants", "graph")) - 1
        if others:
            say(f"{others} more findings in {place / 'bisect.json'}")
        script = place / "repro" / "repro.py"
        if script.is_file():
            say(f"next: python {shlex.quote(str(script))}")
    say(f"{bundle}: chart in {place / 'layers.png'}")


def _decibels(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
