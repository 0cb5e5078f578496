"""A stand-in for a written artifact: the reference, right or with one planted fault."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from llama_edge.core.artifact import ActivationQuantization
from llama_edge.core.cache_rows import quantize_rows
from llama_edge.core.model_config import ModelConfig
from llama_edge.core.packing import QuantizedTensor, pack_int4, unpack_int4
from llama_edge.core.quantized import QuantizedWeights
from llama_edge.core.session import BlockTrace
from llama_edge.models.network import Node
from llama_edge.models.reference import KVCache, Reference
from llama_edge.models.sources import CachedSource, DequantizedSource


def trace_model(model: Reference, calls: Sequence[Sequence[int]]) -> BlockTrace:
    """What a runtime's `trace` would report if this model were the artifact."""
    layers = model.config.num_hidden_layers
    hidden: list[list[Tensor]] = [[] for _ in range(layers + 1)]
    attention: list[list[Tensor]] = [[] for _ in range(layers)]
    rows: list[list[Tensor]] = [[] for _ in range(layers)]
    logits: list[Tensor] = []
    cache = KVCache()
    with torch.no_grad():
        for call in calls:
            x_TD = model.embed(torch.tensor(call))
            for layer in range(layers):
                hidden[layer].append(x_TD)
                if model.kv_cache.rotates_heads:
                    start = cache.keys[layer].shape[1] if layer < len(cache.keys) else 0
                    rows[layer].append(cache_rows(model, layer, x_TD, start))
                attended = model.attention_block(layer, x_TD, cache)
                attention[layer].append(attended)
                x_TD = model.mlp_block(layer, x_TD, attended)
            hidden[layers].append(x_TD)
            logits.append(model.head(x_TD[-1:])[0])
    return BlockTrace(
        tokens=tuple(token for call in calls for token in call),
        calls=tuple(len(call) for call in calls),
        hidden=tuple(torch.cat(rows).numpy() for rows in hidden),
        attention=tuple(torch.cat(rows).numpy() for rows in attention),
        logits=torch.stack(logits).numpy(),
        cache_rows=tuple(torch.cat(parts).numpy() for parts in rows if parts),
    )


def cache_rows(model: Reference, layer: int, x_TD: Tensor, start: int) -> Tensor:
    """As `BlockTrace.cache_rows`."""
    parts = model.queries_keys_values(layer, model.attention_input(layer, x_TD), start)
    rows = quantize_rows(torch.cat(parts).transpose(0, 1))
    return torch.cat((rows.codes, rows.steps, rows.zero_points), dim=-1)


class OtherOrder(Reference):
    """The same network by another order of float operations: what a right artifact amounts to."""

    def _linear(self, x: Tensor, node: Node) -> Tensor:
        weight = self.source.matrix(node.weight)
        half = weight.shape[1] // 2
        first = functional.linear(x[..., :half], weight[:, :half])
        return first + functional.linear(x[..., half:], weight[:, half:])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        wide = x.double()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.config.rms_norm_eps)
        return (wide * scale).float() * self.source.vector(name)


class ChangedWeights:
    """`QuantizedWeights` with one matrix replaced."""

    def __init__(
        self,
        weights: QuantizedWeights,
        name: str,
        change: Callable[[QuantizedTensor], QuantizedTensor],
    ) -> None:
        self._weights, self._name, self._change = weights, name, change

    def quantized_names(self) -> tuple[str, ...]:
        return self._weights.quantized_names()

    def quantized(self, name: str) -> QuantizedTensor:
        value = self._weights.quantized(name)
        return self._change(value) if name == self._name else value

    def vector(self, name: str) -> Tensor:
        return self._weights.vector(name)


def swap_nibbles(value: QuantizedTensor) -> QuantizedTensor:
    packed = pack_int4(value.codes)
    return replace(value, codes=unpack_int4(((packed & 0xF) << 4) | (packed >> 4)))


def scale_up(value: QuantizedTensor) -> QuantizedTensor:
    """x 1.05, by hand since bfloat16 has steps of 0.8 %."""
    return replace(value, scales=(value.scales.float() * 1.05).to(torch.bfloat16))


def interleave_heads(config: ModelConfig) -> Callable[[QuantizedTensor], QuantizedTensor]:
    """Rows of each head as Meta orders them, where Hugging Face's order is due."""
    half = config.head_dim // 2
    pairs = [row for pair in range(half) for row in (pair, pair + half)]

    def change(value: QuantizedTensor) -> QuantizedTensor:
        heads = value.shape[0] // config.head_dim
        rows = [head * config.head_dim + row for head in range(heads) for row in pairs]
        return value.rows(torch.tensor(rows))

    return change


class CacheOnePlaceOff(OtherOrder):
    """Decode steps find an earlier token's keys and values one place from where they belong."""

    def attention_block(self, layer: int, x_TD: Tensor, cache: KVCache) -> Tensor:
        if layer < len(cache.keys) and x_TD.shape[0] == 1:
            # Lengths stay, so positions are right: the last token known is lost, the one before
            # it is there twice.
            for store in (cache.keys, cache.values):
                kept = store[layer]
                store[layer] = torch.cat((kept[:, :-1], kept[:, -2:-1]), dim=1)
        return super().attention_block(layer, x_TD, cache)


class NoResidual(OtherOrder):
    """The second block's attention output is not added to the stream."""

    def mlp_block(self, layer: int, x_TD: Tensor, attention_TQ: Tensor) -> Tensor:
        out = super().mlp_block(layer, x_TD, attention_TQ)
        return out - x_TD if layer == 1 else out


def candidates(
    config: ModelConfig, weights: QuantizedWeights, activation: ActivationQuantization
) -> Mapping[str, Reference]:
    """By name of the planted fault; `none` is right."""

    def model(
        kind: type[Reference] = OtherOrder,
        config: ModelConfig = config,
        weights: QuantizedWeights = weights,
    ) -> Reference:
        return kind(config, CachedSource(DequantizedSource(weights)), activation)

    def changed(
        part: str, change: Callable[[QuantizedTensor], QuantizedTensor], layer: int = 1
    ) -> Reference:
        name = f"model.layers.{layer}.{part}.weight"
        return model(weights=ChangedWeights(weights, name, change))

    return {
        "none": model(),
        "wrong rope theta": model(config=replace(config, rope_theta=50000.0)),
        "swapped nibbles": changed("mlp.up_proj", swap_nibbles),
        "scale x 1.05": changed("mlp.down_proj", scale_up),
        "wrong Q permutation": changed("self_attn.q_proj", interleave_heads(config)),
        "wrong K permutation": changed("self_attn.k_proj", interleave_heads(config), 0),
        "cache one place off": model(CacheOnePlaceOff),
        "wrong eps": model(config=replace(config, rms_norm_eps=1e-3)),
        "no residual": model(NoResidual),
    }


def calls_of(tokens: Sequence[int], continuation: Sequence[int]) -> list[tuple[int, ...]]:
    """One prefill, then single decode steps."""
    return [tuple(tokens), *((token,) for token in continuation)]
