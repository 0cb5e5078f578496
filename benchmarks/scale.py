"""Exports of the real sizes, stage by stage: CPU and wall time, peak memory, and what comes out.

    llama-edge synth MODELS/1b --like llama-3.2-1b
    llama-edge synth MODELS/3b --like llama-3.2-3b
    llama-edge synth MODELS/guard --like llama-guard-3-1b
    python benchmarks/scale.py MODELS/1b MODELS/3b MODELS/guard [--targets android onnx ios]
        [--recipe NAME] [--json FILE]

The weights are random, so quality means nothing; sizes, time and memory are those of the model.
`synth --tokenizer tokenizer.model` takes Meta's own tokenizer, `--layers` fewer layers; a model of
one layer needs `--all-prompts`, because a single rounding decides about its mean over few
positions. The recipe rounds to nearest, or is the one that is named; what it caches is not used
again. Each export runs in a process of its own and goes the whole
way: quantize, lower, read every code back, and graph parity and fidelity on one prompt of 16 tokens
with 8 decoded ones, or with `--all-prompts` on all that every export runs, on the file as written.
Peak memory is resident memory, mapped files included, of the program in each stage, and of the
process that runs the artifact. `--json` keeps the rows and adds to those that are there, so that
exports can run one by one; without models it prints what is kept.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from llama_edge.backends import TARGETS
from llama_edge.bundle.folder import PARITY_FILE
from llama_edge.core.errors import CheckFailedError
from llama_edge.core.progress import SilentProgress, Steps
from llama_edge.gate.prompts import ALL_PROMPTS, PromptPlan
from llama_edge.pipeline.export import ExportRequest, export_model

DEFAULT: Final = "w4a8-rtn"
PROMPTS: Final = PromptPlan(gate=1, fidelity=1, max_prompt_tokens=16, decode_steps=8)
#: Meta's own `.pte` of the same bits (Llama 3.2 model card), MiB.
PUBLISHED_MIB: Final = {"1b": 1083, "3b": 2435}
_SAMPLE_S: Final = 0.05
#: Stages as the program names them, by what they belong to.
#: What a stage's name begins with; the rest is the gate's.
_GROUPS: Final = {
    "write calibration text": "calibration text",
    "measure sensitivity": "sensitivity",
    "quantize": "quantize",
    "lower": "lower",
    "write": "lower",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage of one export."""

    name: str
    cpu_s: float
    wall_s: float
    #: of the program itself while the stage ran
    peak_mib: float
    #: of the process that runs the artifact, up to the end of the stage
    runtime_peak_mib: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """One model for one target."""

    model: str
    target: str
    recipe: str
    stages: tuple[Stage, ...]
    #: children included
    cpu_s: float
    wall_s: float
    artifact_mib: float
    passed: bool
    reason: str | None
    blocks: int
    worst_severity: float
    parity_kl: float
    positions: int


def _status_mib(pid: int | str, key: str) -> float:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # it has just ended
        return 0.0
    return int(text.split(f"{key}:")[1].split()[0]) / 1024 if f"{key}:" in text else 0.0


def _runs_artifact(pid: int) -> bool:
    """Other children are short-lived tools, and for a moment copies of this process."""
    try:
        return b"child_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _cpu_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / 100


@dataclass(slots=True)
class Watch(SilentProgress):
    """`Progress` that takes the time and the memory of each stage."""

    stages: list[Stage] = field(default_factory=list)
    _name: str = "open the checkpoint"
    _began: tuple[float, float] = (0.0, 0.0)
    _children: dict[int, tuple[float, float]] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)

    def begin(self) -> threading.Thread:
        """Sample the children's memory and CPU time until `end`."""
        self._began = self._now()
        thread = threading.Thread(target=self._sample, daemon=True)
        thread.start()
        return thread

    def end(self, thread: threading.Thread) -> None:
        """The last stage is over."""
        self.start("", 0)
        self._stop.set()
        thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(_SAMPLE_S):
            for tasks in Path("/proc/self/task").glob("*/children"):
                for pid in map(int, tasks.read_text().split()):
                    if not _runs_artifact(pid):
                        continue
                    found = _cpu_s(pid), _status_mib(pid, "VmHWM")
                    before = self._children.get(pid, (0.0, 0.0))
                    self._children[pid] = max(found[0], before[0]), max(found[1], before[1])

    def _now(self) -> tuple[float, float]:
        return time.process_time() + sum(cpu for cpu, _ in self._children.values()), time.time()

    def start(self, stage: str, steps: Steps, done: int = 0) -> None:
        """See `Progress`: the one before has ended."""
        now = self._now()
        peaks = [peak for _, peak in self._children.values()]
        self.stages.append(
            Stage(
                name=self._name,
                cpu_s=now[0] - self._began[0],
                wall_s=now[1] - self._began[1],
                peak_mib=_status_mib("self", "VmHWM"),
                runtime_peak_mib=max(peaks, default=0.0),
            )
        )
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        self._name, self._began = stage, now

    def advance(self, steps: int = 1) -> None:
        """See `Progress`."""

    def remark(self, text: str) -> None:
        """See `Progress`."""


def export(model: Path, target: str, recipe: str, scratch: Path, prompts: PromptPlan) -> Export:
    """Export in this process."""
    watch, began = Watch(), time.time()
    thread = watch.begin()
    out = scratch / "bundle"
    request = ExportRequest(
        model=str(model), target=target, recipe=recipe, out=out, prompts=prompts
    )
    try:
        export_model(request, watch)
        reason = None
    except CheckFailedError as error:
        out, reason = out.with_name(f"{out.name}.failed"), str(error)
    watch.end(thread)
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    files = [file for file in out.rglob("*") if file.is_file() and file.suffix != ".json"]
    manifest = json.loads((out / "manifest.json").read_text())
    parity = json.loads((out / PARITY_FILE).read_text())["parity"]
    blocks = manifest["parity"].get("blocks", {})
    return Export(
        model=model.name,
        target=target,
        recipe=recipe,
        stages=tuple(watch.stages),
        cpu_s=sum(entry.ru_utime + entry.ru_stime for entry in used),
        wall_s=time.time() - began,
        artifact_mib=sum(file.stat().st_size for file in files) / 2**20,
        passed=bool(parity and parity["passed"]),
        reason=reason,
        blocks=blocks.get("count", 0),
        worst_severity=blocks.get("severity", 0.0),
        parity_kl=manifest["parity"].get("mean_kl", 0.0),
        positions=manifest["parity"].get("positions", 0),
    )


def export_in_child(model: Path, target: str, recipe: str, *, whole: bool) -> dict[str, object]:
    """`export` in a process of its own, with a cache of its own; its bundle is removed."""
    with tempfile.TemporaryDirectory(dir=model.parent) as scratch:
        command = [sys.executable, __file__, str(model), "--recipe", recipe]
        command += ["--child", target, scratch, *(["--all-prompts"] if whole else [])]
        environment = {**os.environ, "LLAMA_EDGE_CACHE": str(Path(scratch, "cache"))}
        output = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, env=environment
        ).stdout
        shutil.rmtree(scratch, ignore_errors=True)
    found: dict[str, object] = json.loads(output.splitlines()[-1])
    return found


def _group(stage: str) -> str:
    return next((group for start, group in _GROUPS.items() if stage.startswith(start)), "verify")


def report(rows: Iterable[dict[str, object]]) -> str:
    """Markdown: one line an export, one a stage."""
    lines = [
        "| model | target | recipe | artifact MiB | Meta's .pte MiB | CPU s | wall s "
        "| blocks within tolerance | worst, of its limit | positions | KL to the reference |",
        "|---|---|---|--:|--:|--:|--:|---|--:|--:|--:|",
    ]
    stages = [
        "| model | target | recipe | stage | CPU s | wall s | peak MiB | runtime's peak MiB |",
        "|---|---|---|---|--:|--:|--:|--:|",
    ]
    for row in rows:
        published = PUBLISHED_MIB.get(str(row["model"]), "")
        lines.append(
            f"| {row['model']} | {row['target']} | {row['recipe']} | "
            f"{row['artifact_mib']:.0f} | {published} | "
            f"{row['cpu_s']:.0f} | {row['wall_s']:.0f} | {row['blocks']}: "
            f"{'all' if row['passed'] else 'not all'} | {row['worst_severity']:.2f} | "
            f"{row['positions']} | {row['parity_kl']:.1e} |"
        )
        assert isinstance(row["stages"], list)
        for group in dict.fromkeys((*_GROUPS.values(), "verify")):
            parts = [stage for stage in row["stages"] if _group(stage["name"]) == group]
            if not parts:
                continue
            stages.append(
                f"| {row['model']} | {row['target']} | {row['recipe']} | {group} | "
                f"{sum(part['cpu_s'] for part in parts):.0f} | "
                f"{sum(part['wall_s'] for part in parts):.0f} | "
                f"{max(part['peak_mib'] for part in parts):.0f} | "
                f"{max(part['runtime_peak_mib'] for part in parts):.0f} |"
            )
    return "\n".join([*lines, "", *stages])


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", type=Path, nargs="*", help="folders that `synth` wrote")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--recipe", default=DEFAULT, help=f"by name; {DEFAULT} unless named")
    parser.add_argument("--json", type=Path, help="rows are kept here")
    parser.add_argument(
        "--all-prompts", action="store_true", help="run the gate as every export does"
    )
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        target, scratch = arguments.child
        prompts = ALL_PROMPTS if arguments.all_prompts else PROMPTS
        done = export(arguments.models[0], target, arguments.recipe, Path(scratch), prompts)
        print(json.dumps(asdict(done)))
        return
    kept = arguments.json
    rows = json.loads(kept.read_text()) if kept is not None and kept.exists() else {}
    for model in arguments.models:
        for target in arguments.targets:
            recipe, whole = arguments.recipe, arguments.all_prompts
            key = f"{model.name} {target}" + (" all prompts" if whole else "")
            key += "" if recipe == DEFAULT else f" {recipe}"
            rows[key] = export_in_child(model, target, recipe, whole=whole)
            if kept is not None:
                kept.write_text(json.dumps(rows, indent=2, sort_keys=True) + "\n")
    print(report(rows[key] for key in sorted(rows)))


if __name__ == "__main__":
    main()
