"""Divergences against values worked out by hand."""

import math

import numpy as np
import pytest

from llama_edge.core.errors import CheckFailedError
from llama_edge.gate.metrics import compare, concatenate, log_softmax, summarize

HALVES = np.log(np.array([0.5, 0.25, 0.25], np.float32))
QUARTERS = np.log(np.array([0.25, 0.5, 0.25], np.float32))


def test_log_softmax_does_not_overflow() -> None:
    rows = log_softmax(np.array([[1e30, 0.0], [-1e4, -1e4]], np.float32))
    np.testing.assert_allclose(rows[0], [0.0, -1e30])
    np.testing.assert_allclose(rows[1], [-math.log(2)] * 2)


def test_kl_by_hand() -> None:
    """KL((1/2, 1/4, 1/4) || (1/4, 1/2, 1/4)) = 1/2 ln 2 + 1/4 ln 1/2 = ln(2) / 4; the shift of
    all logits by a constant changes nothing."""
    found = compare(np.stack([HALVES, HALVES]), np.stack([QUARTERS + 7, HALVES]), [0, 1])
    np.testing.assert_allclose(found.kl, [math.log(2) / 4, 0.0], atol=1e-7)
    assert found.same_top1.tolist() == [False, True]
    np.testing.assert_allclose(found.top1_gap, [math.log(2), 0.0], atol=1e-6)


def test_kl_is_of_the_reference_first() -> None:
    sure = np.array([[5.0, 0.0]], np.float32)
    unsure = np.array([[1.0, 0.0]], np.float32)
    forward = compare(sure, unsure, [0]).kl[0]
    assert forward != pytest.approx(compare(unsure, sure, [0]).kl[0], rel=0.1)
    p, q = 1 / (1 + math.exp(-5)), 1 / (1 + math.exp(-1))
    expected = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert forward == pytest.approx(expected, rel=1e-6)


def test_small_divergences_are_not_lost() -> None:
    """1e-4 on one logit of a uniform pair: KL is about 1e-8 / 8, far below float32's reach."""
    candidate = np.array([[1e-4, 0.0]], np.float32)
    kl = compare(np.zeros((1, 2), np.float32), candidate, [0]).kl[0]
    assert kl == pytest.approx(1e-8 / 8, rel=1e-3)


def test_perplexity_ratio_is_over_the_tokens_that_follow() -> None:
    reference = np.stack([HALVES, HALVES, HALVES])
    candidate = np.stack([QUARTERS, QUARTERS, QUARTERS])
    found = compare(reference, candidate, [2, 0, 1])
    np.testing.assert_allclose(found.reference_nll[:2], [math.log(2), math.log(4)], atol=1e-6)
    assert math.isnan(found.reference_nll[2])
    assert summarize(found).perplexity_ratio == pytest.approx(1.0)
    worse = compare(reference, candidate, [2, 0, 0])
    assert summarize(worse).perplexity_ratio == pytest.approx(2.0)


def test_summary_percentiles() -> None:
    logits = np.zeros((1000, 2), np.float32)
    candidate = logits.copy()
    candidate[:5, 1] = 3.0  # one in two hundred is far off
    found = summarize(compare(logits, candidate, [0] * 1000))
    kl = 0.5 * math.log(0.5 * (1 + math.exp(3))) + 0.5 * math.log(0.5 * (1 + math.exp(-3)))
    assert found.positions == 1000
    assert found.p99_kl == 0.0
    assert found.p999_kl == pytest.approx(kl)
    assert found.mean_kl == pytest.approx(kl * 5 / 1000)
    assert found.max_kl == pytest.approx(kl)
    assert found.top1_agreement == pytest.approx(0.995)


def test_concatenate_pools_positions() -> None:
    one = compare(HALVES[None], QUARTERS[None], [0])
    both = concatenate([one, compare(HALVES[None], HALVES[None], [0])])
    assert summarize(both).mean_kl == pytest.approx(math.log(2) / 8, rel=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_broken_logits_are_a_failed_check(value: float) -> None:
    candidate = np.zeros((2, 3), np.float32)
    candidate[1, 2] = value
    with pytest.raises(CheckFailedError, match="after token 1 hold NaN or infinity"):
        compare(np.zeros((2, 3), np.float32), candidate, [0, 1])
