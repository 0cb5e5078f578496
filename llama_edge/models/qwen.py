"""Qwen2.5 and Qwen3 (dense): Llama with another attention, with Hugging Face's module names.

Source: `modeling_qwen2.py` and `modeling_qwen3.py` in transformers. Qwen2 and Qwen2.5 have a bias
at queries, keys and values; Qwen3 has none, and normalizes each head of queries and keys.

Shape legend: T tokens, D hidden, H head_dim.
"""

from torch import Tensor

from llama_edge.core.model_config import ModelConfig
from llama_edge.models.blocks import HeadNorm, Linear
from llama_edge.models.llama import Llama, SelfAttention


class Qwen2Attention(SelfAttention):
    """Llama's, whose queries, keys and values have a bias."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.q_proj = Linear(width, config.query_size, bias=True)
        self.k_proj = Linear(width, config.key_value_size, bias=True)
        self.v_proj = Linear(width, config.key_value_size, bias=True)


class Qwen3Attention(SelfAttention):
    """Llama's, whose query and key heads are normalized before RoPE."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        heads, groups, width = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        self.q_norm = HeadNorm(heads, width, config.rms_norm_eps)
        self.k_norm = HeadNorm(groups, width, config.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(T, D) to (T, D); cos and sin of the tokens' positions (T, H / 2)."""
        queries, keys = self.q_norm(self.q_proj(x)), self.k_norm(self.k_proj(x))
        queries, keys = self.q_rope(queries, cos, sin), self.k_rope(keys, cos, sin)
        attended: Tensor = self.o_proj(self.attention(queries, keys, self.v_proj(x)))
        return attended


class Qwen2(Llama):
    """Qwen2 and Qwen2.5."""

    attention = Qwen2Attention


class Qwen3(Llama):
    """Qwen3, dense."""

    attention = Qwen3Attention
