"""What the page's charts need of `parity.json`, read as untrusted input."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from llama_edge.core.errors import ArtifactError

#: Positions of one prompt and blocks of one model that are drawn; a file with more is not ours.
_MOST: Final = 100_000

Entry = TypeVar("Entry")


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockError:
    """One block's relative errors over all tokens, prefill and decode together."""

    name: str
    median: float
    #: 99th percentile and largest, rounding flips taken back
    p99: float
    largest: float
    #: the largest as it was measured
    raw_largest: float
    flips: int
    severity: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptKL:
    """One prompt's distance to full precision."""

    name: str
    language: str
    positions: int
    mean_kl: float
    p99_kl: float
    top1_agreement: float
    perplexity_ratio: float
    prefill: int
    kl: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleAnswers:
    """One question, answered twice."""

    language: str
    question: str
    artifact: str
    full: str | None
    same_tokens: int
    artifact_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """All of it; parts that a failed gate did not come to are empty."""

    blocks: tuple[BlockError, ...]
    block_limit: float | None
    block_max_limit: float | None
    prompts: tuple[PromptKL, ...]
    samples: tuple[SampleAnswers, ...]
    findings: tuple[str, ...]

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: str) -> "Measured":
        """Read `parity.json`.

        Raises:
            ArtifactError: A field is absent, of another type, not finite, or there are too many.
        """
        try:
            return _measured(value)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(
                f"{where}: the measurements cannot be read ({type(error).__name__}: {error}); run "
                "`llama-edge parity` on the bundle, or export it again"
            ) from error


def _measured(value: Mapping[str, Any]) -> Measured:
    parity, fidelity = value["parity"], value["fidelity"]
    limits = None if parity is None else parity["tolerances"]
    reports = [part for part in (parity, fidelity) if part is not None]
    findings = [finding for report in reports for finding in report["findings"]]
    return Measured(
        blocks=() if parity is None else _all(_block, parity["blocks"]["blocks"]),
        block_limit=None if limits is None else _number(limits["block"]),
        block_max_limit=None if limits is None else _number(limits["int8_block_max"]),
        prompts=() if fidelity is None else _all(_prompt, fidelity["prompts"]),
        samples=_all(_sample, value.get("samples", ())),
        findings=tuple(f"{one['check']}: {one['where']}: {one['message']}" for one in findings),
    )


def _all(
    make: Callable[[Mapping[str, Any]], Entry], entries: Iterable[Mapping[str, Any]]
) -> tuple[Entry, ...]:
    made = tuple(make(entry) for entry in entries)
    if len(made) > _MOST:
        raise ValueError(f"{len(made)} entries; at most {_MOST} are read")
    return made


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    if not math.isfinite(value):
        raise ValueError(f"{value!r} is not finite")
    return float(value)


def _count(value: object) -> int:
    number = _number(value)
    if number < 0 or number != int(number):
        raise ValueError(f"{value!r} is no count")
    return int(number)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _block(entry: Mapping[str, Any]) -> BlockError:
    phases = [part for part in (entry["prefill"], entry["decode"]) if part is not None]
    return BlockError(
        name=_text(entry["name"]),
        median=max(_number(part["median"]) for part in phases),
        p99=max(_number(part["p99"]) for part in phases),
        largest=max(_number(part["max"]) for part in phases),
        raw_largest=max(_number(part["raw_max"]) for part in phases),
        flips=_count(entry["flips"]),
        severity=_number(entry["severity"]),
    )


def _prompt(entry: Mapping[str, Any]) -> PromptKL:
    found = entry["artifact"]
    kl = tuple(_number(value) for value in entry.get("kl", ()))
    if len(kl) > _MOST:
        raise ValueError(f"{len(kl)} positions; at most {_MOST} are read")
    return PromptKL(
        name=_text(entry["name"]),
        language=_text(entry["language"]),
        positions=_count(found["positions"]),
        mean_kl=_number(found["mean_kl"]),
        p99_kl=_number(found["p99_kl"]),
        top1_agreement=_number(found["top1_agreement"]),
        perplexity_ratio=_number(found["perplexity_ratio"]),
        prefill=_count(entry.get("prefill", 0)),
        kl=kl,
    )


def _sample(entry: Mapping[str, Any]) -> SampleAnswers:
    full = entry["full"]
    return SampleAnswers(
        language=_text(entry["language"]),
        question=_text(entry["question"]),
        artifact=_text(entry["artifact"]),
        full=None if full is None else _text(full),
        same_tokens=_count(entry["same_tokens"]),
        artifact_tokens=_count(entry["artifact_tokens"]),
    )
