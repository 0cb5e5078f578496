"""The reference: one eager Llama in plain PyTorch, block by block, with a KV cache.

Every lowering is held against this file. A block is two halves, because that is where a written
artifact shows its values: `attention_block` (norm, QKV, RoPE, attention) and `mlp_block`
(o_proj, residual, norm, SwiGLU, residual). Layout and names follow Hugging Face's
`modeling_llama.py`: RoPE turns the two halves of a head against each other.

Shape legend: T tokens, D hidden, N query heads, K key/value heads, H head_dim, Q = N * H,
S tokens in the cache, V vocab, F intermediate. Every function also takes leading batch axes, for
sequences of one length.
"""

import math
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from llama_edge.core.cache_rows import quantize_rows
from llama_edge.core.hadamard import hadamard, rotate_product
from llama_edge.core.model_config import ModelConfig, RopeScaling
from llama_edge.core.types import ActivationQuantization, KVCacheDtype, QuantizedWeights, Weights
from llama_edge.core.weight_names import (
    EMBEDDING,
    FINAL_NORM,
    HEAD_ROTATION,
    LM_HEAD,
    block_weight,
)

#: ONNX Runtime quantizes activations in blocks of the weight's block size, which is ours.
ACTIVATION_BLOCK = 32


class MatrixSource(Protocol):
    """Where the reference takes its weights from; every result is float32."""

    def matrix(self, name: str) -> Tensor:
        """A linear's weight (out_features, in_features)."""
        ...

    def vector(self, name: str) -> Tensor:
        """A norm's weight (D,)."""
        ...

    def embedding_rows(self, tokens_T: Tensor) -> Tensor:
        """Rows of the embedding (T, D)."""
        ...


class FullPrecisionSource:
    """The checkpoint's own weights, read from disk each time."""

    def __init__(self, config: ModelConfig, weights: Weights) -> None:
        self._tied = config.tie_word_embeddings
        self._weights = weights

    def matrix(self, name: str) -> Tensor:
        """See `MatrixSource`; a tied head is the embedding."""
        return self._weights.read(EMBEDDING if self._tied and name == LM_HEAD else name)

    def vector(self, name: str) -> Tensor:
        """See `MatrixSource`."""
        return self._weights.read(name)

    def embedding_rows(self, tokens_T: Tensor) -> Tensor:
        """See `MatrixSource`."""
        return self._weights.read(EMBEDDING)[tokens_T]


class DequantizedSource:
    """Codes times scales."""

    def __init__(self, weights: QuantizedWeights) -> None:
        self._weights = weights

    def matrix(self, name: str) -> Tensor:
        """See `MatrixSource`."""
        if name == HEAD_ROTATION:
            return self._weights.vector(name)
        return self._weights.quantized(name).dequantize()

    def vector(self, name: str) -> Tensor:
        """See `MatrixSource`."""
        return self._weights.vector(name)

    def embedding_rows(self, tokens_T: Tensor) -> Tensor:
        """See `MatrixSource`."""
        return self._weights.quantized(EMBEDDING).rows(tokens_T).dequantize()


class CachedSource:
    """Keeps what it has read: for one layer of many tokens, or for decoding token by token.

    Args:
        source: Where weights come from.
        limit_bytes: Of what is kept; what comes later is read again each time. None keeps all.
    """

    def __init__(self, source: MatrixSource, limit_bytes: int | None = None) -> None:
        self._source = source
        self._limit = limit_bytes
        self._size = 0
        self._matrices: dict[str, Tensor] = {}
        self._vectors: dict[str, Tensor] = {}

    def matrix(self, name: str) -> Tensor:
        """See `MatrixSource`."""
        if name in self._matrices:
            return self._matrices[name]
        found = self._source.matrix(name)
        if self._limit is None or self._size + found.nbytes <= self._limit:
            self._matrices[name] = found
            self._size += found.nbytes
        return found

    def vector(self, name: str) -> Tensor:
        """See `MatrixSource`."""
        if name not in self._vectors:
            self._vectors[name] = self._source.vector(name)
        return self._vectors[name]

    def embedding_rows(self, tokens_T: Tensor) -> Tensor:
        """See `MatrixSource`."""
        return self.matrix(EMBEDDING)[tokens_T]


@dataclass
class KVCache:
    """Keys and values of every layer, (K, S, H) float32 each; grows by concatenation.

    Of an int8 cache these are the dequantized rows.
    """

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Tokens held by the last layer: those of every completed forward pass."""
        return self.keys[-1].shape[-2] if self.keys else 0


def inverse_frequencies(config: ModelConfig) -> Tensor:
    """RoPE's angular frequencies, float32 (H / 2,), after Llama 3's scaling.

    Source: `_compute_llama3_parameters` in transformers' `modeling_rope_utils.py`.
    """
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    frequencies = 1.0 / (config.rope_theta**exponents)
    if config.rope_scaling is None:
        return frequencies
    return frequencies / llama3_frequency_factors(frequencies, config.rope_scaling)


def llama3_frequency_factors(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """What Llama 3 divides each frequency by: 1 for short waves, `factor` for long ones."""
    wavelengths = 2 * math.pi / frequencies
    context = scaling.original_max_position_embeddings
    smooth = (context / wavelengths - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    smooth = smooth.clamp(0.0, 1.0)
    return 1.0 / ((1.0 - smooth) / scaling.factor + smooth)


def rope_tables(config: ModelConfig, start: int, length: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of positions start .. start + length - 1, float32 (length, H / 2)."""
    positions = torch.arange(start, start + length).float()
    angles = torch.outer(positions, inverse_frequencies(config))
    return angles.cos(), angles.sin()


def apply_rope(x_NTH: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the first half of each head against its second half; cos and sin are (T, H / 2)."""
    first, second = x_NTH.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x / rms(x) * weight` over the last dimension."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def attention(q_NTH: Tensor, k_KSH: Tensor, v_KSH: Tensor) -> Tensor:
    """Causal grouped-query attention; the last T of S positions ask. Returns (T, Q)."""
    heads, tokens, head_dim = q_NTH.shape[-3:]
    groups, length = k_KSH.shape[-3:-1]
    # The query heads of one key head ask together, so that no key or value is copied.
    queries = q_NTH.reshape(*q_NTH.shape[:-3], groups, heads // groups * tokens, head_dim)
    scores = queries @ k_KSH.transpose(-1, -2) / math.sqrt(head_dim)
    if tokens > 1:
        asks = torch.arange(length - tokens, length).repeat(heads // groups)[:, None]
        scores = scores.masked_fill(torch.arange(length)[None, :] > asks, -torch.inf)
    out_NTH = (scores.softmax(-1) @ v_KSH).view(q_NTH.shape)
    return out_NTH.transpose(-3, -2).flatten(-2)


def quantize_per_token(x: Tensor) -> Tensor:
    """Round to asymmetric int8 per token and back, as XNNPACK's qdint8 conversion does.

    Source: `xnn_f32_qd8_asymmetric_quantization_params` in XNNPACK: the range includes zero, the
    zero point is nudged to the side with the smaller error and rounded.
    """
    low = x.amin(-1, keepdim=True).clamp(max=0.0)
    high = x.amax(-1, keepdim=True).clamp(min=0.0)
    span = high - low
    scale = torch.where(span == 0, torch.ones_like(span), 255.0 / span)
    low_scaled, high_scaled = low * scale, high * scale
    from_low = -128.0 - low_scaled
    from_high = 127.0 - high_scaled
    zero_point = torch.where((-128.0 + low_scaled) + (127.0 + high_scaled) > 0, from_low, from_high)
    zero_point = zero_point.clamp(-128.0, 127.0).round()
    codes = ((x * scale).round() + zero_point).clamp(-128.0, 127.0)
    return (codes - zero_point) / scale


def quantize_per_block(x: Tensor) -> Tensor:
    """Round to symmetric int8 per 32 inputs and back, as MatMulNBits does at accuracy_level 4.

    Source: `QuantizeARow_CompInt8` in ONNX Runtime's MLAS: scale = max|x| / 127.
    """
    padding = -x.shape[-1] % ACTIVATION_BLOCK
    blocks = F.pad(x, (0, padding)).view(*x.shape[:-1], -1, ACTIVATION_BLOCK)
    peak = blocks.abs().amax(-1, keepdim=True)
    scale = peak / 127.0
    inverse = torch.where(peak == 0, torch.zeros_like(peak), 127.0 / peak)
    rounded: Tensor = (blocks * inverse).round() * scale
    return rounded.flatten(-2)[..., : x.shape[-1]]


class Llama:
    """The reference network over one sequence.

    Args:
        config: The model's shape.
        source: Full-precision or dequantized weights.
        activation: What every linear does to its input first; the embedding is a look-up and
            attention has its own rounding, if any, so neither is touched.
        kv_cache: How keys and values are kept. With int8, queries and keys are turned by a
            Hadamard matrix first (SpinQuant's R3, section 3), and queries are rounded like keys:
            the runtime multiplies codes by codes.
    """

    def __init__(
        self,
        config: ModelConfig,
        source: MatrixSource,
        activation: ActivationQuantization = ActivationQuantization.NONE,
        kv_cache: KVCacheDtype = KVCacheDtype.FLOAT32,
    ) -> None:
        self.config = config
        self.source = source
        self.activation = activation
        self.kv_cache = kv_cache

    def quantize_activation(self, x: Tensor) -> Tensor:
        """The input of a linear, rounded as this artifact's runtime rounds it."""
        if self.activation is ActivationQuantization.INT8_PER_TOKEN:
            return quantize_per_token(x)
        if self.activation is ActivationQuantization.INT8_PER_BLOCK:
            return quantize_per_block(x)
        return x

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.source.matrix(name))

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return rms_norm(x, self.source.vector(name), self.config.rms_norm_eps)

    def embed(self, tokens_T: Tensor) -> Tensor:
        """Rows of the embedding, (T, D), for int64 (T,)."""
        return self.source.embedding_rows(tokens_T)

    def attention_input(self, layer: int, x_TD: Tensor) -> Tensor:
        """What q_proj, k_proj and v_proj multiply: the norm (T, D), rounded."""
        normed = self._norm(x_TD, block_weight(layer, "input_layernorm"))
        return self.quantize_activation(normed)

    def queries_keys_values(
        self, layer: int, normed_TD: Tensor, start: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """QKV, RoPE from position `start` on, and R3: (N, T, H), (K, T, H), (K, T, H)."""
        config = self.config

        def heads(part: str, count: int) -> Tensor:
            out = self._linear(normed_TD, block_weight(layer, part))
            return out.view(*out.shape[:-1], count, config.head_dim).transpose(-3, -2)

        cos, sin = rope_tables(config, start, normed_TD.shape[-2])
        queries = apply_rope(heads("self_attn.q_proj", config.num_attention_heads), cos, sin)
        keys = apply_rope(heads("self_attn.k_proj", config.num_key_value_heads), cos, sin)
        if self.kv_cache is KVCacheDtype.INT8:
            rotation = hadamard(config.head_dim).T
            queries, keys = queries @ rotation, keys @ rotation
        return queries, keys, heads("self_attn.v_proj", config.num_key_value_heads)

    def _kept(self, x: Tensor) -> Tensor:
        """A row as attention finds it in the cache."""
        return quantize_rows(x).dequantize() if self.kv_cache is KVCacheDtype.INT8 else x

    def attend(self, layer: int, normed_TD: Tensor, cache: KVCache) -> Tensor:
        """QKV, RoPE and attention (T, Q); appends this layer's keys and values to the cache."""
        known = cache.keys[layer].shape[-2] if layer < len(cache.keys) else 0
        parts = self.queries_keys_values(layer, normed_TD, known)
        queries, keys, values = map(self._kept, parts)
        if layer < len(cache.keys):
            cache.keys[layer] = torch.cat((cache.keys[layer], keys), dim=-2)
            cache.values[layer] = torch.cat((cache.values[layer], values), dim=-2)
        else:
            cache.keys.append(keys)
            cache.values.append(values)
        return attention(queries, cache.keys[layer], cache.values[layer])

    def attention_block(self, layer: int, x_TD: Tensor, cache: KVCache) -> Tensor:
        """Attention's output (T, Q) before o_proj; appends this layer's keys and values."""
        return self.attend(layer, self.attention_input(layer, x_TD), cache)

    def after_attention(self, layer: int, x_TD: Tensor, rounded_TQ: Tensor) -> Tensor:
        """The residual stream (T, D) behind o_proj, whose input is already rounded."""
        return x_TD + self._linear(rounded_TQ, block_weight(layer, "self_attn.o_proj"))

    def mlp_input(self, layer: int, x_TD: Tensor) -> Tensor:
        """What gate_proj and up_proj multiply: the norm (T, D), rounded."""
        normed = self._norm(x_TD, block_weight(layer, "post_attention_layernorm"))
        return self.quantize_activation(normed)

    def mlp_product(self, layer: int, normed_TD: Tensor) -> Tensor:
        """What down_proj multiplies: silu(gate) * up (T, F), turned by R4, rounded."""
        gate = self._linear(normed_TD, block_weight(layer, "mlp.gate_proj"))
        up = self._linear(normed_TD, block_weight(layer, "mlp.up_proj"))
        product = F.silu(gate) * up
        if self.config.down_proj_rotation is not None:
            product = rotate_product(product, self.config.down_proj_rotation)
        return self.quantize_activation(product)

    def mlp_block(self, layer: int, x_TD: Tensor, attention_TQ: Tensor) -> Tensor:
        """o_proj, residual, norm, SwiGLU, residual: the block's output (T, D)."""
        x_TD = self.after_attention(layer, x_TD, self.quantize_activation(attention_TQ))
        return self.after_mlp(layer, x_TD, self.mlp_product(layer, self.mlp_input(layer, x_TD)))

    def after_mlp(self, layer: int, x_TD: Tensor, product_TF: Tensor) -> Tensor:
        """The residual stream (T, D) behind down_proj, whose input is already rounded."""
        return x_TD + self._linear(product_TF, block_weight(layer, "mlp.down_proj"))

    def head_input(self, x_TD: Tensor) -> Tensor:
        """What lm_head multiplies: the final norm (T, D), turned if tables are shared; rounded."""
        normed = self._norm(x_TD, FINAL_NORM)
        if self.config.head_rotation:
            normed = self._linear(normed, HEAD_ROTATION)
        return self.quantize_activation(normed)

    def after_head(self, rounded_TD: Tensor) -> Tensor:
        """Logits (T, V) of lm_head's input, which is already rounded."""
        return self._linear(rounded_TD, LM_HEAD)

    def head(self, x_TD: Tensor) -> Tensor:
        """Final norm and lm_head: logits (T, V)."""
        return self.after_head(self.head_input(x_TD))

    @torch.no_grad()
    def hidden(self, x_TD: Tensor, cache: KVCache) -> Tensor:
        """All blocks over embedded tokens: (T, D) to (T, D)."""
        for layer in range(self.config.num_hidden_layers):
            attended = self.attention_block(layer, x_TD, cache)
            x_TD = self.mlp_block(layer, x_TD, attended)
        return x_TD

    @torch.no_grad()
    def logits(self, tokens_T: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits (T, V) float32 of int64 tokens (T,) that follow what the cache holds."""
        return self.head(self.hidden(self.embed(tokens_T), KVCache() if cache is None else cache))
