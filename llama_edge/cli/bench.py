"""`bench`: how fast bundles run, in the columns of Meta's own table."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
from llama_edge.core.errors import MissingComponentError, UsageError

if TYPE_CHECKING:
    from llama_edge.bench.bench import BenchReport, BenchRow, Spread


def bench(
    bundles: Annotated[list[Path], typer.Argument(help="Folders of bundles, timed in turns.")],
    *,
    prompt_tokens: Annotated[
        list[int] | None, typer.Option(help="Tokens of the prompt, 64 by default; repeatable.")
    ] = None,
    new_tokens: Annotated[
        int | None, typer.Option(help="Tokens decoded after it, 64 by default.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads of the runtime; by default one a processor.")
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(help="Readings after the warm-up, 5 by default.")
    ] = None,
    adb: Annotated[
        bool,
        typer.Option("--adb", help="Measure on the attached phone; not verified on a device."),
    ] = False,
    runner: Annotated[
        Path | None,
        typer.Option(help="With --adb: ExecuTorch's llama runner, built for the phone."),
    ] = None,
    public_key: Annotated[Path | None, PublicKeyOption] = None,
    as_json: Annotated[bool, JsonOption] = False,
) -> None:
    """Measure decode, time to first token, prefill, size and memory of bundles on this machine.

    Speeds are medians with lowest and highest. Compare within one run only: machines differ, and
    so do hours on one machine. Bundles for Core ML run in an emulation here and have no speed.
    """
    from llama_edge.bench.bench import (
        DEFAULT_NEW_TOKENS,
        DEFAULT_PROMPT_TOKENS,
        DEFAULT_REPEATS,
        BenchRequest,
        bench_bundles,
        bench_on_phone,
    )

    request = BenchRequest(
        bundles=tuple(bundles),
        prompt_tokens=tuple(dict.fromkeys(prompt_tokens or [DEFAULT_PROMPT_TOKENS])),
        new_tokens=DEFAULT_NEW_TOKENS if new_tokens is None else new_tokens,
        threads=threads,
        repeats=DEFAULT_REPEATS if repeats is None else repeats,
        trust=trust_in(public_key),
    )
    with progress_on_stderr() as progress:
        if adb:
            report = bench_on_phone(request, _runner(runner), progress)
        elif runner is not None:
            raise UsageError("--runner names the phone's program: add --adb, or leave it out")
        else:
            report = bench_bundles(request, progress)
    if as_json:
        print_json(report.to_json())
    else:
        _show(report)


def _runner(path: Path | None) -> Path:
    if path is None:
        raise UsageError(
            "--adb needs --runner PATH: ExecuTorch's examples/models/llama runner, built for arm64"
        )
    if not path.is_file():
        raise MissingComponentError(f"--runner {path}: there is no such file")
    return path


def _spread(value: "Spread", digits: int) -> str:
    return f"{value.median:.{digits}f} ({value.lowest:.{digits}f}..{value.highest:.{digits}f})"


def _cells(row: "BenchRow") -> tuple[str, ...]:
    rss = "unknown" if row.rss_mib is None else f"{row.rss_mib:.0f}"
    share = "" if row.bandwidth_share is None else f"{100 * row.bandwidth_share:.0f} %"
    energy = "no counter" if row.joules_per_token is None else f"{row.joules_per_token:.3f}"
    return (
        row.bundle,
        str(row.prompt_tokens),
        _spread(row.decode_tokens_per_s, 1),
        _spread(row.time_to_first_token_s, 3),
        _spread(row.prefill_tokens_per_s, 0),
        f"{row.file_mib:.1f}",
        rss,
        share,
        energy,
    )


def _show(report: "BenchReport") -> None:
    header = (
        "bundle",
        "prompt",
        "decode tok/s",
        "first token s",
        "prefill tok/s",
        "file MiB",
        "RSS MiB",
        "bandwidth",
        "J/token",
    )
    print_table("", header, [_cells(row) for row in report.rows])
    for runtime in dict.fromkeys(row.runtime for row in report.rows):
        say(f"runtime: {runtime}")
    threads = report.rows[0].threads
    say(f"threads: {'as the runner chooses' if threads is None else threads}")
    for row in report.rows:
        if row.rss_before_load_mib is not None:
            before = f"{row.rss_before_load_mib:.0f} MiB"
            say(f"RSS of {row.bundle}: {before} of it before the artifact was opened")
    if report.memory_bandwidth_gb_per_s is not None:
        say(
            f"bandwidth: share of {report.memory_bandwidth_gb_per_s:.1f} GB/s, as these threads "
            "read memory before the runs"
        )
