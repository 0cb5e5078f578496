"""Perplexity and the distance to full precision on windows of text.

A window is read from an empty cache; every token of it but the first is predicted once. Memory is
bounded: logits exist for one piece of one window at a time, hidden states for one batch of windows,
and the full-precision network is in memory one layer at a time.

Shape legend: W windows, P predicted positions of a window, T tokens of a piece, D hidden, V vocab.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Self

import numpy as np
import torch
from torch import Tensor

from llama_edge.core.errors import CheckFailedError, TextError
from llama_edge.core.progress import Progress
from llama_edge.core.session import FloatArray, Session
from llama_edge.gate.intervals import Estimate, WindowIndices, estimate
from llama_edge.gate.metrics import Float64Array, compare, negative_log_likelihood
from llama_edge.gate.teacher import Variant, final_hidden, with_source
from llama_edge.models.reference import Reference
from llama_edge.models.sources import CachedSource

#: Tokens whose logits are in memory at once: 66 MB per model at a vocabulary of 128 K.
PIECE: Final = 128
#: Hidden states of one batch of windows; each batch reads the full-precision weights once.
BATCH_BYTES: Final = 256 << 20
#: Of the bootstrap's draws.
SEED: Final = 0


def cut_windows(
    where: str, tokens: Sequence[int], length: int, bos: int | None, limit: int | None
) -> list[tuple[int, ...]]:
    """Consecutive windows of `length` tokens from the start of a text; the rest is not used.

    Args:
        where: The text's name, for messages.
        tokens: The whole text, without BOS.
        length: Tokens of a window, its BOS included.
        bos: What every window begins with; None if the model wants no BOS.
        limit: At most so many windows; None takes all.

    Raises:
        TextError: The text is too short for one window.
    """
    begin = () if bos is None else (bos,)
    step = length - len(begin)
    count = len(tokens) // step
    if count == 0:
        raise TextError(
            f"{where}: {len(tokens)} tokens, and one window takes {step}; "
            "give a longer text or a smaller --window"
        )
    used = count if limit is None else min(count, limit)
    return [(*begin, *tokens[index * step : (index + 1) * step]) for index in range(used)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What is evaluated. Without a session it is full precision itself."""

    session: Session | None
    vocab_size: int
    #: what it is compared with; None when that model is not available
    full: Reference | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """One candidate over windows of one length; arrays are (W, P), nats."""

    nll: Float64Array
    #: the next three are None without a full-precision model to compare it with
    full_nll: Float64Array | None
    kl: Float64Array | None
    same_top1: Float64Array | None

    @classmethod
    def join(cls, parts: Sequence[Self], axis: int) -> Self:
        """One after the other: windows along axis 0, pieces of a window along axis 1."""

        def joined(arrays: Sequence[Float64Array | None]) -> Float64Array | None:
            known = [array for array in arrays if array is not None]
            return np.concatenate(known, axis=axis) if known else None

        return cls(
            nll=np.concatenate([part.nll for part in parts], axis=axis),
            full_nll=joined([part.full_nll for part in parts]),
            kl=joined([part.kl for part in parts]),
            same_top1=joined([part.same_top1 for part in parts]),
        )

    def take(self, windows: slice) -> Self:
        """Some of the windows."""

        def taken(array: Float64Array | None) -> Float64Array | None:
            return None if array is None else array[windows]

        return type(self)(
            nll=self.nll[windows],
            full_nll=taken(self.full_nll),
            kl=taken(self.kl),
            same_top1=taken(self.same_top1),
        )


Metric = Callable[[Scores, WindowIndices], float]


def _mean(array: Float64Array, windows: WindowIndices) -> float:
    return float(array[windows].mean())


def _perplexity(scores: Scores, windows: WindowIndices) -> float:
    return math.exp(min(_mean(scores.nll, windows), 700.0))


def _perplexity_ratio(scores: Scores, windows: WindowIndices) -> float:
    assert scores.full_nll is not None
    difference = _mean(scores.nll, windows) - _mean(scores.full_nll, windows)
    return math.exp(min(difference, 700.0))


def _mean_kl(scores: Scores, windows: WindowIndices) -> float:
    assert scores.kl is not None
    return _mean(scores.kl, windows)


def _kl_percentile(percent: float) -> Metric:
    def statistic(scores: Scores, windows: WindowIndices) -> float:
        assert scores.kl is not None
        return float(np.percentile(scores.kl[windows], percent))

    return statistic


def _top1_agreement(scores: Scores, windows: WindowIndices) -> float:
    assert scores.same_top1 is not None
    return _mean(scores.same_top1, windows)


#: Every number that is reported; all but the first are relative to full precision.
METRICS: Final[Mapping[str, Metric]] = {
    "perplexity": _perplexity,
    "perplexity_ratio": _perplexity_ratio,
    "mean_kl": _mean_kl,
    "p99_kl": _kl_percentile(99),
    "p999_kl": _kl_percentile(99.9),
    "top1_agreement": _top1_agreement,
}


def _known_metrics(scores: Scores) -> tuple[str, ...]:
    return tuple(METRICS) if scores.kl is not None else ("perplexity",)


def summarize_scores(scores: Scores) -> dict[str, Estimate]:
    """Each metric that these scores allow, over all positions of all windows."""
    return {
        name: estimate(partial(METRICS[name], scores), len(scores.nll), SEED)
        for name in _known_metrics(scores)
    }


def summarize_difference(first: Scores, second: Scores) -> dict[str, Estimate]:
    """Second minus first for each metric that both have; the draws of windows are the same."""

    def difference(metric: Metric, windows: WindowIndices) -> float:
        return metric(second, windows) - metric(first, windows)

    return {
        name: estimate(partial(difference, METRICS[name]), len(first.nll), SEED)
        for name in _known_metrics(first)
        if name in _known_metrics(second)
    }


def batches(windows: Sequence[tuple[int, ...]], hidden_size: int) -> Iterator[range]:
    """Indices of windows whose hidden states fit in `BATCH_BYTES` together."""
    size = max(1, BATCH_BYTES // (4 * hidden_size * max(map(len, windows))))
    for start in range(0, len(windows), size):
        yield range(start, min(start + size, len(windows)))


class _FullPrecision:
    """One full-precision network, and what left its last block for the current batch."""

    def __init__(self, model: Reference) -> None:
        self.model = model
        self._head = with_source(model, CachedSource(model.source))
        self._hidden: list[Tensor] = []

    def read(self, windows: Sequence[tuple[int, ...]], progress: Progress) -> None:
        self._hidden.clear()
        [self._hidden] = final_hidden([Variant(model=self.model)], windows, progress)

    @torch.no_grad()
    def logits(self, index: int, piece: slice) -> FloatArray:
        logits: FloatArray = self._head.head(self._hidden[index][piece]).numpy()
        return logits


def score_windows(
    candidates: Sequence[Candidate], windows: Sequence[tuple[int, ...]], progress: Progress
) -> list[Scores]:
    """Run every candidate over the same windows, which have one length.

    Args:
        candidates: Those with the same `full` object share its forward pass.
        windows: Token ids.
        progress: Advances once per window, and once per layer of each batch.

    Raises:
        CheckFailedError: Logits are not finite or of the wrong width.
        SessionError: A window does not fit a session's context.
    """
    models = {id(one.full): one.full for one in candidates if one.full is not None}
    precise = {key: _FullPrecision(model) for key, model in models.items()}
    widest = max((model.config.hidden_size for model in models.values()), default=1)
    layers = sum(model.config.num_hidden_layers for model in models.values())
    parts = list(batches(windows, widest))
    progress.start("evaluate", len(windows) + len(parts) * layers)
    found = []
    for batch in parts:
        texts = [windows[index] for index in batch]
        for full in precise.values():
            full.read(texts, progress)
        for place, tokens in enumerate(texts):
            found.append(_score_window(candidates, precise, place, tokens))
            progress.advance()
    return [Scores.join(scores, axis=0) for scores in zip(*found, strict=True)]


def _score_window(
    candidates: Sequence[Candidate],
    precise: Mapping[int, _FullPrecision],
    place: int,
    tokens: tuple[int, ...],
) -> list[Scores]:
    """Each candidate's scores (1, P)."""
    for candidate in candidates:
        if candidate.session is not None:
            candidate.session.reset()
    pieces = []
    for start in range(0, len(tokens) - 1, PIECE):
        piece = slice(start, min(start + PIECE, len(tokens) - 1))
        logits = {key: full.logits(place, piece) for key, full in precise.items()}
        pieces.append(
            [
                _score_piece(one, logits.get(id(one.full)), tokens[piece], tokens[piece.stop])
                for one in candidates
            ]
        )
    return [Scores.join(scores, axis=1) for scores in zip(*pieces, strict=True)]


def _score_piece(
    candidate: Candidate, full_TV: FloatArray | None, tokens: tuple[int, ...], following: int
) -> Scores:
    targets = (*tokens[1:], following)
    if candidate.session is None:
        assert full_TV is not None, "a candidate has a session or is full precision"
        return _scores(negative_log_likelihood(full_TV, targets))
    logits_TV = candidate.session.prefill_logits(tokens)
    if logits_TV.shape != (len(tokens), candidate.vocab_size):
        raise CheckFailedError(
            f"the artifact's logits have shape {logits_TV.shape}; "
            f"{(len(tokens), candidate.vocab_size)} is needed: its head is not this model's"
        )
    if full_TV is None:
        return _scores(negative_log_likelihood(logits_TV, targets))
    found = compare(full_TV, logits_TV, tokens, following)
    return Scores(
        nll=found.candidate_nll[None],
        full_nll=found.reference_nll[None],
        kl=found.kl[None],
        same_top1=found.same_top1[None].astype(np.float64),
    )


def _scores(nll: Float64Array) -> Scores:
    return Scores(nll=nll[None], full_nll=None, kl=None, same_top1=None)
