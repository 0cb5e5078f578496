"""`parity`, `inspect` and `compare`: the commands that look at what has been written."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from llama_edge.cli.console import (
    JsonOption,
    PublicKeyOption,
    print_json,
    print_table,
    progress_on_stderr,
    trust_in,
)
from llama_edge.cli.model import Revision, all_revised


def parity(
    bundle: Annotated[Path, typer.Argument(help="A bundle's folder.")],
    *,
    against: Annotated[
        str | None,
        typer.Option(help="The full-precision MODEL; by default the built-in one it came from."),
    ] = None,
    revision: Revision = None,
    public_key: Annotated[Path | None, PublicKeyOption] = None,
    as_json: Annotated[bool, JsonOption] = False,
) -> None:
    """Hold a bundle against its manifest and run the whole gate again on the written files."""
    from llama_edge.cli.report import print_gate
    from llama_edge.gate.check_bundle import check_bundle

    (against,) = all_revised((against,), revision)
    with progress_on_stderr() as progress:
        outcome = check_bundle(bundle, against, progress, trust_in(public_key))
    if as_json:
        print_json(outcome.to_json())
    else:
        print_gate(bundle, outcome)
    if not outcome.passed:
        raise typer.Exit(1)


def inspect(
    path: Annotated[
        Path,
        typer.Argument(
            help="A quantized checkpoint, a .pte, an ONNX folder, a bundle, or a Meta folder with "
            "quantized values of its own."
        ),
    ],
    *,
    public_key: Annotated[Path | None, PublicKeyOption] = None,
    as_json: Annotated[bool, JsonOption] = False,
) -> None:
    """Print a SHA-256 of all codes and scales read back out of a file, and what its bytes are."""
    from llama_edge.debug.inspect import inspect as look_into

    with progress_on_stderr() as progress:
        found = look_into(path, progress, trust_in(public_key))
    if as_json:
        print_json(
            {
                "kind": found.kind,
                "tensors": [asdict(tensor) for tensor in found.tensors],
                "interface": None if found.interface is None else asdict(found.interface),
                "placement": None if found.placement is None else asdict(found.placement),
                "storage": None if found.storage is None else [asdict(s) for s in found.storage],
            }
        )
        return
    rows = [
        (
            tensor.name,
            " x ".join(map(str, tensor.shape)),
            str(tensor.bits),
            str(tensor.group_size),
            tensor.codes_sha256[:12],
            tensor.scales_sha256[:12],
        )
        for tensor in found.tensors
    ]
    print_table(found.kind, ("tensor", "shape", "bits", "group", "codes", "scales"), rows)
    if found.storage is None:
        return
    parts = [(one.what, one.dtype, str(one.size_bytes), one.why) for one in found.storage]
    total = sum(one.size_bytes for one in found.storage)
    parts.append(("together", "", str(total), ""))
    print_table("", ("bytes of", "stored as", "bytes", "why so"), parts)


def compare(
    bundles: Annotated[list[Path], typer.Argument(help="One or more bundles.")],
    *,
    public_key: Annotated[Path | None, PublicKeyOption] = None,
    as_json: Annotated[bool, JsonOption] = False,
) -> None:
    """Show bundles side by side, and whether they hold the same quantized values."""
    from llama_edge.bundle.folder import open_bundle
    from llama_edge.cli.report import print_bundles

    trust = trust_in(public_key)
    opened = [open_bundle(path, trust) for path in bundles]
    if as_json:
        manifests = [bundle.manifest for bundle in opened]
        print_json(
            {
                "bundles": [manifest.to_json() for manifest in manifests],
                "same_codes": len({manifest.tensors for manifest in manifests}) == 1,
            }
        )
        return
    print_bundles(opened)


def report(
    bundle: Annotated[Path, typer.Argument(help="A bundle's folder.")],
    *,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Another file, new or an earlier report; by default the bundle's own report.html "
            "is replaced."
        ),
    ] = None,
    public_key: Annotated[Path | None, PublicKeyOption] = None,
    as_json: Annotated[bool, JsonOption] = False,
) -> None:
    """Make a bundle's report.html again from its manifest.json and parity.json."""
    from llama_edge.report.write import rebuild_report

    path = rebuild_report(bundle, out, trust_in(public_key))
    size_bytes = path.stat().st_size
    if as_json:
        print_json({"report": str(path), "size_bytes": size_bytes})
        return
    print_table("", ("report", str(path)), [("size", f"{size_bytes / 2**10:.0f} KiB")])
