"""What the answers to a suite amount to: for all prompts, for each language and for each task.

The main measure is `agreement`. Of the tokens of full precision's greedy answer, its end included,
it is the share that the bundle also finds most probable when it reads that answer. One token that
differs early costs one token; `same_answer` and `prefix` are zero from there on.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from llama_edge.gate.findings import rounded
from llama_edge.gate.intervals import Estimate, WindowIndices, estimate

#: Of the bootstrap's draws.
SEED: Final = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One answer, and what was found in it."""

    text: str
    #: kinds of the checks that it does not pass
    failed: tuple[str, ...]
    #: whether it is one valid call of the tools that were offered, or several; None without tools
    valid_call: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptResult:
    """One prompt, the bundle's answer and full precision's."""

    id: str
    language: str
    task: str
    checks: int
    bundle: Judged
    full: Judged
    #: of full precision's answer, its end included
    tokens: int
    #: of these, how many the bundle chooses when it reads the answer
    agreeing_tokens: int
    #: with how many both answers begin; equal to `tokens` if the answers are the same
    common_tokens: int
    #: the bundle's answer where it must be a call of the tools; None without tools
    constrained: Judged | None = None


@dataclass(frozen=True, slots=True)
class Share:
    """A sum over prompts, divided by another one: ratios of sums, so long answers count more."""

    part: Callable[[PromptResult], float]
    whole: Callable[[PromptResult], float]

    def over(self, results: Sequence[PromptResult]) -> Callable[[WindowIndices], float]:
        """The share as a function of the prompts drawn."""
        parts, wholes = (
            np.array([get(result) for result in results], np.float64)
            for get in (self.part, self.whole)
        )
        return lambda drawn: float(parts[drawn].sum() / wholes[drawn].sum())


def _one(result: PromptResult) -> float:
    del result
    return 1.0


def _checks(result: PromptResult) -> float:
    return result.checks


def _tokens(result: PromptResult) -> float:
    return result.tokens


#: By name; all are better when they are larger.
SHARES: Final[Mapping[str, Share]] = {
    "agreement": Share(lambda result: result.agreeing_tokens, _tokens),
    "same_answer": Share(lambda result: result.common_tokens == result.tokens, _one),
    "prefix": Share(lambda result: result.common_tokens, _tokens),
    "checks": Share(lambda result: result.checks - len(result.bundle.failed), _checks),
    "full_checks": Share(lambda result: result.checks - len(result.full.failed), _checks),
    "tool_call": Share(lambda result: bool(result.bundle.valid_call), _one),
    "full_tool_call": Share(lambda result: bool(result.full.valid_call), _one),
    "constrained_tool_call": Share(
        lambda result: result.constrained is not None and bool(result.constrained.valid_call), _one
    ),
}
#: Full precision's share minus the bundle's; better when they are smaller.
LOSSES: Final = {
    "checks_loss": ("full_checks", "checks"),
    "tool_call_loss": ("full_tool_call", "tool_call"),
}
#: Counted over the prompts that offer tools.
OF_TOOLS: Final = frozenset(
    {"tool_call", "full_tool_call", "constrained_tool_call", "tool_call_loss"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """All prompts, those of one language, or those of one task."""

    #: None for all
    name: str | None
    prompts: int
    #: tool calls are absent where no prompt offers tools
    metrics: Mapping[str, Estimate]


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteReport:
    """A suite's scores, the answers, and what was required and missed."""

    suite: str
    max_new_tokens: int
    #: the full-precision model
    against: str
    #: all prompts first, then languages, then tasks
    groups: tuple[Group, ...]
    require: tuple[str, ...]
    missed: tuple[str, ...]
    results: tuple[PromptResult, ...]

    @property
    def passed(self) -> bool:
        """Whether all that was required was reached."""
        return not self.missed

    def to_json(self) -> dict[str, Any]:
        """Plain values, rounded as reports are."""
        value: dict[str, Any] = rounded(asdict(self))
        return {"passed": self.passed, **value}


def group_scores(results: Sequence[PromptResult]) -> tuple[Group, ...]:
    """All prompts, each language and each task, in the order of the results."""
    languages = dict.fromkeys(result.language for result in results)
    tasks = dict.fromkeys(result.task for result in results)
    return (
        _group(None, results),
        *(_group(name, [r for r in results if r.language == name]) for name in languages),
        *(_group(name, [r for r in results if r.task == name]) for name in tasks),
    )


def _group(name: str | None, results: Sequence[PromptResult]) -> Group:
    offered = [result for result in results if result.bundle.valid_call is not None]
    metrics = {}
    for metric in (*SHARES, *LOSSES):
        counted = offered if metric in OF_TOOLS else results
        if counted:
            metrics[metric] = estimate(_statistic(metric, counted), len(counted), SEED)
    return Group(name=name, prompts=len(results), metrics=metrics)


def _statistic(metric: str, results: Sequence[PromptResult]) -> Callable[[WindowIndices], float]:
    if metric in SHARES:
        return SHARES[metric].over(results)
    full, bundle = (SHARES[name].over(results) for name in LOSSES[metric])
    return lambda drawn: full(drawn) - bundle(drawn)
