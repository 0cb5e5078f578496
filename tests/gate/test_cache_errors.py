"""What counts as a right int8 cache: rounding boundaries excuse nothing else."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from llama_edge.core.artifact import ActivationQuantization, KVCacheDtype
from llama_edge.core.cache_rows import CacheRows, quantize_rows
from llama_edge.core.errors import CheckFailedError
from llama_edge.core.progress import SilentProgress
from llama_edge.core.quantized import QuantizedCheckpoint
from llama_edge.core.session import BlockTrace
from llama_edge.gate.block_errors import BROKEN
from llama_edge.gate.blocks import BlocksReport, check_blocks
from llama_edge.gate.cache_errors import row_distances
from llama_edge.gate.prompts import Prompt
from llama_edge.gate.tolerances import Tolerances
from llama_edge.models.reference import Reference
from llama_edge.models.sources import CachedSource, DequantizedSource
from tests.gate.faulty_models import OtherOrder, calls_of, trace_model

LIMIT = Tolerances().block


@pytest.fixture(scope="module", name="x")
def unrounded() -> Tensor:
    """Two tokens of three rows of 16."""
    return torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(8))


def test_what_the_reference_rounds_is_right(x: Tensor) -> None:
    assert row_distances(x, quantize_rows(x)).max() < 1e-6


def test_either_code_is_right_on_a_border_and_only_there(x: Tensor) -> None:
    rows = quantize_rows(x)
    middle = int((rows.codes[0, 1] - rows.zero_points[0, 1]).abs().argsort()[8])
    for shift, right in ((0.5, True), (0.5 - 1e-5, True), (0.3, False)):
        moved = x.clone()
        moved[0, 1, middle] = (
            rows.codes[0, 1, middle] - rows.zero_points[0, 1, 0] + shift
        ) * rows.steps[0, 1, 0]
        found = CacheRows(rows.codes.clone(), rows.steps, rows.zero_points)
        found.codes[0, 1, middle] += 1
        distance = row_distances(moved, found)
        assert (distance[0] < LIMIT) == right
        assert distance[1] < 1e-6


@pytest.mark.parametrize(
    ("codes", "steps", "zero_points"),
    [(1, 1.0, 0), (0, 1.0, 1), (0, 1.001, 0), (2, 1.0, 2), (0, 0.5, 0), (0, 0.0, 0)],
)
def test_a_wrong_part_of_one_row_is_seen(
    x: Tensor, codes: int, steps: float, zero_points: int
) -> None:
    rows = quantize_rows(x)
    found = CacheRows(rows.codes.clone(), rows.steps.clone(), rows.zero_points.clone())
    found.codes[1, 2] = (found.codes[1, 2] + codes).clamp(max=127)
    found.steps[1, 2] *= steps
    found.zero_points[1, 2] += zero_points
    distances = row_distances(x, found)
    assert distances[0] < 1e-6
    assert distances[1] > 5 * LIMIT


def test_nan_is_the_worst_error(x: Tensor) -> None:
    rows = quantize_rows(x)
    rows.steps[0, 0] = torch.nan
    assert row_distances(x, rows)[0] == BROKEN


def int8_model(quantized: QuantizedCheckpoint, kind: type[Reference] = Reference) -> Reference:
    source = CachedSource(DequantizedSource(quantized.weights))
    activation = ActivationQuantization.INT8_PER_TOKEN
    return kind(quantized.config, source, activation, KVCacheDtype.INT8)


@pytest.fixture(scope="module")
def trace(debug_quantized: QuantizedCheckpoint, debug_prompts: tuple[Prompt, ...]) -> BlockTrace:
    """Of the same network by another order of float operations."""
    prompt = debug_prompts[1]
    calls = calls_of(prompt.tokens, prompt.continuation)
    return trace_model(int8_model(debug_quantized, OtherOrder), calls)


def check(quantized: QuantizedCheckpoint, trace: BlockTrace) -> BlocksReport:
    return check_blocks(int8_model(quantized), [trace], Tolerances(), SilentProgress())


def test_another_order_of_operations_is_right(
    debug_quantized: QuantizedCheckpoint, trace: BlockTrace
) -> None:
    report = check(debug_quantized, trace)
    assert report.passed
    for block in report.blocks:
        if block.name.endswith("attention"):
            assert block.prefill.max < LIMIT


def test_rows_and_attention_are_both_held(
    debug_quantized: QuantizedCheckpoint, trace: BlockTrace
) -> None:
    """Right rows with another attention, right attention with other rows: neither passes."""
    attention = (trace.attention[0] * np.float32(1.0003), *trace.attention[1:])
    rows = [array.copy() for array in trace.cache_rows]
    rows[1][:, 7, :-2] = np.clip(rows[1][:, 7, :-2] + 1, -128, 127)
    for wrong, name in (
        (replace(trace, attention=attention), "layers.0.attention"),
        (replace(trace, cache_rows=tuple(rows)), "layers.1.attention"),
    ):
        report = check(debug_quantized, wrong)
        assert report.wrong[0].name == name


def test_a_trace_without_the_cache_is_refused(
    debug_quantized: QuantizedCheckpoint, trace: BlockTrace
) -> None:
    with pytest.raises(CheckFailedError, match="trace of cache has shapes"):
        check(debug_quantized, replace(trace, cache_rows=()))
