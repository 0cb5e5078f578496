"""Putting `report.html` into a bundle, and making it again."""

import hashlib
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from llama_edge.bundle.folder import (
    MAX_MANIFEST_BYTES,
    PARITY_FILE,
    read_manifest,
    write_manifest,
)
from llama_edge.bundle.manifest import FileEntry, Manifest
from llama_edge.bundle.signing import NO_KEY, Trust
from llama_edge.core.errors import ArtifactError, OutputError
from llama_edge.core.files import explained, write_bytes, write_new
from llama_edge.core.json_files import parse_json_object
from llama_edge.core.regular import open_regular, read_regular, real_path
from llama_edge.report.page import GENERATOR, render_page

REPORT_FILE: Final = "report.html"
#: The page says near its beginning who made it.
_HEAD_BYTES: Final = 1024


def with_report(folder: Path, manifest: Manifest, parity: dict[str, Any]) -> Manifest:
    """Write `report.html` into `folder`; the manifest that also lists it."""
    page = render_page(_without(manifest), parity).encode()
    write_bytes(folder / REPORT_FILE, page)
    sha256 = hashlib.sha256(page).hexdigest()
    entry = FileEntry(path=REPORT_FILE, size_bytes=len(page), sha256=sha256)
    return replace(manifest, files=(*_without(manifest).files, entry))


def _without(manifest: Manifest) -> Manifest:
    """The page is made from what does not depend on it."""
    return replace(
        manifest, files=tuple(file for file in manifest.files if file.path != REPORT_FILE)
    )


def rebuild_report(folder: Path, out: Path | None = None, trust: Trust = NO_KEY) -> Path:
    """Make the page again from `manifest.json` and `parity.json`.

    Args:
        folder: The bundle.
        out: Where to; None replaces the bundle's own, and its entry in the manifest if the bytes
            changed, as they do with another version of this program.
        trust: Whose signature the bundle must have.

    Raises:
        ArtifactError: No bundle, or its `parity.json` is not the manifest's or not a gate's.
        CheckFailedError: The bundle has a file that its manifest does not list, or not the
            signature that `trust` demands.
        OutputError: `out` is something else than a report of llama-edge.
    """
    manifest = read_manifest(folder, trust).manifest
    parity = _read_parity(folder, manifest)
    if out is not None:
        is_taken = _is_own(out, folder)
        page = render_page(_without(manifest), parity).encode()
        with explained(out):
            (write_bytes if is_taken else write_new)(out, page)
        return out
    with explained(folder / REPORT_FILE):
        listed = with_report(folder, manifest, parity)
        if listed != manifest:
            write_manifest(folder, listed)
    return folder / REPORT_FILE


def _is_own(out: Path, folder: Path) -> bool:
    """Whether there is a page that `render_page` made; nothing else is replaced."""
    if real_path(out).is_relative_to(real_path(folder)):
        raise OutputError(
            f"{out}: is in the bundle, whose manifest would not list it; name a place outside, or "
            "leave out --out"
        )
    try:
        is_file = stat.S_ISREG(out.lstat().st_mode)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise OutputError(f"{out}: cannot be written: {error.strerror}") from error
    if is_file:
        with open_regular(out, OutputError, follow_links=False) as stream:
            is_file = GENERATOR.encode() in stream.read(_HEAD_BYTES)
    if not is_file:
        raise OutputError(
            f"{out}: exists already and is no report of llama-edge, so it is not replaced; name "
            "another --out"
        )
    return True


def _read_parity(folder: Path, manifest: Manifest) -> dict[str, Any]:
    path = folder / PARITY_FILE
    entry = next((file for file in manifest.files if file.path == PARITY_FILE), None)
    if entry is None:
        raise ArtifactError(f"{path}: is missing; run `llama-edge export` again")
    data = read_regular(path, MAX_MANIFEST_BYTES, follow_links=False)
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise ArtifactError(
            f"{path}: is not the file that the manifest lists; the page would tell of another "
            "bundle: copy or export it again"
        )
    return parse_json_object(data, str(path))
