"""Speed of bundles: Meta's columns, on this machine or on an attached phone.

All bundles are open at once, each in a child process of its own, and are timed in turns: what
else the machine does falls on all of them alike, so that their ratios mean something.
"""

import os
import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

from llama_edge.backends import get_exporter
from llama_edge.bench.phone import PhoneRunner, RunnerReport
from llama_edge.bundle.folder import Bundle, open_bundle
from llama_edge.bundle.manifest import TensorEntry
from llama_edge.bundle.signing import NO_KEY, Trust
from llama_edge.core.artifact import Artifact
from llama_edge.core.errors import UsageError
from llama_edge.core.progress import Progress
from llama_edge.models.weight_names import EMBEDDING
from llama_edge.runtimes.child import ChildRuntime, ChildSession
from llama_edge.runtimes.machine import read_bandwidth
from llama_edge.runtimes.speed import TIMED_FACTORY, SpeedPlan, SpeedReading, timed_name

#: What Meta's table was measured with (Llama 3.2's model card).
DEFAULT_PROMPT_TOKENS: Final = 64
DEFAULT_NEW_TOKENS: Final = 64
DEFAULT_REPEATS: Final = 5
_MIB: Final = 2**20
#: Group scales are bf16 or fp16 in most artifacts; where they are wider, more is read than this.
_SCALE_BYTES: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchRequest:
    """What to measure, and how often."""

    bundles: tuple[Path, ...]
    prompt_tokens: tuple[int, ...] = (DEFAULT_PROMPT_TOKENS,)
    new_tokens: int = DEFAULT_NEW_TOKENS
    #: None: one a processor
    threads: int | None = None
    repeats: int = DEFAULT_REPEATS
    #: whose signature every bundle must have
    trust: Trust = NO_KEY

    def __post_init__(self) -> None:
        numbers = {
            "--prompt-tokens": min(self.prompt_tokens, default=0),
            "--new-tokens": self.new_tokens,
            "--threads": 1 if self.threads is None else self.threads,
            "--repeats": self.repeats,
        }
        for option, number in numbers.items():
            if number < 1:
                raise UsageError(f"{option} is {number}; it must be 1 or above")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Repeated readings of one number."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, readings: Sequence[float]) -> Self:
        """Of at least one reading."""
        return cls(median=statistics.median(readings), lowest=min(readings), highest=max(readings))


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchRow:
    """One bundle with one prompt length."""

    bundle: str
    runtime: str
    prompt_tokens: int
    new_tokens: int
    #: None: as the phone's runner chooses
    threads: int | None
    decode_tokens_per_s: Spread
    time_to_first_token_s: Spread
    prefill_tokens_per_s: Spread
    file_mib: float
    #: the process's peak; None where the phone's runner does not say
    rss_mib: float | None
    #: of it, before the artifact is opened: the interpreter and its libraries
    rss_before_load_mib: float | None
    #: weights that a token reads times decode speed, over the memory bandwidth; None on a phone
    bandwidth_share: float | None
    #: median over the decode steps, whole processor packages; None without a counter
    joules_per_token: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchReport:
    """All rows, and the machine."""

    rows: tuple[BenchRow, ...]
    #: GB/s that the threads read from memory; None on a phone
    memory_bandwidth_gb_per_s: float | None
    has_energy_counter: bool

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "rows": [row.to_json() for row in self.rows],
            "memory_bandwidth_gb_per_s": self.memory_bandwidth_gb_per_s,
            "has_energy_counter": self.has_energy_counter,
        }


def weight_bytes_per_token(tensors: Sequence[TensorEntry]) -> int:
    """Bytes that one decode step has to read: codes and scales of all but the embedding."""
    total = 0
    for entry in tensors:
        if entry.name != EMBEDDING:
            rows, columns = entry.shape
            total += rows * columns * entry.bits // 8
            total += rows * columns // entry.group_size * _SCALE_BYTES
    return total


def _artifact_mib(bundle: Bundle, artifact: Artifact) -> float:
    sizes = {entry.path: entry.size_bytes for entry in bundle.manifest.files}
    return sum(sizes[name] for name in artifact.files) / _MIB


class _Subject:
    """One open bundle and its readings so far, by prompt length."""

    def __init__(self, folder: Path, threads: int, trust: Trust) -> None:
        self.bundle = open_bundle(folder, trust)
        backend = self.bundle.manifest.backend
        self._factory_name = timed_name(backend, threads)
        self.artifact = get_exporter(backend).open(folder).artifact
        self.readings: dict[int, list[SpeedReading]] = {}
        self.runtime = ""
        self._rss_before_load = 0
        self._session: ChildSession | None = None

    def open(self, stack: ExitStack) -> None:
        runtime = stack.enter_context(ChildRuntime(self._factory_name, factory=TIMED_FACTORY))
        self.runtime = runtime.version()
        self._rss_before_load = runtime.peak_rss_bytes()
        self._session = stack.enter_context(runtime.open(self.artifact))
        self.bundle.require_unchanged()

    def measure(self, plan: SpeedPlan, *, keep: bool) -> None:
        assert self._session is not None, "a subject is measured after it is opened"
        reading = self._session.measure(plan, self.artifact.config.vocab_size)
        if keep:
            self.readings.setdefault(plan.prompt_tokens, []).append(reading)

    def row(self, plan: SpeedPlan, threads: int, bandwidth: float) -> BenchRow:
        assert self._session is not None, "a row follows the measurements"
        readings = self.readings[plan.prompt_tokens]
        decode = Spread.of([plan.new_tokens / reading.decode_s for reading in readings])
        energy = [reading.decode_joules for reading in readings]
        joules = [one for one in energy if one is not None]
        weights = weight_bytes_per_token(self.bundle.manifest.tensors)
        return BenchRow(
            bundle=self.bundle.root.name,
            runtime=self.runtime,
            prompt_tokens=plan.prompt_tokens,
            new_tokens=plan.new_tokens,
            threads=threads,
            decode_tokens_per_s=decode,
            time_to_first_token_s=Spread.of([reading.first_token_s for reading in readings]),
            prefill_tokens_per_s=Spread.of(
                [plan.prompt_tokens / reading.first_token_s for reading in readings]
            ),
            file_mib=_artifact_mib(self.bundle, self.artifact),
            rss_mib=self._session.peak_rss_bytes() / _MIB,
            rss_before_load_mib=self._rss_before_load / _MIB,
            bandwidth_share=weights * decode.median / bandwidth,
            joules_per_token=statistics.median(joules) / plan.new_tokens if joules else None,
        )


def _check_context(artifacts: Sequence[Artifact], request: BenchRequest) -> None:
    needed = max(request.prompt_tokens) + request.new_tokens
    for artifact in artifacts:
        if needed > artifact.max_context:
            raise UsageError(
                f"{artifact.root}: its context is {artifact.max_context} tokens and the bench "
                f"needs {needed}; shorten --prompt-tokens or --new-tokens"
            )


def bench_bundles(request: BenchRequest, progress: Progress) -> BenchReport:
    """Time every bundle with every prompt length, in turns, after one warm-up round.

    Raises:
        UsageError: An artifact runs in an emulation here, or its context is too short.
        ArtifactError: Not a bundle, or an unsafe one.
        CheckFailedError: A file is not what the manifest says.
        RuntimeCrashError: A runtime died or hung.
    """
    threads = request.threads or os.cpu_count() or 1
    subjects = [_Subject(folder, threads, request.trust) for folder in request.bundles]
    _check_context([subject.artifact for subject in subjects], request)
    plans = [
        SpeedPlan(prompt_tokens=prompt, new_tokens=request.new_tokens)
        for prompt in request.prompt_tokens
    ]
    bandwidth = read_bandwidth(threads)
    with ExitStack() as stack:
        for subject in subjects:
            subject.open(stack)
        progress.start("measure", (1 + request.repeats) * len(plans) * len(subjects))
        for turn in range(1 + request.repeats):
            for plan in plans:
                for subject in subjects:
                    subject.measure(plan, keep=turn > 0)
                    progress.advance()
        rows = [subject.row(plan, threads, bandwidth) for subject in subjects for plan in plans]
    return BenchReport(
        rows=tuple(rows),
        memory_bandwidth_gb_per_s=bandwidth / 1e9,
        has_energy_counter=any(row.joules_per_token is not None for row in rows),
    )


def bench_on_phone(request: BenchRequest, runner: Path, progress: Progress) -> BenchReport:
    """The same columns from ExecuTorch's stock runner on the attached phone; not verified on one.

    Raises:
        MissingComponentError: No adb, no phone, or no such runner.
        UsageError: A bundle is not for ExecuTorch, or its context is too short.
        OutputError: adb or the runner fails.
        SessionError: The runner prints no report.
    """
    bundles = [open_bundle(folder, request.trust) for folder in request.bundles]
    for bundle in bundles:
        if bundle.manifest.backend != "executorch":
            raise UsageError(
                f"{bundle.root}: a {bundle.manifest.backend} bundle; --adb runs bundles of the "
                "android target"
            )
    artifacts = [get_exporter("executorch").open(bundle.root).artifact for bundle in bundles]
    _check_context(artifacts, request)
    phone = PhoneRunner()
    rows = []
    runs = len(bundles) * len(request.prompt_tokens) * request.repeats
    progress.start("measure on the phone", runs)
    try:
        for bundle, artifact in zip(bundles, artifacts, strict=True):
            phone.push(runner, artifact.path, bundle.root / "tokenizer.json")
            bundle.require_unchanged()
            for prompt in request.prompt_tokens:
                reports = []
                for _ in range(request.repeats):
                    reports.append(phone.measure(prompt, request.new_tokens, request.threads))
                    progress.advance()
                size = _artifact_mib(bundle, artifact)
                rows.append(_phone_row(bundle, phone.name, size, request.threads, reports))
    finally:
        phone.clean()
    return BenchReport(rows=tuple(rows), memory_bandwidth_gb_per_s=None, has_energy_counter=False)


def _phone_row(
    bundle: Bundle,
    phone: str,
    file_mib: float,
    threads: int | None,
    reports: Sequence[RunnerReport],
) -> BenchRow:
    memory = [report.rss_mib for report in reports if report.rss_mib is not None]
    return BenchRow(
        bundle=bundle.root.name,
        runtime=f"stock runner on {phone}",
        prompt_tokens=reports[0].prompt_tokens,
        new_tokens=reports[0].new_tokens,
        threads=threads,
        decode_tokens_per_s=Spread.of([one.new_tokens / one.decode_s for one in reports]),
        time_to_first_token_s=Spread.of([one.first_token_s for one in reports]),
        prefill_tokens_per_s=Spread.of([one.prompt_tokens / one.prefill_s for one in reports]),
        file_mib=file_mib,
        rss_mib=max(memory, default=None),
        rss_before_load_mib=None,
        bandwidth_share=None,
        joules_per_token=None,
    )
