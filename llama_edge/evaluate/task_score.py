"""What a task says about a model; apart from `tasks`, which needs lm-eval."""

from dataclasses import dataclass


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
