"""The verdict: what passes, what fails, what it says, and that the report is stable JSON."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from llama_edge.core.artifact import ActivationQuantization
from llama_edge.core.errors import CheckFailedError, SessionError
from llama_edge.core.json_files import canonical_json
from llama_edge.core.progress import SilentProgress
from llama_edge.core.quantized import QuantizedCheckpoint
from llama_edge.gate.end_to_end import EndToEnd, artifact_logits, measure_end_to_end
from llama_edge.gate.findings import Finding
from llama_edge.gate.metrics import Comparison
from llama_edge.gate.parity import check_fidelity, check_parity
from llama_edge.gate.prompts import Prompt
from llama_edge.gate.tolerances import Tolerances
from llama_edge.models.reference import Reference
from llama_edge.models.sources import DequantizedSource
from llama_edge.runtimes.eager import EagerSession
from tests.gate.conftest import MAX_CONTEXT, Judge

NONE, INT8 = ActivationQuantization.NONE, ActivationQuantization.INT8_PER_TOKEN
FAULTS = (
    "wrong rope theta",
    "swapped nibbles",
    "scale x 1.05",
    "wrong Q permutation",
    "wrong K permutation",
    "cache one place off",
    "wrong eps",
    "no residual",
)
Measure = Callable[[str, ActivationQuantization], EndToEnd]


@pytest.mark.parametrize("activation", ActivationQuantization)
def test_a_right_artifact_passes(judge: Judge, activation: ActivationQuantization) -> None:
    report = judge("none", activation)
    assert report.passed
    assert report.findings == ()
    assert report.end_to_end.noise_floor > 0
    if activation is NONE:
        assert report.end_to_end.artifact.mean_kl < 1e-11
        assert report.end_to_end.artifact.top1_agreement == 1.0


@pytest.mark.parametrize("activation", [NONE, INT8])
@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_fails_in_blocks_and_end_to_end(
    judge: Judge, fault: str, activation: ActivationQuantization
) -> None:
    report = judge(fault, activation)
    assert not report.passed
    assert {finding.check for finding in report.findings} == {"blocks", "end_to_end"}


def test_right_prefill_and_wrong_decode_is_said(judge: Judge) -> None:
    report = judge("cache one place off", NONE)
    places = [finding.where for finding in report.findings if finding.check == "blocks"]
    assert places == ["layers.0.attention (decode)", "layers.1.attention (decode)"]
    assert report.end_to_end.prefill_mean_kl < 1e-11
    assert report.end_to_end.decode_mean_kl > 1e-3


def test_the_report_is_stable_json(judge: Judge, measure: Measure) -> None:
    first = judge("none", INT8)
    again = check_parity(INT8, first.blocks, measure("none", INT8), (), Tolerances())
    text = canonical_json(first.to_json())
    assert text == canonical_json(again.to_json())
    value = first.to_json()
    assert value["passed"] is True
    assert value["activation"] == "int8_per_token"
    assert value["blocks"]["worst"] == first.blocks.worst.name
    floor = value["end_to_end"]["noise_floor"]
    assert floor == pytest.approx(first.end_to_end.noise_floor, rel=1e-3)
    assert len(repr(floor)) <= 9


def test_a_contract_finding_fails_the_gate(judge: Judge, measure: Measure) -> None:
    blocks = judge("none", NONE).blocks
    finding = Finding(
        check="contract", where="eos_token_ids", message="2 is missing", code="eos.missing"
    )
    report = check_parity(NONE, blocks, measure("none", NONE), [finding], Tolerances())
    assert report.findings == (finding,)
    assert not report.passed


def changed(measured: EndToEnd, change: Callable[[Comparison], Comparison]) -> EndToEnd:
    return EndToEnd(
        prompts=tuple(
            replace(found, reference_artifact=change(found.reference_artifact))
            for found in measured.prompts
        )
    )


def test_a_near_tie_is_excused_and_counted(judge: Judge, measure: Measure) -> None:
    blocks = judge("none", NONE).blocks

    def flip(gap: float) -> Callable[[Comparison], Comparison]:
        def change(found: Comparison) -> Comparison:
            same, gaps = found.same_top1.copy(), found.top1_gap.copy()
            same[3], gaps[3] = False, gap
            return replace(found, same_top1=same, top1_gap=gaps)

        return change

    tied = changed(measure("none", NONE), flip(1e-5))
    report = check_parity(NONE, blocks, tied, (), Tolerances())
    assert report.passed
    assert (report.end_to_end.near_ties, report.end_to_end.disagreements) == (4, 0)
    different = changed(measure("none", NONE), flip(0.01))
    report = check_parity(NONE, blocks, different, (), Tolerances())
    assert [finding.where for finding in report.findings] == ["top-1"]
    assert report.end_to_end.disagreements == 4


@pytest.mark.parametrize(("floors", "passes"), [(1.9, True), (2.6, False)])
def test_int8_is_held_against_the_noise_floor(
    judge: Judge, measure: Measure, floors: float, passes: bool
) -> None:
    measured = measure("none", INT8)
    floor = float(measured.reference_disturbed().kl.mean())
    spread = changed(
        measured, lambda found: replace(found, kl=np.full_like(found.kl, floors * floor))
    )
    report = check_parity(INT8, judge("none", INT8).blocks, spread, (), Tolerances())
    assert report.passed is passes
    if not passes:
        assert f"the noise floor being {floor:.3g}" in report.findings[0].message


def test_fidelity_is_measured_against_full_precision(
    measure: Measure, debug_quantized: QuantizedCheckpoint
) -> None:
    measured = measure("none", INT8)
    report = check_fidelity(measured, debug_quantized.recipe)
    assert report is not None
    assert report.passed
    assert report.artifact.mean_kl == pytest.approx(report.reference.mean_kl, rel=0.02)
    assert [prompt.language for prompt in report.prompts] == ["en", "de", "hi", "th"]
    assert canonical_json(report.to_json())
    strict = replace(debug_quantized.recipe, max_fidelity_kl=0.01)
    failed = check_fidelity(measured, strict)
    assert failed is not None
    assert not failed.passed
    assert "promises at most 0.01" in failed.findings[0].message


@pytest.fixture
def reference(debug_quantized: QuantizedCheckpoint) -> Reference:
    return Reference(debug_quantized.config, DequantizedSource(debug_quantized.weights), NONE)


def test_without_full_precision_there_is_no_fidelity(
    reference: Reference, debug_prompts: tuple[Prompt, ...], debug_quantized: QuantizedCheckpoint
) -> None:
    with EagerSession(reference, MAX_CONTEXT) as session:
        measured = measure_end_to_end(
            reference, None, session, debug_prompts[1:2], Tolerances(), SilentProgress()
        )
    assert measured.full_artifact() is None
    assert check_fidelity(measured, debug_quantized.recipe) is None
    assert float(measured.reference_artifact().kl.max()) < 1e-9


def test_a_context_too_small_for_the_prompt_is_the_sessions_error(
    reference: Reference, debug_prompts: tuple[Prompt, ...]
) -> None:
    prompt = debug_prompts[1]
    session = EagerSession(reference, len(prompt.tokens) + 2)
    with pytest.raises(SessionError, match="exceed the context"):
        artifact_logits(session, prompt, 256)


def test_logits_of_another_width_fail(
    reference: Reference, debug_prompts: tuple[Prompt, ...]
) -> None:
    session = EagerSession(reference, MAX_CONTEXT)
    with pytest.raises(CheckFailedError, match=r"shape \(131, 256\); \(131, 300\) is needed"):
        artifact_logits(session, debug_prompts[1], 300)
