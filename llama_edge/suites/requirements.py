"""What a bundle must reach on a suite: `METRIC=VALUE`, or `METRIC.GROUP=VALUE`."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from llama_edge.core.errors import UsageError
from llama_edge.suites.scores import LOSSES, OF_TOOLS, SHARES, Group
from llama_edge.suites.suite import EVERY, Suite


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """A share must be at least the value, a loss at most."""

    metric: str
    #: a language, a task, or `EVERY`; None: all prompts together
    group: str | None
    value: float

    @classmethod
    def parse(cls, text: str) -> Self:
        """As it is written on a command line.

        Raises:
            UsageError: It is not of that form.
        """
        name, equals, value = text.partition("=")
        metric, dot, group = name.strip().partition(".")
        if not equals or (dot and not group):
            raise UsageError(
                f"the requirement {text!r} is not METRIC=VALUE or METRIC.GROUP=VALUE, such as "
                "agreement.th=0.85"
            )
        if metric not in SHARES and metric not in LOSSES:
            known = ", ".join((*SHARES, *LOSSES))
            raise UsageError(f"the requirement {text!r} names no metric; these are: {known}")
        return cls(metric=metric, group=group or None, value=_share(value, text))

    def __str__(self) -> str:
        group = "" if self.group is None else f".{self.group}"
        return f"{self.metric}{group}={self.value:g}"

    def require_measured(self, suite: Suite) -> None:
        """Whether the suite has such a group, with tools if they are meant.

        Raises:
            UsageError: It has not.
        """
        groups = (*suite.languages, *suite.tasks)
        if self.group is not None and self.group not in (EVERY, *groups):
            known = ", ".join((EVERY, *groups))
            raise UsageError(f"{self}: {suite.name} has no group {self.group!r}; it has {known}")
        has_tools = any(
            prompt.tools
            for prompt in suite.prompts
            if self.group in (None, EVERY, prompt.language, prompt.task)
        )
        if self.metric in OF_TOOLS and not has_tools:
            where = suite.name if self.group is None else f"{self.group} of {suite.name}"
            raise UsageError(f"{self}: no prompt in {where} offers tools")

    def missed(self, groups: Sequence[Group]) -> Iterator[str]:
        """What was found where it is not reached."""
        for group in groups:
            found = group.metrics.get(self.metric)
            if found is None or not self._is_about(group):
                continue
            is_loss = self.metric in LOSSES
            if found.value > self.value if is_loss else found.value < self.value:
                where = "all prompts" if group.name is None else group.name
                limit = "at most" if is_loss else "at least"
                yield (
                    f"{self.metric} in {where} is {found.value:.4f}; {limit} {self.value:g} is "
                    "required"
                )

    def _is_about(self, group: Group) -> bool:
        return group.name is not None if self.group == EVERY else group.name == self.group


def _share(text: str, requirement: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise UsageError(f"the requirement {requirement!r}: {text!r} is no number from 0 to 1")
    return value


def missed(requirements: Sequence[Requirement], groups: Sequence[Group]) -> tuple[str, ...]:
    """Everything that is not reached, each once."""
    found = (line for requirement in requirements for line in requirement.missed(groups))
    return tuple(dict.fromkeys(found))
