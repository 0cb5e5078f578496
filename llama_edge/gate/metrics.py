"""How far apart two sets of logits are; float64 throughout, natural logarithms (nats).

Shape legend: T positions, V vocab.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llama_edge.core.errors import CheckFailedError
from llama_edge.core.session import FloatArray

Float64Array = NDArray[np.float64]


def log_softmax(logits_TV: FloatArray) -> Float64Array:
    """Log-probabilities (T, V) in float64."""
    shifted = logits_TV.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    log_sum: Float64Array = np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    result: Float64Array = shifted - log_sum
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A candidate's logits against a reference's, position by position; arrays are (T,)."""

    #: KL(reference || candidate), nats
    kl: Float64Array
    #: whether both have the same most probable token
    same_top1: NDArray[np.bool_]
    #: reference's log-probability of its own top token minus that of the candidate's
    top1_gap: Float64Array
    #: -log p of the token that follows in the text; NaN after the last position
    reference_nll: Float64Array
    candidate_nll: Float64Array


def compare(
    reference_TV: FloatArray,
    candidate_TV: FloatArray,
    tokens: Sequence[int],
    following: int | None = None,
) -> Comparison:
    """Compare logits (T, V) after each of `tokens` (T,), row by row to bound memory.

    `following` is the token that comes after the last of `tokens`, where the text goes on.

    Raises:
        CheckFailedError: The candidate's logits hold NaN or infinity.
    """
    rows = len(tokens)
    assert reference_TV.shape == candidate_TV.shape
    assert reference_TV.shape[0] == rows
    targets = [*tokens[1:], *(() if following is None else (following,))]
    kl, gap = np.empty(rows), np.empty(rows)
    same = np.empty(rows, dtype=np.bool_)
    nll = np.full((2, rows), np.nan)
    for row in range(rows):
        _require_finite(candidate_TV[row], row)
        reference = log_softmax(reference_TV[row : row + 1])[0]
        candidate = log_softmax(candidate_TV[row : row + 1])[0]
        # Rounding can leave -1e-17 where both are the same.
        kl[row] = max(0.0, float(np.exp(reference) @ (reference - candidate)))
        chosen = candidate.argmax()
        gap[row] = reference.max() - reference[chosen]
        same[row] = chosen == reference.argmax()
        if row < len(targets):
            nll[:, row] = -reference[targets[row]], -candidate[targets[row]]
    return Comparison(
        kl=kl, same_top1=same, top1_gap=gap, reference_nll=nll[0], candidate_nll=nll[1]
    )


def _require_finite(logits_V: FloatArray, row: int) -> None:
    if not np.isfinite(logits_V).all():
        raise CheckFailedError(
            f"the logits after token {row} hold NaN or infinity; the artifact computes outside "
            "the range of its number format, so do not ship it"
        )


def negative_log_likelihood(logits_TV: FloatArray, targets: Sequence[int]) -> Float64Array:
    """-log p (T,) of each of `targets` under the logits (T, V) before it, nats.

    Raises:
        CheckFailedError: The logits hold NaN or infinity.
    """
    nll = np.empty(len(targets))
    for row, target in enumerate(targets):
        _require_finite(logits_TV[row], row)
        nll[row] = -log_softmax(logits_TV[row : row + 1])[0, target]
    return nll


def concatenate(parts: Sequence[Comparison]) -> Comparison:
    """The positions of several sequences as one."""
    return Comparison(
        kl=np.concatenate([part.kl for part in parts]),
        same_top1=np.concatenate([part.same_top1 for part in parts]),
        top1_gap=np.concatenate([part.top1_gap for part in parts]),
        reference_nll=np.concatenate([part.reference_nll for part in parts]),
        candidate_nll=np.concatenate([part.candidate_nll for part in parts]),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """The numbers of a `Comparison` that reports show."""

    positions: int
    mean_kl: float
    p99_kl: float
    p999_kl: float
    max_kl: float
    top1_agreement: float
    #: exp of the mean difference of -log p over the text: 1 is equally good, 1.1 is 10 % worse
    perplexity_ratio: float


def summarize(comparison: Comparison) -> Divergence:
    """Mean, tail and agreement over all positions; percentiles interpolate linearly."""
    kl = comparison.kl
    known = ~np.isnan(comparison.reference_nll)
    difference = comparison.candidate_nll[known] - comparison.reference_nll[known]
    mean_difference = float(difference.mean()) if known.any() else 0.0
    return Divergence(
        positions=len(kl),
        mean_kl=float(kl.mean()),
        p99_kl=float(np.percentile(kl, 99)),
        p999_kl=float(np.percentile(kl, 99.9)),
        max_kl=float(kl.max()),
        top1_agreement=float(comparison.same_top1.mean()),
        perplexity_ratio=math.exp(min(mean_difference, 700.0)),
    )
