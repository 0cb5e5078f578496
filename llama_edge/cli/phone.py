"""`push` and `serve`: a bundle to a phone, and a bundle for a program in another language."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from llama_edge.cli.console import (
    JsonOption,
    PublicKeyOption,
    RuntimeOption,
    print_json,
    say,
    trust_in,
)


def push(
    bundle: Annotated[Path, typer.Argument(help="A bundle's folder, exported for android.")],
    *,
    serial: Annotated[
        str | None, typer.Option(help="Which phone, as `adb devices` names it.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The folder's name on the phone; by default its name here.")
    ] = None,
    public_key: Annotated[Path | None, PublicKeyOption] = None,
    as_json: Annotated[bool, JsonOption] = False,
) -> None:
    """Check a bundle as the demo app will, and copy it into the app's folder over adb."""
    from llama_edge.phone.push import push_bundle

    pushed = push_bundle(bundle, serial=serial, name=name, trust=trust_in(public_key))
    if as_json:
        print_json(asdict(pushed))
        return
    say(
        f"{pushed.files} files, {pushed.size_bytes / 2**20:.1f} MiB, now in {pushed.place} on "
        f"{pushed.serial}"
    )


def serve(
    bundle: Annotated[Path, typer.Argument(help="A bundle's folder.")],
    *,
    runtime: Annotated[str | None, RuntimeOption] = None,
    public_key: Annotated[Path | None, PublicKeyOption] = None,
) -> None:
    """Answer JSON lines on stdin with token ids on stdout, until `close` or the end of input.

    Requests: {"op": "open"}; {"op": "generate", "tokens": [...], "ends": [...]} with sampling and
    max_new_tokens where wanted; {"op": "cancel"}; {"op": "reset"}; {"op": "close"}. Replies:
    opened, token, done, reset or error; docs/apps.md has them in full.
    """
    from llama_edge.generate.bundle_model import BundleModel
    from llama_edge.generate.serve import serve as answer

    answer(BundleModel(bundle, runtime, trust_in(public_key)), sys.stdin.buffer, sys.stdout)
