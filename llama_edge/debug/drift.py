"""How far an artifact's residual stream has left another network's, layer by layer.

Every token counts the same: rows are divided by their length, since a few tokens of a Llama are a
thousand times longer than the others. After a rotation (SpinQuant's R1) the two streams differ by
an orthogonal matrix that no file holds, so the one that fits best is taken out first: what is left
is at most the true distance.

Shape legend: T tokens, D hidden.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from llama_edge.debug.operators import snr_db
from llama_edge.gate.block_errors import relative_errors
from llama_edge.gate.teacher import with_source
from llama_edge.models.reference import KVCache, Reference
from llama_edge.models.sources import CachedSource


def residual_streams(model: Reference, tokens: Sequence[int]) -> Iterator[Tensor]:
    """The stream (T, D) entering each layer, and leaving the last; one layer in memory."""
    x_TD = model.embed(torch.tensor(list(tokens)))
    cache = KVCache()
    yield x_TD
    for layer in range(model.config.num_hidden_layers):
        one = with_source(model, CachedSource(model.source))
        attended = one.attention_block(layer, x_TD, cache)
        x_TD = one.mlp_block(layer, x_TD, attended)
        yield x_TD


def stream_snr_db(found_TD: Tensor, other_TD: Tensor, *, aligned: bool) -> float:
    """Signal to noise of one stream against another, dB; `aligned` takes a rotation out first."""
    found, other = _unit_rows(found_TD), _unit_rows(other_TD)
    if aligned:
        found = found @ _best_rotation(found, other)
    return snr_db(np.asarray(relative_errors(found, other)))


def _unit_rows(x_TD: Tensor) -> Tensor:
    wide = x_TD.double()
    rows: Tensor = wide / wide.norm(dim=-1, keepdim=True).clamp(min=1e-30)
    return rows


def _best_rotation(found_TD: Tensor, other_TD: Tensor) -> Tensor:
    """Orthogonal Procrustes (Schoenemann, 1966): U V^T of the SVD of found^T other."""
    u, _, vh = torch.linalg.svd(found_TD.T @ other_TD, full_matrices=False)
    rotation: Tensor = u @ vh
    return rotation
