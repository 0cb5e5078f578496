"""The tables from Meta's and GGUF's weight names to ours."""

from collections.abc import Mapping
from typing import Final

from llama_edge.models.weight_names import EMBEDDING, FINAL_NORM, LM_HEAD

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
