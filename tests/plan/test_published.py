"""The plan against every published row; the fitted numbers against the rule that they come from."""

from dataclasses import replace
from math import exp, log

import pytest

from llama_edge.core.model_shapes import SHAPES
from llama_edge.plan.devices import DEVICES, get_device
from llama_edge.plan.estimate import (
    DECODE_BAND,
    DECODE_SHARE,
    FLOAT_SHARE,
    INT8_SHARE,
    RSS_BAND,
    RUNTIME_MIB,
    SIZE_BAND,
    estimate,
)
from llama_edge.plan.published import (
    CONTEXT,
    GUARD_DECODE_TOKENS_PER_S,
    GUARD_FILE_BYTES,
    HELD_OUT,
    PROMPT,
    PUBLISHED,
    PUBLISHED_LAYOUTS,
    HeldOutRow,
    PublishedRow,
)

ROWS = pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: f"{row.shape}-{row.layout}")


@ROWS
def test_every_published_row_is_within_the_bands(row: PublishedRow) -> None:
    found = estimate(row.workload(), get_device(row.device), CONTEXT, PROMPT)
    assert found.file_mib == pytest.approx(row.file_mib, rel=SIZE_BAND)
    assert found.decode_tokens_per_s == pytest.approx(row.decode_tokens_per_s, rel=DECODE_BAND)
    assert found.rss_mib == pytest.approx(row.rss_mib, rel=RSS_BAND)
    assert found.prefill_tokens_per_s == pytest.approx(row.prefill_tokens_per_s, rel=0.05)
    # Published to a tenth of a second, and 64 tokens at the published prefill speed do not always
    # round to it: 1.06 is printed as 1.0.
    assert found.time_to_first_token_s == pytest.approx(row.time_to_first_token_s, abs=0.11)
    assert found.fits


@ROWS
def test_a_wrong_layout_is_outside_the_bands(row: PublishedRow) -> None:
    """The bands would notice fp16 scales, a second table, or a table that is not there."""
    size = row.workload().size
    table = row.workload().config.vocab_size * row.workload().config.hidden_size
    scales = 2 * row.workload().int8_macs // 32 or table
    for wrong in (size.file_bytes - scales, size.file_bytes + table):
        assert wrong / 2**20 != pytest.approx(row.file_mib, rel=SIZE_BAND)


def test_the_pruned_guard_has_the_published_size_and_speed() -> None:
    config = SHAPES["llama-guard-3-1b-int4"].config
    work = PUBLISHED_LAYOUTS["published-guard-int4"](config)
    assert work.size.file_bytes == pytest.approx(GUARD_FILE_BYTES, rel=SIZE_BAND)
    whole_head = PUBLISHED_LAYOUTS["published-guard-int4"](replace(config, output_rows=None))
    assert whole_head.size.file_bytes != pytest.approx(GUARD_FILE_BYTES, rel=SIZE_BAND)
    for device in DEVICES.values():
        speed = estimate(work, device, CONTEXT, PROMPT).decode_tokens_per_s
        assert speed >= GUARD_DECODE_TOKENS_PER_S


def test_decode_share_lies_midway_between_the_rows() -> None:
    shares = []
    for row in PUBLISHED:
        work, device = row.workload(), get_device(row.device)
        read = work.size.streamed_bytes + PROMPT * work.kv_bytes_per_token
        shares.append(read * row.decode_tokens_per_s / (device.bandwidth_gb_s * 1e9))
    assert pytest.approx((min(shares) * max(shares)) ** 0.5, abs=0.001) == DECODE_SHARE


def attention_macs(row: PublishedRow) -> int:
    config = row.workload().config
    return PROMPT**2 * config.query_size * config.num_hidden_layers


def test_float_share_is_the_mean_of_the_bf16_rows() -> None:
    shares = []
    for row in PUBLISHED:
        work, device = row.workload(), get_device(row.device)
        if not work.int8_macs:
            macs = PROMPT * work.float_macs + work.head_macs + attention_macs(row)
            shares.append(macs * row.prefill_tokens_per_s / PROMPT / (device.float_gmacs * 1e9))
    assert len(shares) == 2
    assert pytest.approx(exp(sum(map(log, shares)) / 2), abs=0.001) == FLOAT_SHARE


def test_int8_share_is_the_mean_of_the_int8_rows() -> None:
    shares = []
    for row in PUBLISHED:
        work, device = row.workload(), get_device(row.device)
        if work.int8_macs:
            floats = PROMPT * work.float_macs + attention_macs(row)
            seconds = PROMPT / row.prefill_tokens_per_s
            seconds -= floats / (device.float_gmacs * 1e9 * FLOAT_SHARE)
            macs = PROMPT * work.int8_macs + work.head_macs
            shares.append(macs / seconds / (device.int8_gmacs * 1e9))
    assert len(shares) == 4
    assert pytest.approx(exp(sum(map(log, shares)) / 4), abs=0.001) == INT8_SHARE


def test_runtime_memory_is_the_mean_of_the_rows_without_adapters() -> None:
    left = [
        row.rss_mib - (row.workload().rss_mib(CONTEXT) - RUNTIME_MIB)
        for row in PUBLISHED
        if row.layout != "published-qat-lora"
    ]
    assert len(left) == 4
    assert pytest.approx(sum(left) / 4, abs=1) == RUNTIME_MIB


@pytest.mark.parametrize(
    "row", HELD_OUT, ids=lambda row: f"{row.model}-{row.device}-{row.group_size}"
)
def test_speeds_that_nothing_was_fitted_on(row: HeldOutRow) -> None:
    device = DEVICES[row.device]
    found = device.bandwidth_gb_s * 1e9 * DECODE_SHARE / row.streamed_bytes
    assert found == pytest.approx(row.decode_tokens_per_s, rel=0.15)
