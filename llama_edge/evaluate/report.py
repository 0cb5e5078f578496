"""What is asked of an evaluation, and what it answers; light to import, for the command line."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from llama_edge.bundle.signing import NO_KEY, Trust
from llama_edge.core.errors import UsageError
from llama_edge.gate.findings import rounded
from llama_edge.gate.intervals import Estimate
from llama_edge.suites.request import SuiteRequest
from llama_edge.suites.scores import SuiteReport

DEFAULT_WINDOW: Final = 512
#: How all texts together are called.
TOTAL: Final = "total"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalRequest:
    """What to evaluate, and on what."""

    #: one or two bundles or full-precision models
    subjects: tuple[str, ...]
    texts: tuple[Path, ...] = ()
    #: lm-eval's YAML files
    tasks: tuple[Path, ...] = ()
    #: tokens of a window, which is read from an empty cache
    window: int = DEFAULT_WINDOW
    #: of each text; None takes all
    max_windows: int | None = None
    #: the full-precision model of every bundle; None: the built-in one that its manifest names
    against: str | None = None
    #: on which every bundle is compared with full precision
    suite: SuiteRequest | None = None
    #: of every bundle; None takes the one that the gate uses
    runtime: str | None = None
    #: whose signature every bundle must have
    trust: Trust = NO_KEY

    def __post_init__(self) -> None:
        if not self.texts and not self.tasks and self.suite is None:
            raise UsageError(
                "nothing to evaluate on; name a file with --text or --tasks, or a --suite"
            )
        if self.window < 2:
            raise UsageError(f"window is {self.window}; it takes at least 2 tokens to predict one")
        if self.max_windows is not None and self.max_windows < 1:
            raise UsageError(f"max_windows is {self.max_windows}; it must be 1 or above")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskScore:
    """One metric of one task."""

    task: str
    #: lm-eval's name of the metric and of its filter, such as "acc,none"
    metric: str
    value: float
    #: None where lm-eval has none
    standard_error: float | None
    samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TextResult:
    """What one text, or all of them together, say about one subject or about two."""

    #: the file's name, or `TOTAL`
    text: str
    windows: int
    metrics: Mapping[str, Estimate]


@dataclass(frozen=True, slots=True, kw_only=True)
class SubjectResult:
    """One bundle or model over each text, and in total at the end."""

    name: str
    #: what computed it; None for a full-precision model
    runtime: str | None
    #: what it was compared with; None when that model was not available
    against: str | None
    #: empty without texts
    results: tuple[TextResult, ...]
    tasks: tuple[TaskScore, ...]
    #: None without a suite
    suite: SuiteReport | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalReport:
    """Everything that was measured."""

    window: int
    subjects: tuple[SubjectResult, ...]
    #: second minus first on the texts; empty for one subject
    difference: tuple[TextResult, ...]

    @property
    def missed(self) -> tuple[str, ...]:
        """What was required of a suite and was not reached, with the bundle's name."""
        return tuple(
            f"{subject.name}: {line}"
            for subject in self.subjects
            if subject.suite is not None
            for line in subject.suite.missed
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values, rounded as reports are."""
        value: dict[str, Any] = rounded(asdict(self))
        return value
