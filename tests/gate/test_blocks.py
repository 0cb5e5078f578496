"""Block by block: a right artifact holds, each planted fault is found where it was planted."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from llama_edge.core.artifact import ActivationQuantization
from llama_edge.core.errors import CheckFailedError
from llama_edge.core.progress import SilentProgress
from llama_edge.core.quantized import QuantizedCheckpoint
from llama_edge.core.session import BlockTrace
from llama_edge.gate.block_errors import BROKEN, relative_errors
from llama_edge.gate.blocks import BlocksReport, check_blocks
from llama_edge.gate.prompts import Prompt
from llama_edge.gate.tolerances import Tolerances
from llama_edge.models.reference import Reference
from llama_edge.models.sources import CachedSource, DequantizedSource
from tests.gate.conftest import Judge
from tests.gate.faulty_models import calls_of, trace_model

ACTIVATIONS = (ActivationQuantization.NONE, ActivationQuantization.INT8_PER_TOKEN)


def where(report: BlocksReport) -> dict[str, tuple[str, ...]]:
    return {block.name: block.wrong_in for block in report.wrong}


@pytest.mark.parametrize("activation", ActivationQuantization)
def test_a_right_artifact_holds(judge: Judge, activation: ActivationQuantization) -> None:
    report = judge("none", activation).blocks
    assert report.passed
    assert [block.name for block in report.blocks] == [
        "embedding",
        "layers.0.attention",
        "layers.0.mlp",
        "layers.1.attention",
        "layers.1.mlp",
        "head",
    ]
    for block in report.blocks:
        assert block.decode is not None
        assert block.prefill.median < 1e-6
        assert block.decode.median < 1e-6


BOTH = ("prefill", "decode")


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("wrong rope theta", {"layers.0.attention": BOTH, "layers.1.attention": BOTH}),
        ("swapped nibbles", {"layers.1.mlp": BOTH}),
        ("scale x 1.05", {"layers.1.mlp": BOTH}),
        ("wrong Q permutation", {"layers.1.attention": BOTH}),
        ("wrong K permutation", {"layers.0.attention": BOTH}),
        (
            "cache one place off",
            {"layers.0.attention": ("decode",), "layers.1.attention": ("decode",)},
        ),
        ("no residual", {"layers.1.mlp": BOTH}),
    ],
)
def test_a_fault_is_found_where_it_is(
    judge: Judge,
    fault: str,
    expected: dict[str, tuple[str, ...]],
    activation: ActivationQuantization,
) -> None:
    report = judge(fault, activation).blocks
    assert not report.passed
    assert where(report) == expected
    assert report.worst.name in expected
    assert report.worst.severity > 100


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_wrong_eps_is_in_every_norm(judge: Judge, activation: ActivationQuantization) -> None:
    report = judge("wrong eps", activation).blocks
    assert {block.name for block in report.wrong} == {block.name for block in report.blocks} - {
        "embedding"
    }


@pytest.fixture(scope="module")
def reference(debug_quantized: QuantizedCheckpoint) -> Reference:
    source = CachedSource(DequantizedSource(debug_quantized.weights))
    return Reference(debug_quantized.config, source, ActivationQuantization.INT8_PER_TOKEN)


@pytest.fixture(scope="module")
def trace(reference: Reference, debug_prompts: tuple[Prompt, ...]) -> BlockTrace:
    prompt = debug_prompts[1]
    return trace_model(reference, calls_of(prompt.tokens, prompt.continuation))


def check(reference: Reference, *traces: BlockTrace) -> BlocksReport:
    return check_blocks(reference, traces, Tolerances(), SilentProgress())


def test_a_single_wrong_row_is_not_hidden_by_the_others(
    reference: Reference, trace: BlockTrace
) -> None:
    """Median and 90th percentile do not see one row of many; the largest error does."""
    logits = trace.logits.copy()
    logits[-1] *= 1.1
    (block,) = check(reference, replace(trace, logits=logits)).wrong
    assert (block.name, block.wrong_in) == ("head", ("decode",))
    assert block.decode is not None
    assert block.decode.median < 1e-6
    assert block.decode.max == pytest.approx(0.1, rel=1e-3)


def test_a_small_error_of_every_row_is_not_excused_as_rounding(
    reference: Reference, trace: BlockTrace
) -> None:
    logits = trace.logits * np.float32(1.0003)
    (block,) = check(reference, replace(trace, logits=logits)).wrong
    assert block.name == "head"
    assert block.severity == pytest.approx(3, rel=0.05)


def test_nan_is_the_worst_error(reference: Reference, trace: BlockTrace) -> None:
    logits = trace.logits.copy()
    logits[3, 7] = np.nan
    (block,) = check(reference, replace(trace, logits=logits)).wrong
    assert block.decode is not None
    assert block.decode.max == BROKEN


def test_a_wrong_embedding_row(reference: Reference, trace: BlockTrace) -> None:
    tokens = (trace.tokens[0] ^ 1, *trace.tokens[1:])
    assert where(check(reference, replace(trace, tokens=tokens))) == {"embedding": ("prefill",)}


def test_prefill_alone_is_enough(reference: Reference) -> None:
    report = check(reference, trace_model(reference, [(5, 6, 7, 8)]))
    assert report.passed
    assert all(block.decode is None for block in report.blocks)


def test_a_trace_of_another_shape_is_refused(reference: Reference, trace: BlockTrace) -> None:
    for broken, name in (
        (replace(trace, hidden=trace.hidden[:-1]), "hidden"),
        (replace(trace, attention=tuple(rows[:, 1:] for rows in trace.attention)), "attention"),
        (replace(trace, logits=trace.logits[:-1]), "logits"),
        (replace(trace, calls=trace.calls[:-1]), "hidden"),
    ):
        with pytest.raises(CheckFailedError, match=f"trace of {name} has shapes"):
            check(reference, broken)


def test_relative_errors_by_hand() -> None:
    reference = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0]])
    candidate = torch.tensor([[3.0, 4.5], [0.0, 0.25], [torch.inf, 0.0]])
    assert relative_errors(candidate, reference).tolist() == [0.1, 0.25, BROKEN]
