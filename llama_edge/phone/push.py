"""A bundle to a phone over adb: checked as the app will check it, copied, and compared by size."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llama_edge.bundle.app_check import AppTarget, check_for_app
from llama_edge.bundle.folder import open_bundle
from llama_edge.bundle.manifest import MANIFEST_FILE, SIGNATURE_FILE
from llama_edge.bundle.signing import NO_KEY, Trust
from llama_edge.core.errors import CheckFailedError, UsageError
from llama_edge.core.regular import real_path
from llama_edge.phone.adb import QUESTION_S, Adb

#: The demo app's own folder on the shared storage, which needs no permission to read.
DEFAULT_PLACE: Final = "/sdcard/Android/data/org.llamaedge.demo/files/bundles"
ANDROID_APP: Final = AppTarget(target="android", backend="executorch")
#: What a folder on the phone may be called.
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """What is on the phone now."""

    serial: str
    place: str
    files: int
    size_bytes: int


def push_bundle(
    folder: Path,
    *,
    serial: str | None = None,
    place: str = DEFAULT_PLACE,
    name: str | None = None,
    trust: Trust = NO_KEY,
) -> Pushed:
    """Copy a bundle that the Android app would load, the manifest last.

    Without its manifest a folder is no bundle, so a copy that stops early is never taken for one.

    Raises:
        CheckFailedError: The app would refuse the bundle, its signature is not the one that `trust`
            demands, a file was changed meanwhile, or a copy has another size.
        MissingComponentError: adb is not installed, or no phone is connected.
        OutputError: adb could not copy.
        UsageError: More than one phone is connected and none was named, or the name is no folder's.
    """
    findings = check_for_app(folder, [ANDROID_APP], trust.key)
    if findings:
        raise CheckFailedError(
            f"{folder}: the app would refuse it: {findings[0].code}: {findings[0].message}"
        )
    name = real_path(folder).name if name is None else name
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is no plain name for a folder on the phone: letters, digits and ._- alone, "
            "the first neither . nor -; give another with --name"
        )
    adb = Adb(serial)
    target = f"{place.rstrip('/')}/{name}"
    bundle = open_bundle(folder, trust)
    files = [entry.path for entry in bundle.manifest.files]
    if (folder / SIGNATURE_FILE).is_file():
        files.append(SIGNATURE_FILE)
    adb.shell(["rm", "-rf", target], "remove the old copy")
    for parent in sorted({str(Path(target, path).parent) for path in [*files, MANIFEST_FILE]}):
        adb.shell(["mkdir", "-p", parent], "create the folder")
    size_bytes = 0
    for path in [*files, MANIFEST_FILE]:
        adb.push(folder / path, f"{target}/{path}", f"copy {path}")
        size_bytes += _check_size(adb, folder / path, f"{target}/{path}")
    try:
        bundle.require_unchanged()
    except CheckFailedError:
        adb.shell(["rm", "-rf", target], "remove the copy")
        raise
    return Pushed(serial=adb.serial, place=target, files=len(files) + 1, size_bytes=size_bytes)


def _check_size(adb: Adb, source: Path, target: str) -> int:
    """Adb reports success for some copies that ran out of room."""
    size = source.stat().st_size
    answer = adb.shell(["stat", "-c", "%s", target], "measure", QUESTION_S)
    if answer.strip() != str(size):
        raise CheckFailedError(
            f"{target}: has {answer.strip()[:40]!r} bytes on the phone and {size} here; free some "
            "space on the phone and push again"
        )
    return size
