"""A phone on a cable: the artifact and ExecuTorch's stock runner are pushed, its report is read.

Source of the report: `extension/llm/runner/stats.h` in ExecuTorch; of the runner's options:
`examples/models/llama/main.cpp`. Not verified on a device.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from llama_edge.core.errors import MissingComponentError, SessionError, UsageError

#: Where `adb shell` may write and execute.
DEVICE_FOLDER: Final = "/data/local/tmp/llama-edge"
_RUNNER: Final = "llama_runner"
_TIMEOUT_S: Final = 1800.0
_REPORT: Final = re.compile(r"PyTorchObserver (\{.*\})")
#: The runner logs its resident memory twice; 0 where it cannot know.
_RSS: Final = re.compile(r"RSS after finishing text generation: ([0-9.]+) MiB")
_SHOWN_BYTES: Final = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerReport:
    """One run of the stock runner, by its own clock (milliseconds)."""

    prompt_tokens: int
    new_tokens: int
    first_token_s: float
    prefill_s: float
    decode_s: float
    #: None where the runner does not say
    rss_mib: float | None


def parse_report(output: str) -> RunnerReport:
    """Read what the runner printed.

    Raises:
        SessionError: There is no report, or it makes no sense.
    """
    found = _REPORT.search(output)
    try:
        report: dict[str, Any] = json.loads(found.group(1)) if found else {}
        start, prefilled = report["inference_start_ms"], report["prompt_eval_end_ms"]
        rss = _RSS.search(output)
        result = RunnerReport(
            prompt_tokens=int(report["prompt_tokens"]),
            new_tokens=int(report["generated_tokens"]),
            first_token_s=(report["first_token_ms"] - start) / 1000,
            prefill_s=(prefilled - start) / 1000,
            decode_s=(report["inference_end_ms"] - prefilled) / 1000,
            rss_mib=float(rss.group(1)) or None if rss else None,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise SessionError(
            "the runner on the phone printed no report that can be read (a line PyTorchObserver "
            f"with JSON); its last output:\n{output[-_SHOWN_BYTES:]}"
        ) from error
    if min(result.prompt_tokens, result.new_tokens, result.prefill_s, result.decode_s) <= 0:
        raise SessionError(
            f"the runner on the phone reports {result}; every number must be above 0: ask for "
            "more tokens"
        )
    return result


class Phone:
    """The one attached device."""

    def __init__(self) -> None:
        """Find it.

        Raises:
            MissingComponentError: No `adb`, or no device that it may use.
            UsageError: Several devices, and none chosen.
        """
        self._adb = shutil.which("adb") or ""
        if not self._adb:
            raise MissingComponentError(
                "--adb: the program adb is not on the PATH; install Android's platform tools"
            )
        lines = self._run(["devices"]).splitlines()[1:]
        states = dict(line.split("\t", 1) for line in lines if "\t" in line)
        ready = [serial for serial, state in states.items() if state == "device"]
        if not ready:
            seen = ", ".join(f"{serial} is {state}" for serial, state in states.items())
            raise MissingComponentError(
                f"--adb: no phone is ready ({seen or 'none is attached'}); attach one, switch on "
                "USB debugging and allow this computer"
            )
        if len(ready) > 1 and os.environ.get("ANDROID_SERIAL") not in ready:
            raise UsageError(
                f"--adb: {len(ready)} phones are attached ({', '.join(ready)}); choose one with "
                "the environment variable ANDROID_SERIAL"
            )
        self.name = self._run(["shell", "getprop ro.product.model"]).strip() or ready[0]

    def _run(self, arguments: Sequence[str]) -> str:
        try:
            done = subprocess.run(
                [self._adb, *arguments],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise SessionError(
                f"adb {arguments[0]} did not end within {_TIMEOUT_S:g} s; is the phone asleep?"
            ) from error
        output = done.stdout + done.stderr
        if done.returncode:
            raise SessionError(
                f"adb {arguments[0]} ended with exit code {done.returncode}:\n"
                f"{output[-_SHOWN_BYTES:]}"
            )
        return output

    def push(self, runner: Path, model: Path, tokenizer: Path) -> None:
        """Put the runner and a bundle's files in place.

        Raises:
            SessionError: adb refuses, or the phone is full.
        """
        self._run(["shell", f"mkdir -p {DEVICE_FOLDER}"])
        for file, name in ((runner, _RUNNER), (model, "model.pte"), (tokenizer, "tokenizer.json")):
            self._run(["push", str(file), f"{DEVICE_FOLDER}/{name}"])
        self._run(["shell", f"chmod 755 {DEVICE_FOLDER}/{_RUNNER}"])

    def measure(self, prompt_tokens: int, new_tokens: int, threads: int | None) -> RunnerReport:
        """One run, after a warm-up of the runner's own; the prompt is one short word repeated.

        Raises:
            SessionError: The runner fails or prints no report.
        """
        options = [
            "--model_path=model.pte",
            "--tokenizer_path=tokenizer.json",
            f"--prompt='{' '.join(['the'] * prompt_tokens)}'",
            f"--seq_len={prompt_tokens + new_tokens}",
            "--temperature=0",
            "--warmup",
        ]
        if threads is not None:
            options.append(f"--cpu_threads={threads}")
        command = f"cd {DEVICE_FOLDER} && ./{_RUNNER} {' '.join(options)}"
        return parse_report(self._run(["shell", command]))

    def clean(self) -> None:
        """Take everything away again."""
        self._run(["shell", f"rm -rf {DEVICE_FOLDER}"])
