"""An int8 KV cache against the reference: the rows that go into it, and attention over them.

Codes can't be compared one by one, for a value near a boundary may get either. So the reference's
value before rounding must be where the artifact's code is the nearest: how far it lies outside is
the error. Then attention is computed over the artifact's own rows, where nothing is left to round,
and must agree exactly. So a wrong cache is hidden by no rounding boundary.

Shape legend: T tokens, D hidden, N query heads, K key/value heads, R = N + 2K rows, H head_dim,
Q query_size, B trials of one token.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from llama_edge.core.cache_rows import CacheRows, row_parameters
from llama_edge.gate.block_errors import (
    BROKEN,
    Errors,
    RowErrors,
    exact_errors,
    explain_rows,
    unrounded,
)
from llama_edge.gate.rounding import Flips, RowRun, Target, with_flips
from llama_edge.models.blocks import attention
from llama_edge.models.reference import Reference


def unpack_rows(packed: Tensor) -> CacheRows:
    """`BlockTrace.cache_rows` of one layer (..., H + 2) in its three parts."""
    return CacheRows(packed[..., :-2], packed[..., -2:-1], packed[..., -1:])


def int8_attention_errors(
    model: Reference, layer: int, x_TD: Tensor, rows: CacheRows, found_TQ: Tensor, limit: float
) -> RowErrors:
    """Of the rows (T, R, H) that a block made and of attention's output, the larger one."""
    made = _row_errors(model, layer, x_TD, rows, limit)
    heads, groups = model.config.num_attention_heads, model.config.num_key_value_heads
    queries, keys, values = torch.split(rows.dequantize().transpose(0, 1), [heads, groups, groups])
    attended = exact_errors(found_TQ, attention(queries, keys, values))
    return RowErrors(
        np.maximum(made.raw, attended.raw),
        np.maximum(made.explained, attended.explained),
        made.flips,
    )


def _row_errors(
    model: Reference, layer: int, x_TD: Tensor, rows: CacheRows, limit: float
) -> RowErrors:
    """A flipped code of the norm after which the rows are made is explained, as elsewhere."""
    wanted = _unrounded_rows(model, layer, model.attention_input(layer, x_TD), 0)
    raw = row_distances(wanted, rows)
    normed = unrounded(model).attention_input(layer, x_TD)

    def row_run(token: int) -> RowRun:
        def run(trials: Sequence[Flips]) -> tuple[Tensor, list[Tensor]]:
            repeated = normed[token].repeat(len(trials), 1)
            rounded = with_flips(model.quantize_activation(repeated), 0, trials)
            return _unrounded_rows(model, layer, rounded[:, None], token)[:, 0], [repeated]

        return run

    def target(token: int) -> Target:
        one = CacheRows(rows.codes[token], rows.steps[token], rows.zero_points[token])
        return Target(one.dequantize(), lambda outputs: row_distances(outputs, one).tolist())

    return explain_rows(model, raw, row_run, target, limit)


def _unrounded_rows(model: Reference, layer: int, normed: Tensor, start: int) -> Tensor:
    """(..., T, D) to (..., T, R, H): queries, keys and values before they are rounded."""
    parts = model.queries_keys_values(layer, normed, start)
    return torch.cat(parts, dim=-3).transpose(-3, -2)


def row_distances(x: Tensor, found: CacheRows) -> Errors:
    """How far float rows are from those that `found` is right for, (B, R, H) to (B,).

    Per row, relative to its length: codes by how far the value lies outside what rounds to them,
    the zero point likewise, and the step by its relative error. The worst row of a token counts;
    a row that is not finite is `BROKEN`.
    """
    steps, zero_points = row_parameters(x)
    places = (x / found.steps + found.zero_points).clamp(-128.0, 127.0)
    codes = _outside(places, found.codes).square().sum(-1, keepdim=True)
    zeros = _outside(zero_points, found.zero_points).square()
    length = x.double().norm(dim=-1, keepdim=True)
    length = torch.where(length == 0, torch.ones_like(length), length)
    rounding = (codes + zeros).sqrt() * found.steps / length
    error = torch.hypot(rounding, found.steps / steps - 1)[..., 0].amax(-1)
    result: Errors = np.nan_to_num(error.numpy(), nan=BROKEN, posinf=BROKEN).clip(max=BROKEN)
    return result


def _outside(value: Tensor, code: Tensor) -> Tensor:
    """Steps from `value` to the interval that rounds to `code`, float64."""
    return ((value.double() - code).abs() - 0.5).clamp(min=0.0)
