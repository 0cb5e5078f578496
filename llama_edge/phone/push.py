"""A bundle to a phone over adb: checked as the app will check it, copied, and compared by size.

`adb shell` joins its arguments with spaces and gives them to the phone's shell: each of ours is
quoted, whoever chose it.
"""

import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llama_edge.bundle.app_check import AppTarget, check_for_app
from llama_edge.bundle.folder import read_manifest
from llama_edge.bundle.manifest import MANIFEST_FILE, SIGNATURE_FILE
from llama_edge.bundle.signing import NO_KEY, Trust
from llama_edge.core.errors import (
    CheckFailedError,
    MissingComponentError,
    OutputError,
    UsageError,
)

#: The demo app's own folder on the shared storage, which needs no permission to read.
DEFAULT_PLACE: Final = "/sdcard/Android/data/org.llamaedge.demo/files/bundles"
ANDROID_APP: Final = AppTarget(target="android", backend="executorch")
#: What a folder on the phone may be called.
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
#: A question to adb; a copy of gigabytes has no limit.
_QUESTION_S: Final = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """What lies on the phone now."""

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
            demands, or a copy has another size.
        MissingComponentError: adb is not installed, or no phone is connected.
        OutputError: adb could not copy.
        UsageError: More than one phone is connected and none was named, or the name is no folder's.
    """
    findings = check_for_app(folder, [ANDROID_APP], trust.key)
    if findings:
        raise CheckFailedError(
            f"{folder}: the app would refuse it: {findings[0].code}: {findings[0].message}"
        )
    name = folder.resolve().name if name is None else name
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is no plain name for a folder on the phone: letters, digits and ._- alone, "
            "the first neither . nor -; give another with --name"
        )
    adb = _adb()
    device = _device(adb, serial)
    target = f"{place.rstrip('/')}/{name}"
    command = [adb, "-s", device]
    files = [entry.path for entry in read_manifest(folder, trust).manifest.files]
    if (folder / SIGNATURE_FILE).is_file():
        files.append(SIGNATURE_FILE)
    _shell(command, ["rm", "-rf", target], "remove the old copy")
    for parent in sorted({str(Path(target, path).parent) for path in [*files, MANIFEST_FILE]}):
        _shell(command, ["mkdir", "-p", parent], "create the folder")
    size_bytes = 0
    for path in [*files, MANIFEST_FILE]:
        _run([*command, "push", str(folder / path), f"{target}/{path}"], f"copy {path}")
        size_bytes += _check_size(command, folder / path, f"{target}/{path}")
    return Pushed(serial=device, place=target, files=len(files) + 1, size_bytes=size_bytes)


def _adb() -> str:
    adb = shutil.which("adb")
    if adb is None:
        raise MissingComponentError(
            "adb is not installed; it comes with Android Studio's platform tools, and on Debian: "
            "apt-get install adb"
        )
    return adb


def _device(adb: str, serial: str | None) -> str:
    """The one phone that is meant."""
    lines = _run([adb, "devices"], "list the phones", limit_s=_QUESTION_S).splitlines()[1:]
    states = {line.split("\t")[0]: line.split("\t")[1] for line in lines if "\t" in line}
    ready = [name for name, state in states.items() if state == "device"]
    if serial is not None and serial not in ready:
        found = states.get(serial, "not connected")
        raise MissingComponentError(
            f"the phone {serial} is {found}; connect it, and allow USB debugging on its screen"
        )
    if serial is not None:
        return serial
    if not ready:
        waiting = "; ".join(f"{name} is {state}" for name, state in states.items())
        raise MissingComponentError(
            f"no phone is ready{f' ({waiting})' if waiting else ''}; connect one by USB, switch on "
            "USB debugging and allow this computer on its screen"
        )
    if len(ready) > 1:
        raise UsageError(f"{len(ready)} phones are connected: {', '.join(ready)}; give --serial")
    return ready[0]


def _check_size(command: Sequence[str], source: Path, target: str) -> int:
    """Adb reports success for some copies that ran out of room."""
    size = source.stat().st_size
    answer = _shell(command, ["stat", "-c", "%s", target], "measure", limit_s=_QUESTION_S)
    if answer.strip() != str(size):
        raise CheckFailedError(
            f"{target}: has {answer.strip()[:40]!r} bytes on the phone and {size} here; free some "
            "space on the phone and push again"
        )
    return size


def _shell(
    adb: Sequence[str], words: Sequence[str], what: str, limit_s: float | None = None
) -> str:
    return _run([*adb, "shell", *map(shlex.quote, words)], what, limit_s)


def _run(command: Sequence[str], what: str, limit_s: float | None = None) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=limit_s, check=False, errors="replace"
        )
    except subprocess.TimeoutExpired as error:
        raise OutputError(
            f"adb could not {what} within {limit_s:.0f} s; unplug and retry"
        ) from error
    if done.returncode != 0:
        reason = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no reason given"]
        raise OutputError(f"adb could not {what}: {reason[0][:200]}")
    return done.stdout
