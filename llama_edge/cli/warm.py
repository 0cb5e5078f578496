"""`warm`: the KV cache of a fixed system prompt, stored in the bundle."""

import shlex
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from llama_edge.cli.console import (
    JsonOption,
    PublicKeyOption,
    RuntimeOption,
    print_json,
    print_next,
    print_table,
    progress_on_stderr,
    say,
    trust_in,
)
from llama_edge.core.errors import TextError, UsageError
from llama_edge.core.regular import plain_newlines, read_regular_text


def warm(
    bundle: Annotated[Path, typer.Argument(help="A bundle's folder.")],
    *,
    system: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Text file of the system prompt; line ends at its end are not part of it.",
        ),
    ] = None,
    date: Annotated[
        datetime | None,
        typer.Option(
            formats=["%Y-%m-%d"],
            help="For a chat template that writes the current day: the day that it is told.",
        ),
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Take the state out again.")] = False,
    runtime: Annotated[str | None, RuntimeOption] = None,
    key: Annotated[
        Path | None,
        typer.Option(help="PEM file of the private key: sign the bundle again afterwards."),
    ] = None,
    public_key: Annotated[Path | None, PublicKeyOption] = None,
    as_json: Annotated[bool, JsonOption] = False,
) -> None:
    """Store the KV cache of a fixed system prompt in a bundle: it need not be read again.

    `run` and `chat` with this system prompt then read the question only. An earlier state is
    replaced. Nothing is stored that, restored, gives other logits than the prompt itself.
    """
    from llama_edge.cli.report import state_line
    from llama_edge.generate.warm import WarmRequest, remove_state, warm_bundle

    if remove is (system is not None):
        raise UsageError("give either --system FILE or --remove")
    trust = trust_in(public_key)
    with progress_on_stderr() as progress:
        if system is None:
            remove_state(bundle, key, progress, trust)
            if as_json:
                print_json({"bundle": str(bundle), "removed": True})
            else:
                say(f"{bundle}: the prompt state was removed")
            return
        request = WarmRequest(
            system=_read(system),
            day=None if date is None else date.date(),
            runtime=runtime,
            key=key,
        )
        warmed = warm_bundle(bundle, request, progress, trust)
    if as_json:
        print_json(
            {
                "bundle": str(bundle),
                "tokens": warmed.tokens,
                "size_bytes": warmed.size_bytes,
                "day": None if warmed.day is None else warmed.day.isoformat(),
                "check": warmed.report.to_json(),
            }
        )
        return
    rows = [
        ("prompt state", state_line(warmed.report)),
        ("runtime", warmed.report.runtime),
        ("size", f"{warmed.size_bytes / warmed.tokens / 2**10:.1f} KiB a token"),
    ]
    if warmed.day is not None:
        rows.append(("day", warmed.day.isoformat()))
    print_table("", ("warm", str(bundle)), rows)
    prompt = f'--system "$(cat {shlex.quote(str(system))})"'
    print_next(f"run {shlex.quote(str(bundle))} QUESTION {prompt}")


def _read(path: Path) -> str:
    from llama_edge.bundle.prompt_state import MAX_SYSTEM_BYTES

    text = read_regular_text(path, MAX_SYSTEM_BYTES, TextError)
    return plain_newlines(text).rstrip("\n")
