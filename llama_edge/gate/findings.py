"""What a gate says when it fails, and how its reports become JSON."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Final

from llama_edge.bundle.finding_codes import ContractFinding

#: Digits that reports keep: more would be noise.
SIGNIFICANT_DIGITS: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One reason why a gate failed."""

    #: "blocks", "end_to_end", "contract", "config" or "fidelity"
    check: str
    where: str
    #: the value found, and the limit
    message: str
    #: from the catalog of `bundle.finding_codes`
    code: str

    @classmethod
    def of_contract(cls, found: ContractFinding) -> "Finding":
        """A violation of the contract, as a reason for the gate."""
        return cls(check="contract", where=found.where, message=found.sentences, code=found.code)


def rounded(value: Any) -> Any:  # noqa: ANN401
    """JSON-ready `value` with every float cut to `SIGNIFICANT_DIGITS`, tuples as lists."""
    if isinstance(value, float):
        assert math.isfinite(value), "a report holds NaN or infinity"
        return float(f"{value:.{SIGNIFICANT_DIGITS}g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    return value


def report_json(report: Any) -> dict[str, Any]:  # noqa: ANN401
    """A report dataclass as plain, rounded JSON values with its `passed`."""
    value: dict[str, Any] = rounded(asdict(report))
    return {"passed": report.passed, **value}
