"""Names of the values inside a written graph that the parity gate and `bisect` look at.

A lowering gives these names, a runtime asks for them: all that the two need to agree on.
"""

from typing import Final


def hidden_value(layer: int) -> str:
    """The residual stream (T, D) entering block `layer`; of the last layer + 1, leaving it."""
    return f"model.layers.{layer}.hidden"


def attention_value(layer: int) -> str:
    """Attention's output (T, Q) of block `layer`, before o_proj."""
    return f"model.layers.{layer}.self_attn.output"


#: What a block computes, value by value, in network order; the first enters it, the last leaves it.
#: Rows of all calls one after the other: (T, D), (T, Q) or (T, K * H), (T, F).
BLOCK_VALUES: Final = (
    "hidden",
    "input_layernorm",
    "q_proj",
    "k_proj",
    "v_proj",
    "q_norm",
    "k_norm",
    "q_rope",
    "k_rope",
    "value_cache",
    "key_cache",
    "attention",
    "o_proj",
    "attention_residual",
    "post_attention_layernorm",
    "gate_proj",
    "up_proj",
    "swiglu",
    "down_rotation",
    "down_proj",
    "mlp_residual",
)
#: What comes after the last block, for the last token of each call: (number of calls, D) or V.
HEAD_VALUES: Final = ("hidden", "norm", "head_rotation", "lm_head", "output_rows")
#: Values that show one operator together.
_SHOWN_AS: Final = {
    "q_rope": "rope",
    "k_rope": "rope",
    "value_cache": "kv_cache",
    "key_cache": "kv_cache",
}
#: In network order, as findings name them; a weight's last part is its operator.
OPERATORS: Final = tuple(
    dict.fromkeys(
        ("embedding", *(_SHOWN_AS.get(name, name) for name in BLOCK_VALUES[1:] + HEAD_VALUES[1:]))
    )
)
