"""The artifact's rows of one block against the reference's, rounding boundaries explained.

Shape legend: T tokens, D hidden, Q query_size, V vocab, B trials of one row, F intermediate.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llama_edge.core.artifact import ActivationQuantization
from llama_edge.gate.rounding import (
    TIE_STEPS,
    Flips,
    RowRun,
    StagedRow,
    Target,
    border_flips,
    explain_row,
    target_of,
    with_flips,
)
from llama_edge.gate.teacher import empty_cache
from llama_edge.models.reference import KVCache, Reference

#: Stands for the error of a row that holds NaN or infinity, so that reports stay plain JSON.
BROKEN: Final = 1e9
#: After so many rows that no flips explain, a block is wrong and the search is over.
_MAX_UNEXPLAINED: Final = 4
#: Of the codes of a row, those that may fall the other way; with more rows out of tolerance than
#: this makes likely, flips are not what is wrong. Measured with ONNX Runtime at level 4, whose
#: steps are the finest: with 2688 codes a row (SmolLM2, 30 layers) 6.7e-6, 2.8e-5 in the worst
#: block (8 rows of 106); with 12288 (first block, random weights of Llama 3.2 1B's shape) 1.9e-5
#: (47 rows of 229); with 14336 (3B's shape) 2.2e-5 (63 rows of 229).
MAX_FLIP_RATE: Final = 1e-4
#: By so many standard deviations may more rows be out of tolerance than are likely.
_SUSPECT_DEVIATIONS: Final = 3.0
#: Attention's rows are explained from this share of the limit on: a flip in one token's key or
#: value can disturb later tokens more than its own.
_ATTENTION_SHARE: Final = 0.1

Errors = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class RowErrors:
    """Relative errors (T,) as they are, and with explained flips taken back."""

    raw: Errors
    explained: Errors
    #: codes that fell the other way
    flips: int


def relative_errors(candidate: Tensor, reference: Tensor) -> Errors:
    """L2(candidate - reference) / L2(reference) per row, float64 (T,).

    A zero reference row is compared with 1; a row that is not finite is `BROKEN`.
    """
    wanted, found = reference.double(), candidate.double()
    norm = wanted.norm(dim=-1)
    error = (found - wanted).norm(dim=-1) / torch.where(norm == 0, torch.ones_like(norm), norm)
    result: Errors = np.nan_to_num(error.numpy(), nan=BROKEN, posinf=BROKEN).clip(max=BROKEN)
    return result


def exact_errors(candidate: Tensor, reference: Tensor) -> RowErrors:
    """Where nothing is rounded there is nothing to explain."""
    raw = relative_errors(candidate, reference)
    return RowErrors(raw, raw, 0)


def unrounded(model: Reference) -> Reference:
    """Its stages give a linear's input as it is before rounding."""
    return Reference(model.config, model.source, ActivationQuantization.NONE, model.kv_cache)


def attention_errors(
    model: Reference, layer: int, x_TD: Tensor, found_TQ: Tensor, limit: float
) -> RowErrors:
    """Of attention's output, token by token: an explained flip is also taken back in the cache."""
    rounded = model.attention_input(layer, x_TD)
    cache = empty_cache(model.config, layer)
    raw = errors = relative_errors(found_TQ, model.attend(layer, rounded, cache))
    if model.activation is ActivationQuantization.NONE:
        return RowErrors(raw, raw, 0)
    exact = unrounded(model).attention_input(layer, x_TD)
    count = unexplained = 0
    for token in range(len(x_TD)):
        if errors[token] <= limit * _ATTENTION_SHARE or unexplained >= _MAX_UNEXPLAINED:
            continue
        run = _attention_run(model, layer, exact[token], _before(cache, layer, token))
        flips, _ = explain_row(model, run, target_of(found_TQ[token]), limit * _ATTENTION_SHARE)
        if not flips:
            unexplained += 1
            continue
        count += len(flips)
        rounded[token] = with_flips(rounded[token][None], 0, [flips])[0]
        cache = empty_cache(model.config, layer)
        errors = relative_errors(found_TQ, model.attend(layer, rounded, cache))
    return RowErrors(raw, errors, count)


def _before(cache: KVCache, layer: int, token: int) -> tuple[Tensor, Tensor]:
    return cache.keys[layer][:, :token], cache.values[layer][:, :token]


def _attention_run(
    model: Reference, layer: int, unrounded_D: Tensor, earlier: tuple[Tensor, Tensor]
) -> RowRun:
    def run(trials: Sequence[Flips]) -> tuple[Tensor, list[Tensor]]:
        rows = unrounded_D.repeat(len(trials), 1)
        rounded = with_flips(model.quantize_activation(rows), 0, trials)
        keys, values = (part.expand(len(trials), *part.shape) for part in earlier)
        cache = KVCache(keys=[keys] * (layer + 1), values=[values] * (layer + 1))
        return model.attend(layer, rounded[:, None], cache)[:, 0], [rows]

    return run


def mlp_errors(
    model: Reference, layer: int, x_TD: Tensor, attention_TQ: Tensor, found_TD: Tensor, limit: float
) -> RowErrors:
    """Of the second half of a block; its three rounding places are o_proj's, gate's and down's."""
    raw = relative_errors(found_TD, model.mlp_block(layer, x_TD, attention_TQ))
    exact = unrounded(model)

    def behind_o_proj(x_BD: Tensor, rounded_BQ: Tensor) -> tuple[Tensor, Tensor]:
        x_BD = model.after_attention(layer, x_BD, rounded_BQ)
        return x_BD, exact.mlp_input(layer, x_BD)

    def behind_gate(x_BD: Tensor, rounded_BD: Tensor) -> tuple[Tensor, Tensor]:
        return x_BD, exact.mlp_product(layer, rounded_BD)

    def behind_down(x_BD: Tensor, rounded_BF: Tensor) -> tuple[Tensor, Tensor]:
        return x_BD, model.after_mlp(layer, x_BD, rounded_BF)

    def row_run(token: int) -> RowRun:
        stages = (behind_o_proj, behind_gate, behind_down)
        return StagedRow(model, x_TD[token], attention_TQ[token], stages)

    return explain_rows(model, raw, row_run, lambda row: target_of(found_TD[row]), limit)


def head_errors(model: Reference, x_TD: Tensor, found_TV: Tensor, limit: float) -> RowErrors:
    """Of the logits that the head computes; the others must be those of the reference."""
    found_TR = model.computed_logits(found_TV)
    raw = relative_errors(found_TR, model.after_head(model.head_input(x_TD)))
    raw[(model.all_logits(found_TR) != found_TV).any(-1).numpy()] = BROKEN
    exact = unrounded(model).head_input(x_TD)

    def row_run(token: int) -> RowRun:
        def run(trials: Sequence[Flips]) -> tuple[Tensor, list[Tensor]]:
            rows = exact[token].repeat(len(trials), 1)
            rounded = with_flips(model.quantize_activation(rows), 0, trials)
            return model.after_head(rounded), [rows]

        return run

    return explain_rows(model, raw, row_run, lambda row: target_of(found_TR[row]), limit)


def most_suspects(rows: int, codes: int) -> float:
    """How many of `rows` rows flips may touch, where each rounds `codes` values."""
    return _most_rows(rows, MAX_FLIP_RATE * codes)


def _most_rows(rows: int, events: float) -> float:
    """In how many rows something may happen that happens `events` times a row, by chance."""
    share = -math.expm1(-events)
    deviation = math.sqrt(rows * share * (1 - share))
    return max(rows * share + _SUSPECT_DEVIATIONS * deviation, 1.0)


def _too_many(
    model: Reference, row_run: Callable[[int], RowRun], suspects: Sequence[int], rows: int
) -> bool:
    """Whether more rows are out of tolerance than float errors can touch.

    That counts on values anywhere between two boundaries. Where ties are more than chance, values
    are not: rows with a tie are then left out.
    """
    codes = tied = 0
    for found, row in enumerate(suspects):
        _, values = row_run(row)([()])
        codes = sum(value.shape[-1] for value in values)
        if len(suspects) <= most_suspects(rows, codes):
            return False
        tied += any(
            border_flips(model, place, value[0], TIE_STEPS) for place, value in enumerate(values)
        )
        if found + 1 - tied > most_suspects(rows, codes):
            return True
    return tied <= _most_rows(rows, 2 * TIE_STEPS * codes)


def explain_rows(
    model: Reference,
    raw: Errors,
    row_run: Callable[[int], RowRun],
    target: Callable[[int], Target],
    limit: float,
) -> RowErrors:
    """Rows that do not depend on each other."""
    explained, count, unexplained = raw.copy(), 0, 0
    if model.activation is ActivationQuantization.NONE:
        return RowErrors(raw, raw, 0)
    suspects = np.flatnonzero(raw > limit).tolist()
    if suspects and _too_many(model, row_run, suspects, len(raw)):
        return RowErrors(raw, raw, 0)
    for row in suspects:
        if raw[row] == BROKEN or unexplained >= _MAX_UNEXPLAINED:
            continue
        flips, explained[row] = explain_row(model, row_run(row), target(row), limit)
        count += len(flips)
        unexplained += explained[row] > limit
    return RowErrors(raw, explained, count)
