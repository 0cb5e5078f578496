"""Canonical weight names (Hugging Face's) and the tables from Meta's and GGUF's names to them."""

from collections.abc import Iterator, Mapping
from typing import Final

from llama_edge.core.model_config import ModelConfig

EMBEDDING: Final = "model.embed_tokens.weight"
LM_HEAD: Final = "lm_head.weight"
FINAL_NORM: Final = "model.norm.weight"
#: (D, D) float32, only where `ModelConfig.head_rotation` is set: what turns the final norm's output
#: so that a rotated head and a rotated embedding can be one table.
HEAD_ROTATION: Final = "lm_head_rotation.weight"

#: The seven linears of a block, in the order in which the network uses them.
BLOCK_LINEARS: Final = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
#: Linears that backends lower as one product, rows stacked in this order: one width of codes each.
FUSED_LINEARS: Final[Mapping[str, tuple[str, ...]]] = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.o_proj": ("self_attn.o_proj",),
    "mlp.gate_proj": ("mlp.gate_proj",),
    "mlp.up_proj": ("mlp.up_proj",),
    "mlp.down_proj": ("mlp.down_proj",),
}
BLOCK_NORMS: Final = ("input_layernorm", "post_attention_layernorm")


def block_weight(layer: int, part: str) -> str:
    """`block_weight(0, "mlp.up_proj")` is `model.layers.0.mlp.up_proj.weight`."""
    return f"model.layers.{layer}.{part}.weight"


def block_linear_shapes(config: ModelConfig) -> Mapping[str, tuple[int, int]]:
    """(out_features, in_features) of each linear of a block."""
    hidden, intermediate = config.hidden_size, config.intermediate_size
    return {
        "self_attn.q_proj": (config.query_size, hidden),
        "self_attn.k_proj": (config.key_value_size, hidden),
        "self_attn.v_proj": (config.key_value_size, hidden),
        "self_attn.o_proj": (hidden, config.query_size),
        "mlp.gate_proj": (intermediate, hidden),
        "mlp.up_proj": (intermediate, hidden),
        "mlp.down_proj": (hidden, intermediate),
    }


def weight_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight that a checkpoint of this config has.

    A tied checkpoint has no `lm_head.weight`: the head is the embedding.
    """
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab_size, config.hidden_size)}
    for layer in range(config.num_hidden_layers):
        for norm in BLOCK_NORMS:
            shapes[block_weight(layer, norm)] = (config.hidden_size,)
        for linear, shape in block_linear_shapes(config).items():
            shapes[block_weight(layer, linear)] = shape
    shapes[FINAL_NORM] = (config.hidden_size,)
    if not config.tie_word_embeddings:
        shapes[LM_HEAD] = (config.vocab_size, config.hidden_size)
    return shapes


def block_linear_names(config: ModelConfig) -> Iterator[str]:
    """Every block linear's weight name, layer by layer."""
    for layer in range(config.num_hidden_layers):
        for linear in BLOCK_LINEARS:
            yield block_weight(layer, linear)


#: Meta's `consolidated.*.pth` part names -> ours; whole names first, block parts after.
META_NAMES: Final[Mapping[str, str]] = {
    "tok_embeddings.weight": EMBEDDING,
    "norm.weight": FINAL_NORM,
    "output.weight": LM_HEAD,
}
META_BLOCK_PARTS: Final[Mapping[str, str]] = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
#: GGUF's tensor names (gguf-py's `constants.py`, architecture `llama`) -> ours.
GGUF_NAMES: Final[Mapping[str, str]] = {
    "token_embd.weight": EMBEDDING,
    "output_norm.weight": FINAL_NORM,
    "output.weight": LM_HEAD,
}
GGUF_BLOCK_PARTS: Final[Mapping[str, str]] = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
