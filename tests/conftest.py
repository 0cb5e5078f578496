"""A tiny random Llama, and the embedded real model, quantized once per test session."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from llama_edge.checkpoints import load_checkpoint
from llama_edge.checkpoints.bpe import Vocabulary, byte_letters, smollm_tokenizer
from llama_edge.core.model_config import ModelConfig, RopeScaling
from llama_edge.core.progress import SilentProgress
from llama_edge.core.types import Checkpoint, QuantizedCheckpoint, TextAssets
from llama_edge.core.weight_names import weight_shapes
from llama_edge.quantize import W4A8_RTN
from llama_edge.quantize.stage import quantize_checkpoint

#: Three query heads a key/value head, llama3 rope scaling that bites within a short context.
DEBUG_CONFIG = ModelConfig(
    hidden_size=96,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=16,
    intermediate_size=160,
    vocab_size=256,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    rope_scaling=RopeScaling(
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=64,
    ),
    max_position_embeddings=512,
    tie_word_embeddings=True,
)


class MemoryWeights:
    """`Weights` that were made up: seeded, normal, norms around one."""

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.tensors: dict[str, Tensor] = {}
        for name, shape in weight_shapes(config).items():
            noise = torch.randn(shape, generator=generator)
            self.tensors[name] = 1 + 0.1 * noise if len(shape) == 1 else noise / shape[1] ** 0.5

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

    def read(self, name: str) -> Tensor:
        return self.tensors[name]


#: ChatML, as small as it can be.
DEBUG_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' "
    "+ message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def debug_text() -> TextAssets:
    """A byte-level BPE of 256 tokens: two ids that end a turn (0 and 2), BOS 3, nine merges."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin|>"]
    never_in_utf8 = {0xC0, 0xC1, *range(0xF5, 0x100)}
    letters = [letter for byte, letter in byte_letters().items() if byte not in never_in_utf8]
    merges = [("h", "e"), ("i", "n"), ("a", "n"), ("o", "n"), ("r", "e"), ("t", "he")]
    merges += [("Ġ", "the"), ("in", "g"), ("an", "d")]
    vocabulary = Vocabulary(
        tokens=[*special, *letters, *("".join(merge) for merge in merges)],
        merges=merges,
        added=dict.fromkeys(range(len(special)), True),
    )
    return TextAssets(
        tokenizer_json=smollm_tokenizer(vocabulary, None).to_str(),
        chat_template=DEBUG_TEMPLATE,
        bos_token_id=3,
        eos_token_ids=(0, 2),
        add_bos=False,
        generation_defaults={"temperature": 0.6, "top_p": 0.9},
    )


@pytest.fixture(scope="session")
def debug_checkpoint() -> Checkpoint:
    return Checkpoint(
        source="debug",
        config=DEBUG_CONFIG,
        weights=MemoryWeights(DEBUG_CONFIG),
        text=debug_text(),
    )


@pytest.fixture(scope="session")
def debug_quantized(
    debug_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> QuantizedCheckpoint:
    folder = tmp_path_factory.mktemp("debug-quantized")
    return quantize_checkpoint(debug_checkpoint, W4A8_RTN, folder, SilentProgress())


@pytest.fixture(scope="session")
def smollm2() -> Checkpoint:
    return load_checkpoint("smollm2-135m")


@pytest.fixture(scope="session")
def smollm2_quantized(
    smollm2: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> QuantizedCheckpoint:
    folder = tmp_path_factory.mktemp("smollm2-quantized")
    return quantize_checkpoint(smollm2, W4A8_RTN, folder, SilentProgress())
