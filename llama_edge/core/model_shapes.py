"""Shapes of published models, for planning and for random checkpoints: configs without weights."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from llama_edge.core.errors import UnknownNameError
from llama_edge.core.model_config import ModelConfig, RopeScaling


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """What a model's published `config.json` says."""

    name: str
    summary: str
    #: where the config was read
    source: str
    config: ModelConfig


_LLAMA_32_1B: Final = ModelConfig(
    hidden_size=2048,
    num_hidden_layers=16,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=64,
    intermediate_size=8192,
    vocab_size=128256,
    rms_norm_eps=1e-5,
    rope_theta=500000.0,
    rope_scaling=RopeScaling(
        factor=32.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    ),
    max_position_embeddings=131072,
    tie_word_embeddings=True,
)

_LLAMA_GUARD_3_1B: Final = replace(
    _LLAMA_32_1B,
    rope_scaling=RopeScaling(
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    ),
    tie_word_embeddings=False,
)

#: Which 20 tokens Meta kept is not published. These are the 20 that its tokenizer writes answers on
#: thirteen categories with: two line breaks, safe, unsafe, a line break, "S", ",S", 1 to 13, and
#: the turn's end.
_GUARD_ROWS: Final = (
    271,
    19193,
    39257,
    198,
    50,
    21861,
    *range(16, 25),
    605,
    806,
    717,
    1032,
    128009,
)

SHAPES: Final[Mapping[str, ModelShape]] = {
    shape.name: shape
    for shape in (
        ModelShape(
            name="llama-3.2-1b",
            summary="Llama 3.2 1B: 16 layers of 2048, tied tables, 1.24 billion parameters",
            source="https://huggingface.co/meta-llama/Llama-3.2-1B-Instruct",
            config=_LLAMA_32_1B,
        ),
        ModelShape(
            name="llama-3.2-3b",
            summary="Llama 3.2 3B: 28 layers of 3072, tied tables, 3.21 billion parameters",
            source="https://huggingface.co/meta-llama/Llama-3.2-3B-Instruct",
            config=replace(
                _LLAMA_32_1B,
                hidden_size=3072,
                num_hidden_layers=28,
                num_attention_heads=24,
                head_dim=128,
            ),
        ),
        ModelShape(
            name="llama-guard-3-1b",
            summary="Llama Guard 3 1B: as Llama 3.2 1B with a head of its own, 1.50 billion",
            source="https://huggingface.co/meta-llama/Llama-Guard-3-1B",
            config=_LLAMA_GUARD_3_1B,
        ),
        # Released as a finished .pte alone, without weights to export from.
        ModelShape(
            name="llama-guard-3-1b-int4",
            summary="Llama Guard 3 1B, pruned: 12 layers of 2048, feed-forward 6400, a head of 20 "
            "tokens, 0.86 billion",
            source="https://huggingface.co/meta-llama/Llama-Guard-3-1B-INT4",
            config=replace(
                _LLAMA_GUARD_3_1B,
                num_hidden_layers=12,
                intermediate_size=6400,
                output_rows=_GUARD_ROWS,
            ),
        ),
    )
}


def get_shape(name: str) -> ModelShape:
    """The published shape of that name.

    Raises:
        UnknownNameError: There is none; the message lists those that are.
    """
    if name not in SHAPES:
        raise UnknownNameError(f"shape {name!r} is unknown; choose from: {', '.join(SHAPES)}")
    return SHAPES[name]
