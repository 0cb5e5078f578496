"""Graph parity and fidelity, judged apart from what was measured.

Graph parity asks whether the artifact computes its graph: against the reference with the same codes
and the same activation rounding. Fidelity asks what the recipe costs: against full precision.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from llama_edge.core.artifact import ActivationQuantization
from llama_edge.core.recipe import Recipe
from llama_edge.gate.blocks import BlocksReport
from llama_edge.gate.end_to_end import EndToEnd, PromptMeasurement
from llama_edge.gate.findings import Finding, report_json
from llama_edge.gate.metrics import Comparison, Divergence, summarize
from llama_edge.gate.tolerances import Tolerances


@dataclass(frozen=True, slots=True, kw_only=True)
class EndToEndReport:
    """The artifact's logits against the reference's over whole sequences."""

    artifact: Divergence
    prefill_mean_kl: float
    decode_mean_kl: float
    #: mean KL of the reference from itself, its embedding disturbed by `Tolerances.disturbance`
    noise_floor: float
    #: top tokens that differ where the reference all but ties; not counted as disagreement
    near_ties: int
    #: top tokens that differ for good
    disagreements: int
    #: mean KL to full precision of the artifact and of the reference; None without that model
    full_artifact_kl: float | None
    full_reference_kl: float | None
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityReport:
    """Graph parity: whether the written files compute the checkpoint's network."""

    activation: ActivationQuantization
    tolerances: Tolerances
    blocks: BlocksReport
    end_to_end: EndToEndReport
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """No finding at all."""
        return not self.findings

    def to_json(self) -> dict[str, Any]:
        """Plain values, rounded; the same run gives the same bytes."""
        value = report_json(self)
        value["blocks"]["worst"] = self.blocks.worst.name
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptFidelity:
    """One prompt against full precision."""

    name: str
    language: str
    artifact: Divergence
    #: tokens of the prompt; those after them were decoded one by one
    prefill: int
    #: KL after each token, nats
    kl: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FidelityReport:
    """What quantization cost on text that it was not calibrated on."""

    artifact: Divergence
    #: the reference with the same codes: what of it is the recipe's
    reference: Divergence
    max_mean_kl: float
    #: what the distance is to: full precision, unless the checkpoint came with codes
    against: str
    prompts: tuple[PromptFidelity, ...]
    findings: tuple[Finding, ...] = field(default=())

    @property
    def passed(self) -> bool:
        """Whether mean KL is within the recipe's limit."""
        return not self.findings

    def to_json(self) -> dict[str, Any]:
        """Plain values, rounded; the same run gives the same bytes."""
        return report_json(self)


def check_parity(
    activation: ActivationQuantization,
    blocks: BlocksReport,
    measured: EndToEnd,
    contract: Sequence[Finding],
    tolerances: Tolerances,
) -> ParityReport:
    """Judge one artifact.

    Args:
        activation: What its linears do to their input.
        blocks: From `check_blocks`.
        measured: From `measure_end_to_end`.
        contract: From `check_contract`.
        tolerances: The limits.
    """
    end_to_end = _judge_end_to_end(activation, measured, tolerances)
    return ParityReport(
        activation=activation,
        tolerances=tolerances,
        blocks=blocks,
        end_to_end=end_to_end,
        findings=(*contract, *_block_findings(blocks), *end_to_end.findings),
    )


def _block_findings(blocks: BlocksReport) -> tuple[Finding, ...]:
    return tuple(
        Finding(
            check="blocks",
            code="parity.blocks",
            where=f"{block.name} ({' and '.join(block.wrong_in)})",
            message=(
                f"the same input gives another output, {block.severity:.3g} times the limit; "
                f"median relative error {block.prefill.median:.2e} in prefill"
                + (f" and {block.decode.median:.2e} in decode" if block.decode else "")
            ),
        )
        for block in blocks.wrong
    )


def _end_to_end(where: str, message: str) -> Finding:
    return Finding(check="end_to_end", code="parity.end_to_end", where=where, message=message)


def _judge_end_to_end(
    activation: ActivationQuantization, measured: EndToEnd, tolerances: Tolerances
) -> EndToEndReport:
    artifact = measured.reference_artifact()
    floor = float(measured.reference_disturbed().kl.mean())
    differs = ~artifact.same_top1
    near_ties = int((differs & (artifact.top1_gap < tolerances.near_tie)).sum())
    disagreements = int(differs.sum()) - near_ties
    full_artifact, full_reference = measured.full_artifact(), measured.full_reference()
    summary = summarize(artifact)
    if activation is ActivationQuantization.NONE:
        findings = _exact_findings(summary, disagreements, tolerances)
    else:
        findings = _noisy_findings(summary, floor, tolerances)
        findings += _drift_findings(measured, tolerances)
    prefill, decode = _phase_means(measured.prompts)
    return EndToEndReport(
        artifact=summary,
        prefill_mean_kl=prefill,
        decode_mean_kl=decode,
        noise_floor=floor,
        near_ties=near_ties,
        disagreements=disagreements,
        full_artifact_kl=_mean_kl(full_artifact),
        full_reference_kl=_mean_kl(full_reference),
        findings=findings,
    )


def _mean_kl(comparison: Comparison | None) -> float | None:
    return None if comparison is None else float(comparison.kl.mean())


def _phase_means(prompts: Sequence[PromptMeasurement]) -> tuple[float, float]:
    """Mean KL to the reference over prefilled and over decoded positions."""
    sums, counts = [0.0, 0.0], [0, 0]
    for found in prompts:
        border = len(found.prompt.tokens)
        kl = found.reference_artifact.kl
        for phase, part in enumerate((kl[:border], kl[border:])):
            sums[phase] += float(part.sum())
            counts[phase] += len(part)
    return sums[0] / counts[0], sums[1] / max(counts[1], 1)


def _exact_findings(
    summary: Divergence, disagreements: int, tolerances: Tolerances
) -> tuple[Finding, ...]:
    findings: tuple[Finding, ...] = ()
    limit = tolerances.weight_only_mean_kl
    if summary.mean_kl > limit:
        message = f"mean KL to the reference is {summary.mean_kl:.3g} nats; at most {limit:g}"
        findings += (_end_to_end("mean KL", message),)
    if disagreements:
        message = (
            f"{disagreements} of {summary.positions} top tokens differ by more than a near tie; "
            "none may"
        )
        findings += (_end_to_end("top-1", message),)
    return findings


def _noisy_findings(
    summary: Divergence, floor: float, tolerances: Tolerances
) -> tuple[Finding, ...]:
    limit = tolerances.noise_floor_factor * floor + tolerances.noise_floor_absolute
    if summary.mean_kl <= limit:
        return ()
    message = (
        f"mean KL to the reference is {summary.mean_kl:.3g} nats; at most {limit:.3g}, "
        f"the noise floor being {floor:.3g}"
    )
    return (_end_to_end("mean KL", message),)


def _drift_findings(measured: EndToEnd, tolerances: Tolerances) -> tuple[Finding, ...]:
    full_artifact, full_reference = measured.full_artifact(), measured.full_reference()
    if full_artifact is None or full_reference is None:
        return ()
    found, wanted = float(full_artifact.kl.mean()), float(full_reference.kl.mean())
    limit = tolerances.fidelity_drift * wanted + tolerances.fidelity_drift_absolute
    if abs(found - wanted) <= limit:
        return ()
    message = (
        f"mean KL to {measured.against} is {found:.4g} nats for the artifact and {wanted:.4g} for "
        f"the reference; they may differ by {limit:.3g}"
    )
    return (_end_to_end(f"KL to {measured.against}", message),)


def check_fidelity(measured: EndToEnd, recipe: Recipe) -> FidelityReport | None:
    """Judge what the recipe cost; None when full precision was not measured."""
    artifact, reference = measured.full_artifact(), measured.full_reference()
    if artifact is None or reference is None:
        return None
    summary, limit = summarize(artifact), recipe.max_fidelity_kl
    findings: tuple[Finding, ...] = ()
    if summary.mean_kl > limit:
        message = (
            f"mean KL to {measured.against} is {summary.mean_kl:.4g} nats; recipe {recipe.name} "
            f"promises at most {limit:g}; choose a recipe that keeps more"
        )
        findings = (
            Finding(check="fidelity", code="parity.fidelity", where=recipe.name, message=message),
        )
    return FidelityReport(
        artifact=summary,
        reference=summarize(reference),
        max_mean_kl=limit,
        against=measured.against,
        prompts=tuple(
            PromptFidelity(
                name=found.prompt.name,
                language=found.prompt.language,
                artifact=summarize(found.full_artifact),
                prefill=len(found.prompt.tokens),
                kl=tuple(float(value) for value in found.full_artifact.kl),
            )
            for found in measured.prompts
            if found.full_artifact is not None
        ),
        findings=findings,
    )
