"""The reference: a network run in plain PyTorch, piece by piece, with a KV cache.

Every lowering is compared with this. What a network computes is its graph's; here is how a piece
of it is run: on which weights, with which rounding, and over which cache. A piece is what a written
artifact shows the ends of, or what is rounded in between.

Shape legend: T tokens, D hidden, N query heads, K key/value heads, H head_dim, Q = N * H,
S tokens in the cache, V vocab, F intermediate. Every function also takes leading batch axes, for
sequences of one length.
"""

from dataclasses import dataclass, field
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from llama_edge.core.artifact import ActivationQuantization, KVCacheDtype
from llama_edge.core.cache_rows import quantize_rows
from llama_edge.core.hadamard import hadamard
from llama_edge.core.model_config import ModelConfig
from llama_edge.models.blocks import (
    HeadNorm,
    Linear,
    RMSNorm,
    Rope,
    Rotation,
    attention,
    head_norm,
    rms_norm,
    split_heads,
)
from llama_edge.models.network import COS, SIN, Node, network_of
from llama_edge.models.rope import rope_tables
from llama_edge.models.sources import MatrixSource

#: ONNX Runtime quantizes activations in blocks of the weight's block size, which is ours.
ACTIVATION_BLOCK: Final = 32
_ROUNDED: Final = ", rounded"


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

    def cut(self, length: int) -> None:
        """Forget the tokens after the first `length`."""
        self.keys = [keys[..., :length, :] for keys in self.keys]
        self.values = [values[..., :length, :] for values in self.values]


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
    blocks_back: Tensor = (blocks * inverse).round() * scale
    return blocks_back.flatten(-2)[..., : x.shape[-1]]


def rounded(name: str) -> str:
    """Of a value: the name of it as a linear multiplies it."""
    return name + _ROUNDED


def is_rounded(name: str) -> bool:
    """Whether it is one of those names."""
    return name.endswith(_ROUNDED)


class Reference:
    """A network over one sequence.

    Args:
        config: The model's shape.
        source: Full-precision or dequantized weights.
        activation: What every linear does to its input first; the embedding is a look-up and
            attention has its own rounding, if any, so neither is touched.
        kv_cache: How keys and values are kept. With int8, queries and keys are rotated by a
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
        self.network = network_of(config)

    def quantize_activation(self, x: Tensor) -> Tensor:
        """The input of a linear, rounded as this artifact's runtime rounds it."""
        if self.activation is ActivationQuantization.INT8_PER_TOKEN:
            return quantize_per_token(x)
        if self.activation is ActivationQuantization.INT8_PER_BLOCK:
            return quantize_per_block(x)
        return x

    def bias(self, node: Node) -> Tensor | None:
        """A linear's bias (O,), if it has one."""
        return None if node.bias is None else self.source.vector(node.bias)

    def _linear(self, x: Tensor, node: Node) -> Tensor:
        return F.linear(x, self.source.matrix(node.weight), self.bias(node))

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return rms_norm(x, self.source.vector(name), self.config.rms_norm_eps)

    def value(self, name: str, known: dict[str, Tensor]) -> Tensor:
        """A value of the graph, or `rounded` of one, from the nearest ones that are known.

        What is computed on the way is added to `known`.
        """
        if name not in known:
            if is_rounded(name):
                made = self.quantize_activation(self.value(name.removesuffix(_ROUNDED), known))
            else:
                made = self._compute(self.network.by_name[name], known)
            known[name] = made
        return known[name]

    def _compute(self, node: Node, known: dict[str, Tensor]) -> Tensor:
        if isinstance(node.block, Linear):
            return self._linear(self.value(rounded(node.inputs[0]), known), node)
        inputs = [self.value(name, known) for name in node.inputs]
        if isinstance(node.block, RMSNorm):
            return self._norm(inputs[0], node.weight)
        if isinstance(node.block, HeadNorm):
            return head_norm(inputs[0], self.source.vector(node.weight), node.block.eps)
        if isinstance(node.block, Rotation):
            return self._linear(inputs[0], node)
        out: Tensor = node.block(*inputs)
        if isinstance(node.block, Rope) and self.kv_cache.rotates_heads:
            return out @ hadamard(node.block.head_dim).T
        return out

    def _name(self, layer: int, part: str) -> str:
        return self.network.in_layer(layer)[part].name

    def stream(self, layer: int) -> str:
        """The name of the residual stream that enters a block, or leaves the last."""
        if layer == self.config.num_hidden_layers:
            return self._name(layer - 1, "mlp_residual")
        return self.network.in_layer(layer)["input_layernorm"].inputs[0]

    def embed(self, tokens_T: Tensor) -> Tensor:
        """Rows of the embedding, (T, D), for int64 (T,)."""
        return self.source.embedding_rows(tokens_T)

    def attention_input(self, layer: int, x_TD: Tensor) -> Tensor:
        """What q_proj, k_proj and v_proj multiply: the norm (T, D), rounded."""
        wanted = rounded(self._name(layer, "input_layernorm"))
        return self.value(wanted, {self.stream(layer): x_TD})

    def _angles(self, start: int, count: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of RoPE for so many positions."""
        return rope_tables(self.config, start, count)

    def queries_keys_values(
        self, layer: int, normed_TD: Tensor, start: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """QKV, RoPE from position `start` on, and R3: (N, T, H), (K, T, H), (K, T, H)."""
        known = {rounded(self._name(layer, "input_layernorm")): normed_TD}
        known[COS], known[SIN] = self._angles(start, normed_TD.shape[-2])
        queries, keys, values = (
            self.value(name, known) for name in self.network.in_layer(layer)["attention"].inputs
        )
        return queries, keys, split_heads(values, self.config.head_dim)

    def _kept(self, x: Tensor) -> Tensor:
        """A row as attention finds it in the cache."""
        return quantize_rows(x).dequantize() if self.kv_cache.rotates_heads else x

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
        """The residual stream (T, D) after o_proj, whose input is already rounded."""
        known = {self.stream(layer): x_TD, rounded(self._name(layer, "attention")): rounded_TQ}
        return self.value(self._name(layer, "attention_residual"), known)

    def mlp_input(self, layer: int, x_TD: Tensor) -> Tensor:
        """What gate_proj and up_proj multiply: the norm (T, D), rounded."""
        wanted = rounded(self._name(layer, "post_attention_layernorm"))
        return self.value(wanted, {self._name(layer, "attention_residual"): x_TD})

    def mlp_product(self, layer: int, normed_TD: Tensor) -> Tensor:
        """What down_proj multiplies: silu(gate) * up (T, F), rotated by R4, rounded."""
        known = {rounded(self._name(layer, "post_attention_layernorm")): normed_TD}
        return self.value(self._product(layer), known)

    def _product(self, layer: int) -> str:
        return rounded(self.network.in_layer(layer)["down_proj"].inputs[0])

    def mlp_block(self, layer: int, x_TD: Tensor, attention_TQ: Tensor) -> Tensor:
        """o_proj, residual, norm, SwiGLU, residual: the block's output (T, D)."""
        x_TD = self.after_attention(layer, x_TD, self.quantize_activation(attention_TQ))
        return self.after_mlp(layer, x_TD, self.mlp_product(layer, self.mlp_input(layer, x_TD)))

    def after_mlp(self, layer: int, x_TD: Tensor, product_TF: Tensor) -> Tensor:
        """The residual stream (T, D) after down_proj, whose input is already rounded."""
        known = {self._name(layer, "attention_residual"): x_TD, self._product(layer): product_TF}
        return self.value(self._name(layer, "mlp_residual"), known)

    def head_input(self, x_TD: Tensor) -> Tensor:
        """What lm_head multiplies: the final norm (T, D), rotated if tables are shared; rounded."""
        wanted = rounded(self.network.lm_head.inputs[0])
        return self.value(wanted, {self.stream(self.config.num_hidden_layers): x_TD})

    def after_head(self, rounded_TD: Tensor) -> Tensor:
        """lm_head's product (T, R) of its rounded input; R is V without `output_rows`."""
        head = self.network.lm_head
        return self.value(head.name, {rounded(head.inputs[0]): rounded_TD})

    def head(self, x_TD: Tensor) -> Tensor:
        """Final norm and lm_head: logits (T, V)."""
        return self.all_logits(self.after_head(self.head_input(x_TD)))

    def all_logits(self, computed_TR: Tensor) -> Tensor:
        """Logits (T, V) of those that lm_head computes."""
        return self.value(self.network.nodes[-1].name, {self.network.lm_head.name: computed_TR})

    def computed_logits(self, logits_TV: Tensor) -> Tensor:
        """The inverse of `all_logits`."""
        rows = self.config.output_rows
        return logits_TV if rows is None else logits_TV[..., list(rows)]

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
