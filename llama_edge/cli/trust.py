"""`doctor`, `keygen`, `sign` and `verify`: what a bundle is worth before it is run."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llama_edge.cli.console import (
    JsonOption,
    print_finding,
    print_json,
    print_next,
    progress_on_stderr,
    say,
)

if TYPE_CHECKING:
    from llama_edge.bundle.examination import Diagnosis


def doctor(
    path: Annotated[
        Path,
        typer.Argument(
            help="A bundle; or a folder of ONNX Runtime GenAI or Hugging Face, or with a .pte or "
            ".mlpackage and its tokenizer; or such a file."
        ),
    ],
    *,
    public_key: Annotated[
        Path | None, typer.Option(help="PEM file of the key that must have signed the bundle.")
    ] = None,
    as_json: Annotated[bool, JsonOption] = False,
) -> None:
    """Check the whole contract of a bundle in seconds: files, text, interface, codes.

    Each finding has a stable code, the place, what was expected and found, and the remedy. The
    model is read and not run: `parity` does that.
    """
    from llama_edge.bundle.doctor import diagnose

    with progress_on_stderr() as progress:
        diagnosis = diagnose(path, public_key, progress)
    if as_json:
        print_json(diagnosis.to_json())
    else:
        print_diagnosis(diagnosis)
    if not diagnosis.passed:
        raise typer.Exit(1)


def print_diagnosis(diagnosis: "Diagnosis") -> None:
    """The findings one below the other, or that there are none."""
    for finding in diagnosis.findings:
        print_finding(
            finding.code,
            finding.where,
            finding.what,
            f"expected  {finding.expected}",
            f"found     {finding.found}",
            f"remedy    {finding.remedy}",
        )
    say(*(f"note: {note}" for note in diagnosis.notes))
    count, checks = len(diagnosis.findings), len(diagnosis.checked)
    verdict = "nothing found" if diagnosis.passed else f"{count} found"
    say(f"{diagnosis.path}: {diagnosis.kind}, {checks} checks, {verdict}")


def keygen(
    key: Annotated[Path, typer.Argument(help="The private key's new file; KEY.pub is the public.")],
    *,
    as_json: Annotated[bool, JsonOption] = False,
) -> None:
    """Make an Ed25519 key pair for `sign`."""
    from llama_edge.bundle.signing import key_id, load_public_key, new_key

    public = new_key(key)
    identity = key_id(load_public_key(public))
    if as_json:
        print_json({"private_key": str(key), "public_key": str(public), "key_id": identity})
        return
    say(f"private key {key}: keep it secret; public key {public}: ship it", f"id {identity}")
    print_next(f"sign BUNDLE --key {shlex.quote(str(key))}")


def sign(
    bundle: Annotated[Path, typer.Argument(help="A bundle's folder.")],
    *,
    key: Annotated[Path, typer.Option(help="PEM file of the private key, from `keygen`.")],
    as_json: Annotated[bool, JsonOption] = False,
) -> None:
    """Sign a bundle: an Ed25519 signature of its manifest, which names every file's hash.

    Only a bundle in which `doctor` finds nothing is signed; signing again replaces the signature.
    """
    from llama_edge.bundle.sign import sign_bundle

    with progress_on_stderr() as progress:
        signature = sign_bundle(bundle, key, progress)
    if as_json:
        print_json({"bundle": str(bundle), "key_id": signature.key_id})
        return
    say(f"{bundle}: signed with the key {signature.key_id}")
    print_next(f"verify {shlex.quote(str(bundle))} --public-key {shlex.quote(f'{key}.pub')}")


def verify(
    bundle: Annotated[Path, typer.Argument(help="A bundle's folder.")],
    *,
    public_key: Annotated[Path, typer.Option(help="PEM file of the key that is trusted.")],
    as_json: Annotated[bool, JsonOption] = False,
) -> None:
    """Check a bundle's signature and that every file is what was signed."""
    from llama_edge.bundle.sign import verify_bundle

    diagnosis = verify_bundle(bundle, public_key)
    if as_json:
        print_json(diagnosis.to_json())
    else:
        print_diagnosis(diagnosis)
    if not diagnosis.passed:
        raise typer.Exit(1)
