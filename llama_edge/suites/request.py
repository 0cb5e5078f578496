"""What is asked about a suite; light to import, for the command line."""

from collections.abc import Sequence
from dataclasses import dataclass

from llama_edge.core.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteRequest:
    """Which suite, and what must be reached."""

    #: a built-in suite, or a file
    suite: str
    #: `METRIC=VALUE` or `METRIC.GROUP=VALUE`
    require: tuple[str, ...] = ()
    #: only so many prompts of each task in each language; None takes all
    per_task: int | None = None


def suite_request(
    suite: str | None, require: Sequence[str] | None, per_task: int | None
) -> SuiteRequest | None:
    """What a command line asks for, if it asks for a suite.

    Raises:
        UsageError: Something is said about a suite, and none is named.
    """
    if suite is not None:
        return SuiteRequest(suite=suite, require=tuple(require or ()), per_task=per_task)
    if require or per_task is not None:
        option = "--require" if require else "--per-task"
        raise UsageError(f"{option} is about a suite; name one with --suite")
    return None
