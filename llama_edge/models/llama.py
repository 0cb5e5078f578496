"""Llama as plain PyTorch, with Hugging Face's module names (`modeling_llama.py` in transformers).

Shape legend: T tokens, D hidden, H head_dim, V vocab.
"""

from torch import Tensor, nn

from llama_edge.core.model_config import ModelConfig
from llama_edge.models.blocks import (
    Add,
    Attention,
    Embedding,
    Hadamard,
    Linear,
    OutputRows,
    RMSNorm,
    Rope,
    Rotation,
    SwiGLU,
)


class SelfAttention(nn.Module):
    """QKV, RoPE, attention over the cache, and its output matrix."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, heads, groups = (
            config.hidden_size,
            config.num_attention_heads,
            config.num_key_value_heads,
        )
        self.q_proj = Linear(width, config.query_size)
        self.k_proj = Linear(width, config.key_value_size)
        self.v_proj = Linear(width, config.key_value_size)
        self.q_rope = Rope(heads, config.head_dim)
        self.k_rope = Rope(groups, config.head_dim)
        self.attention = Attention(heads, groups, config.head_dim)
        self.o_proj = Linear(config.query_size, width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(T, D) to (T, D); cos and sin of the tokens' positions (T, H / 2)."""
        queries = self.q_rope(self.q_proj(x), cos, sin)
        keys = self.k_rope(self.k_proj(x), cos, sin)
        attended: Tensor = self.o_proj(self.attention(queries, keys, self.v_proj(x)))
        return attended


class MLP(nn.Module):
    """SwiGLU between two matrices in and one out."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size)
        self.swiglu = SwiGLU()
        orders = config.down_proj_rotation
        self.down_rotation = None if orders is None else Hadamard(orders)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """(T, D) to (T, D)."""
        product = self.swiglu(self.gate_proj(x), self.up_proj(x))
        if self.down_rotation is not None:
            product = self.down_rotation(product)
        out: Tensor = self.down_proj(product)
        return out


class Layer(nn.Module):
    """Attention and MLP, each after a norm and added to the residual stream."""

    def __init__(self, config: ModelConfig, attention: type[SelfAttention]) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = attention(config)
        self.attention_residual = Add()
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)
        self.mlp_residual = Add()

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(T, D) to (T, D)."""
        x = self.attention_residual(x, self.self_attn(self.input_layernorm(x), cos, sin))
        out: Tensor = self.mlp_residual(x, self.mlp(self.post_attention_layernorm(x)))
        return out


class Model(nn.Module):
    """Everything but the head."""

    def __init__(self, config: ModelConfig, attention: type[SelfAttention]) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            Layer(config, attention) for _ in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, tokens: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """int64 (T,) to (T, D)."""
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, cos, sin)
        out: Tensor = self.norm(x)
        return out


class Llama(nn.Module):
    """Tokens to logits.

    A rotated network whose head and embedding are one table has `lm_head_rotation` before the head.
    A model that differs from Llama in its attention alone says so by `attention`.
    """

    attention: type[SelfAttention] = SelfAttention

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.model = Model(config, self.attention)
        self.lm_head_rotation = Rotation(config.hidden_size) if config.head_rotation else None
        self.lm_head = Linear(config.hidden_size, config.head_rows)
        rows = config.output_rows
        self.output_rows = None if rows is None else OutputRows(rows, config.vocab_size)

    def forward(self, tokens: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """int64 (T,), and RoPE's cosines and sines of their positions (T, H / 2), to (T, V)."""
        x = self.model(tokens, cos, sin)
        if self.lm_head_rotation is not None:
            x = self.lm_head_rotation(x)
        logits: Tensor = self.lm_head(x)
        if self.output_rows is not None:
            logits = self.output_rows(logits)
        return logits
