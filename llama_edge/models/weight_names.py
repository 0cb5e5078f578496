"""Canonical weight names, which are Hugging Face's."""

from typing import Final

EMBEDDING: Final = "model.embed_tokens.weight"
LM_HEAD: Final = "lm_head.weight"
FINAL_NORM: Final = "model.norm.weight"
#: (D, D) float32, only where `ModelConfig.head_rotation` is set: what turns the final norm's output
#: so that a rotated head and a rotated embedding can be one table.
HEAD_ROTATION: Final = "lm_head_rotation.weight"


def block_weight(layer: int, part: str) -> str:
    """`block_weight(0, "mlp.up_proj")` is `model.layers.0.mlp.up_proj.weight`."""
    return f"model.layers.{layer}.{part}.weight"
