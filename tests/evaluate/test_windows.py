"""Scores and their summaries against values worked out by hand and against a plain forward pass."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from llama_edge.core.artifact import ActivationQuantization
from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.errors import CheckFailedError, TextError
from llama_edge.core.progress import SilentProgress, Steps, step_count
from llama_edge.core.quantized import QuantizedCheckpoint
from llama_edge.core.session import FloatArray
from llama_edge.evaluate import windows as evaluate
from llama_edge.evaluate.windows import (
    Candidate,
    Scores,
    batches,
    cut_windows,
    score_windows,
    summarize_difference,
    summarize_scores,
)
from llama_edge.models.reference import Reference
from llama_edge.models.sources import CachedSource, DequantizedSource, FullPrecisionSource
from llama_edge.runtimes.eager import EagerSession
from tests.gate.faulty_models import candidates

WINDOWS = [tuple((7 * start + 3 * step**2) % 256 for step in range(24)) for start in range(6)]
NONE = ActivationQuantization.NONE


class FixedSession(EagerSession):
    """Says the same after every token, and remembers how many it was given at a time."""

    def __init__(self, logits: Sequence[float]) -> None:
        self.logits = np.array(logits, np.float32)
        self.calls: list[int] = []

    def prefill_logits(self, tokens: Sequence[int]) -> FloatArray:
        self.calls.append(len(tokens))
        return np.tile(self.logits, (len(tokens), 1))

    def reset(self, keep: int = 0) -> None:
        self.calls.append(0)


class CountingProgress(SilentProgress):
    total = done = 0

    def start(self, stage: str, steps: Steps, done: int = 0) -> None:
        self.total = step_count(steps)

    def advance(self, steps: int = 1) -> None:
        self.done += steps


@pytest.fixture(scope="module")
def full(debug_checkpoint: Checkpoint) -> Reference:
    config = debug_checkpoint.config
    return Reference(config, FullPrecisionSource(config, debug_checkpoint.weights))


def session_of(model: Reference) -> EagerSession:
    cached = Reference(model.config, CachedSource(model.source), model.activation)
    return EagerSession(cached, 512)


def score(full: Reference | None, *models: Reference | None) -> list[Scores]:
    vocab_size = 256
    given = [
        Candidate(
            session=None if model is None else session_of(model), vocab_size=vocab_size, full=full
        )
        for model in models
    ]
    return score_windows(given, WINDOWS, SilentProgress())


def test_windows_follow_each_other_and_the_rest_is_not_used() -> None:
    assert cut_windows("a", range(11), 5, None, None) == [(0, 1, 2, 3, 4), (5, 6, 7, 8, 9)]
    assert cut_windows("a", range(11), 5, None, 1) == [(0, 1, 2, 3, 4)]


def test_every_window_begins_with_bos_where_the_model_wants_it() -> None:
    assert cut_windows("a", range(7), 4, 99, None) == [(99, 0, 1, 2), (99, 3, 4, 5)]


def test_a_text_that_is_too_short_is_named() -> None:
    with pytest.raises(TextError, match=r"b\.txt: 4 tokens, and one window takes 5; give a longer"):
        cut_windows("b.txt", range(4), 5, None, None)
    with pytest.raises(TextError, match=r"b\.txt: 3 tokens, and one window takes 4"):
        cut_windows("b.txt", range(3), 5, 0, None)


def test_perplexity_by_hand() -> None:
    """Halves and quarters: after the first token, 1, 0 and 2 follow: -log p is ln 4, ln 2, ln 4."""
    session = FixedSession(np.log([0.5, 0.25, 0.25]).tolist())
    candidate = Candidate(session=session, vocab_size=3, full=None)
    [scores] = score_windows([candidate], [(0, 1, 0, 2)], SilentProgress())
    np.testing.assert_allclose(scores.nll, [[math.log(4), math.log(2), math.log(4)]], rtol=1e-6)
    found = summarize_scores(scores)
    assert set(found) == {"perplexity"}
    assert found["perplexity"].value == pytest.approx(2 ** (5 / 3), rel=1e-6)


def test_summary_by_hand() -> None:
    kl = np.zeros((10, 100))
    kl[0, :2] = 0.3, 1.0
    scores = Scores(
        nll=np.full((10, 100), math.log(8)),
        full_nll=np.full((10, 100), math.log(4)),
        kl=kl,
        same_top1=(kl == 0).astype(float),
    )
    found = {name: value.value for name, value in summarize_scores(scores).items()}
    # 1000 positions: the 99.9th percentile lies 0.001 of the way from 0.3 to 1.
    expected = {
        "perplexity": 8,
        "perplexity_ratio": 2,
        "mean_kl": 0.0013,
        "p99_kl": 0,
        "p999_kl": 0.3 + 0.7 * 0.001,
        "top1_agreement": 0.998,
    }
    assert found == pytest.approx(expected)
    mean_kl = summarize_scores(scores)["mean_kl"]
    assert mean_kl.low == 0.0
    assert mean_kl.high is not None
    assert 0.0026 <= mean_kl.high <= 0.0065  # one window of ten, drawn two to five times


def test_full_precision_is_its_own_forward_pass(full: Reference) -> None:
    tokens = torch.tensor(WINDOWS)
    [alone] = score(full, None)
    wanted = F.cross_entropy(
        full.logits(tokens[:, :-1]).transpose(1, 2), tokens[:, 1:], reduction="none"
    )
    np.testing.assert_allclose(alone.nll, wanted.numpy(), rtol=1e-4)
    assert alone.kl is None


def test_pieces_and_batches_change_nothing(
    full: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    [whole] = score(full, full)
    monkeypatch.setattr(evaluate, "PIECE", 5)
    monkeypatch.setattr(evaluate, "BATCH_BYTES", 4 * 96 * 24 * 4)
    assert [len(part) for part in batches(WINDOWS, 96)] == [4, 2]
    [parts] = score(full, full)
    np.testing.assert_allclose(parts.nll, whole.nll, rtol=1e-4)
    assert parts.full_nll is not None
    assert parts.kl is not None
    assert whole.full_nll is not None
    np.testing.assert_allclose(parts.full_nll, whole.full_nll, rtol=1e-4)
    assert parts.kl.max() < 1e-8
    assert parts.kl.shape == (6, 23)


def test_no_more_than_a_piece_of_logits_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "PIECE", 10)
    session = FixedSession([0.0] * 256)
    candidate = Candidate(session=session, vocab_size=256, full=None)
    score_windows([candidate], WINDOWS, SilentProgress())
    assert session.calls == [0, 10, 10, 3] * 6


def test_progress_ends_where_it_said(full: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "BATCH_BYTES", 4 * 96 * 24 * 4)
    progress = CountingProgress()
    score_windows([Candidate(session=None, vocab_size=256, full=full)], WINDOWS, progress)
    assert progress.done == progress.total == 6 + 2 * 2


def test_a_model_against_itself_differs_by_nothing(
    full: Reference, debug_quantized: QuantizedCheckpoint
) -> None:
    quantized = Reference(debug_quantized.config, DequantizedSource(debug_quantized.weights))
    first, second = score(full, quantized, quantized)
    assert summarize_scores(first)["mean_kl"].value > 1e-3
    for found in summarize_difference(first, second).values():
        assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("fault", ["swapped nibbles", "wrong Q permutation"])
def test_a_planted_fault_shows_up(
    full: Reference, debug_quantized: QuantizedCheckpoint, fault: str
) -> None:
    models = candidates(debug_quantized.config, debug_quantized.weights, NONE)
    right, wrong = score(full, models["none"], models[fault])
    found = summarize_difference(right, wrong)
    assert found["mean_kl"].low is not None
    assert found["mean_kl"].low > 0
    assert found["top1_agreement"].value < 0


def test_only_what_both_have_is_compared(full: Reference) -> None:
    alone, held = score(full, None, full)
    assert set(summarize_difference(alone, held)) == {"perplexity"}
    difference = summarize_difference(alone, held)["perplexity"].value
    assert difference == pytest.approx(0, abs=1e-3 * summarize_scores(alone)["perplexity"].value)


@pytest.mark.parametrize("against", [True, False])
@pytest.mark.parametrize(
    ("logits", "message"), [([np.nan] * 256, "NaN or infinity"), ([0.0] * 255, "its head is not")]
)
def test_broken_logits_are_a_failed_check(
    full: Reference, logits: list[float], message: str, against: bool
) -> None:
    given: Any = FixedSession(logits)
    candidate = Candidate(session=given, vocab_size=256, full=full if against else None)
    with pytest.raises(CheckFailedError, match=message):
        score_windows([candidate], WINDOWS, SilentProgress())
