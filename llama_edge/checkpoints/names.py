"""From the names that weights are stored under to ours."""

import re
from collections.abc import Iterable, Mapping
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

#: What torch.compile, FSDP and activation checkpointing put into the names of what they wrap.
_WRAPPER: Final = re.compile(r"(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


def plain_names(names: Iterable[str], anchor: str) -> dict[str, str]:
    """Names without what wrappers of the model put around them.

    Args:
        names: As they are stored.
        anchor: A plain name that every model has. What is in front of it is a prefix of the whole
            model (`module.`, `base_model.model.`), if all names have it.

    Returns:
        Plain name -> stored name; all as they are stored if two would get the same.
    """
    stored = tuple(names)
    plain = {_WRAPPER.sub("", name): name for name in stored}
    if len(plain) < len(stored):
        return {name: name for name in stored}
    anchored = next((name for name in plain if f".{name}".endswith(f".{anchor}")), anchor)
    prefix = anchored.removesuffix(anchor)
    if not all(name.startswith(prefix) for name in plain):
        return plain
    return {name.removeprefix(prefix): own_name for name, own_name in plain.items()}
