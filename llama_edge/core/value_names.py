"""Names of the values inside a written graph that the parity gate looks at.

A lowering gives these names, a runtime asks for them: all that the two need to agree on.
"""


def hidden_value(layer: int) -> str:
    """The residual stream (T, D) entering block `layer`; of the last layer + 1, leaving it."""
    return f"model.layers.{layer}.hidden"


def attention_value(layer: int) -> str:
    """Attention's output (T, Q) of block `layer`, before o_proj."""
    return f"model.layers.{layer}.self_attn.output"
