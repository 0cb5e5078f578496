"""ExecuTorch's stock runner on a phone: it is pushed with the artifact, and its report is read.

Source of the report: `extension/llm/runner/stats.h` in ExecuTorch; of the runner's options:
`examples/models/llama/main.cpp`. Not verified on a device.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from llama_edge.core.errors import SessionError
from llama_edge.phone.adb import QUESTION_S, Adb

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


class PhoneRunner:
    """The stock runner on the one phone that is meant."""

    def __init__(self) -> None:
        """Find the phone; raises what `Adb` does."""
        self._adb = Adb()
        self.name = self._adb.model

    def push(self, runner: Path, model: Path, tokenizer: Path) -> None:
        """Put the runner and a bundle's files in place.

        Raises:
            OutputError: adb refuses, or the phone is full.
        """
        self._adb.shell(["mkdir", "-p", DEVICE_FOLDER], "create the folder", QUESTION_S)
        for file, name in ((runner, _RUNNER), (model, "model.pte"), (tokenizer, "tokenizer.json")):
            self._adb.push(file, f"{DEVICE_FOLDER}/{name}", f"copy {name}")
        self._adb.shell(["chmod", "755", f"{DEVICE_FOLDER}/{_RUNNER}"], "allow it to run")

    def measure(self, prompt_tokens: int, new_tokens: int, threads: int | None) -> RunnerReport:
        """One run, after a warm-up of the runner's own; the prompt is one short word repeated.

        Raises:
            OutputError: The runner fails.
            SessionError: It prints no report.
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
        command = f"cd {DEVICE_FOLDER} && ./{_RUNNER} {' '.join(options)} 2>&1"
        # A command line of our own words for the phone's shell, not one word to be quoted.
        return parse_report(self._adb.run(["shell", command], "run the model", _TIMEOUT_S))

    def clean(self) -> None:
        """Take everything away again."""
        self._adb.shell(["rm", "-rf", DEVICE_FOLDER], "remove what was pushed")
