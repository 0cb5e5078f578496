"""Several variants of the reference over several sequences, one layer in memory at a time.

The outer loop runs over layers: each matrix is read and dequantized once for all sequences and for
all variants that share its source. 3B in float32 would need 13 GB; one of its layers needs 0.4.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llama_edge.core.model_config import ModelConfig
from llama_edge.core.progress import Progress
from llama_edge.models.reference import KVCache, Reference
from llama_edge.models.sources import CachedSource, MatrixSource


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One way of running the network; `disturbance` is relative, on the embedding's output."""

    model: Reference
    disturbance: float = 0.0
    seed: int = 0


def empty_cache(config: ModelConfig, layer: int) -> KVCache:
    """A cache that lets `attention_block(layer, ...)` start a sequence without earlier layers."""
    nothing = torch.empty(config.num_key_value_heads, 0, config.head_dim)
    return KVCache(keys=[nothing] * (layer + 1), values=[nothing] * (layer + 1))


def with_source(model: Reference, source: MatrixSource) -> Reference:
    """The same network reading from elsewhere."""
    return Reference(model.config, source, model.activation, model.kv_cache)


def _embed(variant: Variant, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
    """Each sequence's embedding (T, D); the table is read once."""
    every_token = torch.tensor([token for tokens in sequences for token in tokens])
    embedded = variant.model.embed(every_token)
    if variant.disturbance:
        generator = torch.Generator().manual_seed(variant.seed)
        noise = torch.randn(embedded.shape, generator=generator)
        embedded = embedded * (1 + variant.disturbance * noise)
    return list(torch.split(embedded, [len(tokens) for tokens in sequences]))


@torch.no_grad()
def final_hidden(
    variants: Sequence[Variant], sequences: Sequence[Sequence[int]], progress: Progress
) -> list[list[Tensor]]:
    """What leaves the last block, (T, D) per sequence, for each variant; pass it to `head`.

    `progress` advances once per layer.
    """
    hidden = [_embed(variant, sequences) for variant in variants]
    config = variants[0].model.config
    for layer in range(config.num_hidden_layers):
        for source in _distinct_sources(variants):
            cached = CachedSource(source)
            for variant, states in zip(variants, hidden, strict=True):
                if variant.model.source is not source:
                    continue
                model = with_source(variant.model, cached)
                for index, x_TD in enumerate(states):
                    attended = model.attention_block(layer, x_TD, empty_cache(config, layer))
                    states[index] = model.mlp_block(layer, x_TD, attended)
        progress.advance()
    return hidden


def _distinct_sources(variants: Sequence[Variant]) -> list[MatrixSource]:
    found: list[MatrixSource] = []
    for variant in variants:
        if not any(source is variant.model.source for source in found):
            found.append(variant.model.source)
    return found
