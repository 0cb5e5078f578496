"""Putting `report.html` into a bundle, and making it again."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from llama_edge.core.errors import ArtifactError
from llama_edge.core.files import file_sha256, read_json_object, write_text
from llama_edge.core.manifest import FileEntry, Manifest
from llama_edge.export.bundle import (
    MAX_MANIFEST_BYTES,
    PARITY_FILE,
    read_manifest,
    write_manifest,
)
from llama_edge.pipeline.report.page import render_page

REPORT_FILE: Final = "report.html"


def with_report(folder: Path, manifest: Manifest, parity: dict[str, Any]) -> Manifest:
    """Write `report.html` into `folder`; the manifest that also lists it."""
    path = folder / REPORT_FILE
    write_text(path, render_page(_without(manifest), parity))
    entry = FileEntry(path=REPORT_FILE, size_bytes=path.stat().st_size, sha256=file_sha256(path))
    return replace(manifest, files=(*_without(manifest).files, entry))


def _without(manifest: Manifest) -> Manifest:
    """The page is made from what does not depend on it."""
    return replace(
        manifest, files=tuple(file for file in manifest.files if file.path != REPORT_FILE)
    )


def rebuild_report(folder: Path, out: Path | None = None) -> Path:
    """Make the page again from `manifest.json` and `parity.json`.

    Args:
        folder: The bundle.
        out: Where to; None replaces the bundle's own, and its entry in the manifest if the bytes
            changed, as they do with another version of this program.

    Raises:
        ArtifactError: No bundle, or its `parity.json` is not the manifest's or not a gate's.
    """
    manifest = read_manifest(folder).manifest
    parity = _read_parity(folder, manifest)
    if out is not None:
        write_text(out, render_page(_without(manifest), parity))
        return out
    listed = with_report(folder, manifest, parity)
    if listed != manifest:
        write_manifest(folder, listed)
    return folder / REPORT_FILE


def _read_parity(folder: Path, manifest: Manifest) -> dict[str, Any]:
    path = folder / PARITY_FILE
    entry = next((file for file in manifest.files if file.path == PARITY_FILE), None)
    if entry is None or not path.is_file():
        raise ArtifactError(f"{path}: is missing; run `llama-edge export` again")
    if path.stat().st_size > MAX_MANIFEST_BYTES or file_sha256(path) != entry.sha256:
        raise ArtifactError(
            f"{path}: is not the file that the manifest lists; the page would tell of another "
            "bundle: copy or export it again"
        )
    return read_json_object(path)
