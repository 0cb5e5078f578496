"""Published measurements: what the plan is calibrated on, and what it is compared with as well.

Source of all rows: ExecuTorch's `examples/models/llama/README.md` and `examples/models/llama2/
README.md`; the six rows of Llama 3.2 are also in Meta's model card. Prompts of 64 tokens, CPU,
XNNPACK with KleidiAI; the export commands there give a context of 2048 and the caches' dtype.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from llama_edge.core.model_config import ModelConfig
from llama_edge.core.model_shapes import SHAPES
from llama_edge.models.weights import block_linear_shapes, block_linear_weights, weight_shapes
from llama_edge.plan.estimate import ArtifactSize, Workload

PROMPT: Final = 64
CONTEXT: Final = 2048
#: Of the adapters in the QAT+LoRA files: `-lora 16` in the README's export command.
_LORA_RANK: Final = 16
_GROUP: Final = 32
_GUARD_GROUP: Final = 256


def _linear_weights(config: ModelConfig) -> int:
    """In the linears of all blocks."""
    return config.num_hidden_layers * block_linear_weights(config)


def _table_weights(config: ModelConfig) -> int:
    return config.vocab_size * config.hidden_size


def _kv_bytes(config: ModelConfig, item_bytes: int) -> int:
    return 2 * config.num_hidden_layers * config.key_value_size * item_bytes


def _norm_bytes(config: ModelConfig) -> int:
    return 4 * config.hidden_size * (2 * config.num_hidden_layers + 1)


def _bf16(config: ModelConfig) -> Workload:
    """Every weight in bfloat16; a tied table is stored once."""
    total = 2 * sum(math.prod(shape) for shape in weight_shapes(config).values())
    unread = 0 if config.tie_word_embeddings else 2 * _table_weights(config)
    return Workload(
        config=config,
        size=ArtifactSize(file_bytes=total, streamed_bytes=total - unread),
        kv_bytes_per_token=_kv_bytes(config, 2),
        int8_macs=0,
        float_macs=_linear_weights(config),
        head_macs=_table_weights(config),
    )


def _int4(config: ModelConfig, rank: int) -> Workload:
    """int4 with float32 group scales, two int8 tables, and float32 adapters of a rank."""
    linears = _linear_weights(config)
    pairs = block_linear_shapes(config).values()
    adapters = rank * config.num_hidden_layers * sum(rows + columns for rows, columns in pairs)
    table = _table_weights(config) + 4 * config.vocab_size
    streamed = linears // 2 + 4 * linears // _GROUP + table + 4 * adapters + _norm_bytes(config)
    return Workload(
        config=config,
        size=ArtifactSize(file_bytes=streamed + table, streamed_bytes=streamed),
        kv_bytes_per_token=_kv_bytes(config, 4),
        int8_macs=linears,
        float_macs=adapters,
        head_macs=_table_weights(config),
    )


def _guard_int4(config: ModelConfig) -> Workload:
    """int4 linears and head in groups of 256 with float32 scales, int4 embedding in groups of 32.

    Source: the export command in ExecuTorch's README for Llama Guard 3 1B INT4; its embedding has
    float16 scales (`QuantizedGroupEmbedding`).
    """
    linears = _linear_weights(config)
    head = config.head_rows * config.hidden_size
    table = _table_weights(config)
    streamed = (linears + head) // 2 + 4 * (linears + head) // _GUARD_GROUP + _norm_bytes(config)
    return Workload(
        config=config,
        size=ArtifactSize(
            file_bytes=streamed + table // 2 + 2 * table // _GROUP, streamed_bytes=streamed
        ),
        kv_bytes_per_token=_kv_bytes(config, 4),
        int8_macs=linears,
        float_macs=0,
        head_macs=head,
    )


#: The layouts of Meta's own files, which a plan can be asked for as if they were recipes.
PUBLISHED_LAYOUTS: Final[Mapping[str, Callable[[ModelConfig], Workload]]] = {
    "bf16": _bf16,
    "published-spinquant": lambda config: _int4(config, 0),
    "published-qat-lora": lambda config: _int4(config, _LORA_RANK),
    "published-guard-int4": _guard_int4,
}

#: Bytes of `llama_guard_3_1b_pruned_xnnpack.pte` in meta-llama/Llama-Guard-3-1B-INT4, "440 MB" in
#: MiB with the tokenizer; and the speed that its paper (arXiv 2411.17713) gives at least, on a
#: phone that it does not name.
GUARD_FILE_BYTES: Final = 458_464_800
GUARD_DECODE_TOKENS_PER_S: Final = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedRow:
    """One row of the table for Llama 3.2 on OnePlus 12."""

    shape: str
    layout: str
    decode_tokens_per_s: float
    time_to_first_token_s: float
    prefill_tokens_per_s: float
    file_mib: float
    rss_mib: float
    device: str = "oneplus-12"

    def workload(self) -> Workload:
        """What the file of this row asks of a device."""
        return PUBLISHED_LAYOUTS[self.layout](SHAPES[self.shape].config)


PUBLISHED: Final = (
    PublishedRow(
        shape="llama-3.2-1b",
        layout="bf16",
        decode_tokens_per_s=19.2,
        time_to_first_token_s=1.0,
        prefill_tokens_per_s=60.3,
        file_mib=2358,
        rss_mib=3185,
    ),
    PublishedRow(
        shape="llama-3.2-1b",
        layout="published-spinquant",
        decode_tokens_per_s=50.2,
        time_to_first_token_s=0.3,
        prefill_tokens_per_s=260.5,
        file_mib=1083,
        rss_mib=1921,
    ),
    PublishedRow(
        shape="llama-3.2-1b",
        layout="published-qat-lora",
        decode_tokens_per_s=45.8,
        time_to_first_token_s=0.3,
        prefill_tokens_per_s=252.0,
        file_mib=1127,
        rss_mib=2255,
    ),
    PublishedRow(
        shape="llama-3.2-3b",
        layout="bf16",
        decode_tokens_per_s=7.6,
        time_to_first_token_s=3.0,
        prefill_tokens_per_s=21.2,
        file_mib=6129,
        rss_mib=7419,
    ),
    PublishedRow(
        shape="llama-3.2-3b",
        layout="published-spinquant",
        decode_tokens_per_s=19.7,
        time_to_first_token_s=0.7,
        prefill_tokens_per_s=89.7,
        file_mib=2435,
        rss_mib=3726,
    ),
    PublishedRow(
        shape="llama-3.2-3b",
        layout="published-qat-lora",
        decode_tokens_per_s=18.5,
        time_to_first_token_s=0.7,
        prefill_tokens_per_s=88.8,
        file_mib=2529,
        rss_mib=4060,
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutRow:
    """A published decode speed that nothing was fitted on."""

    model: str
    device: str
    #: of the linears and the head
    weights: int
    group_size: int
    decode_tokens_per_s: float

    @property
    def streamed_bytes(self) -> int:
        """int4 codes and float32 scales."""
        return self.weights // 2 + 4 * self.weights // self.group_size


#: Blocks and head: 32 layers of 4096 with 11008 and 32000 rows, or 14336 (8 K/V heads) and 128256.
_LLAMA_2_7B: Final = 32 * (4 * 4096**2 + 3 * 4096 * 11008) + 32000 * 4096
_LLAMA_3_8B: Final = 32 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336) + 128256 * 4096

HELD_OUT: Final = tuple(
    HeldOutRow(
        model=model,
        device=device,
        weights=weights,
        group_size=group_size,
        decode_tokens_per_s=speed,
    )
    for model, weights, device, speeds in (
        ("Llama 2 7B", _LLAMA_2_7B, "galaxy-s22", {128: 8.15, 256: 8.3}),
        ("Llama 2 7B", _LLAMA_2_7B, "oneplus-12", {128: 11.55, 256: 11.6}),
        ("Llama 3 8B", _LLAMA_3_8B, "galaxy-s22", {128: 7.85, 256: 8.4}),
        ("Llama 3 8B", _LLAMA_3_8B, "oneplus-12", {128: 10.85, 256: 11.02}),
    )
    for group_size, speed in speeds.items()
)
