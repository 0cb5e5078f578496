"""Android's debug bridge: the one phone that is meant, and commands on it.

`adb shell` joins its arguments with spaces and gives them to the phone's shell: each of ours is
quoted, whoever chose it.
"""

import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from llama_edge.core.errors import MissingComponentError, OutputError, UsageError

#: A question to adb; a copy of gigabytes has no limit.
QUESTION_S: Final = 30.0
_SHOWN_BYTES: Final = 2000


class Adb:
    """A connection to one phone.

    Args:
        serial: As `adb devices` names it; None takes the environment's ANDROID_SERIAL, or the only
            phone that is ready.

    Raises:
        MissingComponentError: adb is not installed, or that phone is not ready.
        UsageError: Several phones are connected and none was named.
        OutputError: adb fails.
    """

    def __init__(self, serial: str | None = None) -> None:
        self._program = shutil.which("adb") or ""
        if not self._program:
            raise MissingComponentError(
                "adb is not on the PATH; it comes with Android Studio's platform tools, and on "
                "Debian: apt-get install adb"
            )
        self.serial = ""
        self.serial = self._choose(serial or os.environ.get("ANDROID_SERIAL") or None)

    def _choose(self, serial: str | None) -> str:
        lines = self.run(["devices"], "list the phones", QUESTION_S).splitlines()[1:]
        states = dict(line.split("\t", 1) for line in lines if "\t" in line)
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
                f"no phone is ready{f' ({waiting})' if waiting else ''}; connect one by USB, "
                "switch on USB debugging and allow this computer on its screen"
            )
        if len(ready) > 1:
            raise UsageError(
                f"{len(ready)} phones are connected: {', '.join(ready)}; choose one with --serial "
                "or the environment variable ANDROID_SERIAL"
            )
        return ready[0]

    @property
    def model(self) -> str:
        """What the phone calls itself."""
        name = self.shell(["getprop", "ro.product.model"], "ask its name", QUESTION_S).strip()
        return name or self.serial

    def push(self, source: Path, target: str, what: str) -> None:
        """Copy a file onto the phone.

        Raises:
            OutputError: adb refuses, or the phone is full.
        """
        self.run(["push", str(source), target], what)

    def shell(self, words: Sequence[str], what: str, limit_s: float | None = None) -> str:
        """What a command on the phone prints.

        Raises:
            OutputError: It fails, or takes longer than `limit_s`.
        """
        return self.run(["shell", *map(shlex.quote, words)], what, limit_s)

    def run(self, arguments: Sequence[str], what: str, limit_s: float | None = None) -> str:
        """What adb prints.

        Raises:
            OutputError: It fails, or takes longer than `limit_s`.
        """
        chosen = ["-s", self.serial] if self.serial else []
        try:
            done = subprocess.run(
                [self._program, *chosen, *arguments],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=limit_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise OutputError(
                f"adb could not {what} within {limit_s:g} s; is the phone asleep? Unplug and retry"
            ) from error
        if done.returncode:
            reason = (done.stderr or done.stdout).strip()[-_SHOWN_BYTES:] or "no reason given"
            raise OutputError(f"adb could not {what}: {reason} (exit code {done.returncode})")
        return done.stdout
