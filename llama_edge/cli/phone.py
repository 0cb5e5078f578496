"""`push`: a bundle to a phone."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from llama_edge.cli.console import (
    JsonOption,
    PublicKeyOption,
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
