"""The reference network against two implementations that were written by others."""

import importlib
from collections.abc import Mapping
from dataclasses import replace
from types import ModuleType
from typing import Any, Final

import pytest
import torch
from torch import Tensor

from llama_edge.checkpoints.names import META_BLOCK_PARTS, META_NAMES
from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.model_config import LinearRopeScaling, ModelConfig, RopeScaling
from llama_edge.models.reference import KVCache, Reference
from llama_edge.models.rope import inverse_frequencies, rope_tables
from llama_edge.models.sources import CachedSource, FullPrecisionSource
from llama_edge.models.weight_names import EMBEDDING, LM_HEAD, block_weight
from tests.conftest import MemoryWeights
from tests.meta_reference import import_meta_model

#: Both implementations do the same float32 products in another order: logits are of order 1 to 4,
#: each a sum of some hundred products, and float32 has 1.2e-7 relative. Measured: below 4e-6.
TOLERANCE: Final = 1e-5

LLAMA_3_2_SCALING = RopeScaling(
    factor=32.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=8192,
)
#: As Llama 3.2 1B, with a quarter of its 32 query and 8 key/value heads.
LIKE_1B = ModelConfig(
    hidden_size=512,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=64,
    intermediate_size=768,
    vocab_size=160,
    rms_norm_eps=1e-5,
    rope_theta=500000.0,
    rope_scaling=LLAMA_3_2_SCALING,
    max_position_embeddings=131072,
    tie_word_embeddings=True,
)
#: As Llama 3.2 3B, with a quarter of its 24 query and 8 key/value heads.
LIKE_3B = replace(LIKE_1B, hidden_size=768, num_attention_heads=6, head_dim=128)
#: SmolLM2-135M's heads, theta and width.
LIKE_SMOLLM2 = replace(
    LIKE_1B,
    hidden_size=576,
    num_attention_heads=9,
    num_key_value_heads=3,
    rope_theta=100000.0,
    rope_scaling=None,
)
CONFIGS: Final[Mapping[str, ModelConfig]] = {
    "1b": LIKE_1B,
    "3b": LIKE_3B,
    "smollm2": LIKE_SMOLLM2,
    "untied": replace(LIKE_1B, tie_word_embeddings=False),
    "one key/value head a query head": replace(LIKE_1B, num_key_value_heads=8),
    "heads wider than the residual stream": replace(LIKE_1B, hidden_size=192),
    # All three branches of the scaling are inside the test's 200 positions.
    "positions divided": replace(LIKE_1B, rope_scaling=LinearRopeScaling(factor=2.5)),
    "scaling of a short context": replace(
        LIKE_1B, rope_scaling=replace(LLAMA_3_2_SCALING, original_max_position_embeddings=64)
    ),
}


def tokens_of(config: ModelConfig, count: int = 200) -> Tensor:
    return torch.randint(config.vocab_size, (count,), generator=torch.Generator().manual_seed(7))


def llama(config: ModelConfig) -> Reference:
    return Reference(config, FullPrecisionSource(config, MemoryWeights(config)))


def worst(left: Tensor, right: Tensor) -> float:
    return (left - right).abs().max().item()


def transformers_config(config: ModelConfig) -> Any:  # noqa: ANN401
    from transformers import LlamaConfig

    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if isinstance(config.rope_scaling, LinearRopeScaling):
        rope |= {"rope_type": "linear", "factor": config.rope_scaling.factor}
    elif config.rope_scaling is not None:
        rope |= {
            "rope_type": "llama3",
            "factor": config.rope_scaling.factor,
            "low_freq_factor": config.rope_scaling.low_freq_factor,
            "high_freq_factor": config.rope_scaling.high_freq_factor,
            "original_max_position_embeddings": (
                config.rope_scaling.original_max_position_embeddings
            ),
        }
    fields = {key: value for key, value in config.to_json().items() if not key.startswith("rope_")}
    return LlamaConfig(**fields, rope_parameters=rope, attn_implementation="eager")


@torch.no_grad()
def transformers_logits(config: ModelConfig, tokens_T: Tensor) -> Tensor:
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM(transformers_config(config)).eval()
    state = dict(MemoryWeights(config).tensors)
    if config.tie_word_embeddings:
        state[LM_HEAD] = state[EMBEDDING]
    model.load_state_dict(state)
    logits: Tensor = model(tokens_T[None]).logits[0]
    return logits


@pytest.mark.parametrize("name", CONFIGS)
def test_full_pass_equals_transformers(name: str) -> None:
    config = CONFIGS[name]
    tokens = tokens_of(config)
    theirs = transformers_logits(config, tokens)
    assert worst(llama(config).logits(tokens), theirs) < TOLERANCE


@pytest.mark.parametrize(
    "fault",
    [
        {"rope_theta": 10000.0},
        {"rope_scaling": None},
        {"rope_scaling": replace(LLAMA_3_2_SCALING, factor=8.0)},
        {"rms_norm_eps": 1e-3},
    ],
    ids=str,
)
def test_a_wrong_config_is_far_outside_the_tolerance(fault: dict[str, Any]) -> None:
    tokens = tokens_of(LIKE_1B)
    theirs = transformers_logits(LIKE_1B, tokens)
    assert worst(llama(replace(LIKE_1B, **fault)).logits(tokens), theirs) > 10 * TOLERANCE


@pytest.fixture
def meta_model(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Meta's own `llama3/model.py`, unmodified, on a single-process stand-in for fairscale."""
    return import_meta_model(monkeypatch)


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """Rows of a head from Hugging Face's order (all first halves) to Meta's (pairs)."""
    rows, columns = weight.shape
    halves = weight.view(heads, 2, rows // heads // 2, columns)
    return halves.transpose(1, 2).reshape(rows, columns)


def meta_state(config: ModelConfig) -> dict[str, Tensor]:
    ours = MemoryWeights(config).tensors
    head = EMBEDDING if config.tie_word_embeddings else LM_HEAD
    state = {theirs: ours[head if name == LM_HEAD else name] for theirs, name in META_NAMES.items()}
    counts = {
        "self_attn.q_proj": config.num_attention_heads,
        "self_attn.k_proj": config.num_key_value_heads,
    }
    for layer in range(config.num_hidden_layers):
        for theirs, part in META_BLOCK_PARTS.items():
            weight = ours[block_weight(layer, part)]
            if part in counts:
                weight = interleaved(weight, counts[part])
            state[f"layers.{layer}.{theirs}.weight"] = weight
    return state


def meta_transformer(module: ModuleType, config: ModelConfig) -> Any:  # noqa: ANN401
    args = importlib.import_module("llama_models.llama3.args").ModelArgs(
        dim=config.hidden_size,
        n_layers=config.num_hidden_layers,
        n_heads=config.num_attention_heads,
        n_kv_heads=config.num_key_value_heads,
        vocab_size=config.vocab_size,
        # The feed-forward width is 8 / 3 * dim, rounded up to a multiple of this.
        multiple_of=config.intermediate_size,
        norm_eps=config.rms_norm_eps,
        rope_theta=config.rope_theta,
        use_scaled_rope=config.rope_scaling is not None,
        max_batch_size=1,
        max_seq_len=256,
    )
    model = module.Transformer(args).eval()
    model.load_state_dict(meta_state(config))
    return model


@pytest.mark.parametrize("name", ["1b", "3b", "smollm2", "untied"])
def test_prefill_and_decode_equal_metas_reference(name: str, meta_model: ModuleType) -> None:
    config = replace(CONFIGS[name], intermediate_size=2048)
    if config.rope_scaling is not None:
        # Meta's file has factor 8 written into it, as Llama 3.1 has.
        config = replace(config, rope_scaling=replace(LLAMA_3_2_SCALING, factor=8.0))
    tokens = tokens_of(config)
    theirs = meta_transformer(meta_model, config)
    ours = llama(config)
    cache = KVCache()
    for start, stop in [(0, 190), *((index, index + 1) for index in range(190, 200))]:
        expected = theirs(tokens[None, start:stop], start)[0]
        assert worst(ours.logits(tokens[start:stop], cache), expected) < TOLERANCE


def test_rows_in_metas_order_are_far_outside_the_tolerance(meta_model: ModuleType) -> None:
    config = replace(LIKE_SMOLLM2, intermediate_size=2048)
    tokens = tokens_of(config)
    theirs = meta_transformer(meta_model, config)(tokens[None], 0)[0]
    model = llama(config)
    weights = MemoryWeights(config)
    for layer in range(config.num_hidden_layers):
        name = block_weight(layer, "self_attn.q_proj")
        weights.tensors[name] = interleaved(weights.tensors[name], config.num_attention_heads)
    model.source = FullPrecisionSource(config, weights)
    assert worst(model.logits(tokens), theirs) > 1e4 * TOLERANCE


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("start", [0, 8180, 131000])
def test_rope_tables_equal_transformers_at_every_depth(head_dim: int, start: int) -> None:
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = replace(LIKE_1B, head_dim=head_dim)
    rotary = LlamaRotaryEmbedding(transformers_config(config))
    positions = torch.arange(start, start + 40)
    theirs = rotary(torch.zeros(1, dtype=torch.float32), positions[None])
    for mine, expected in zip(rope_tables(config, start, 40), theirs, strict=True):
        # The scaled middle frequencies (below 2e-3) may differ in their last place, 6e-11.
        assert worst(mine, expected[0, :, : head_dim // 2]) < 1e-6 + start * 2e-10


def test_scaling_leaves_short_waves_and_divides_long_ones() -> None:
    plain = inverse_frequencies(replace(LIKE_1B, rope_scaling=None))
    scaled = inverse_frequencies(LIKE_1B)
    wavelengths = 2 * torch.pi / plain
    short, long = wavelengths < 8192 / 4, wavelengths > 8192
    assert short.any()
    assert long.any()
    assert torch.equal(scaled[short], plain[short])
    torch.testing.assert_close(scaled[long], plain[long] / 32, rtol=3e-7, atol=0)
    between = ~short & ~long
    assert ((scaled < plain) & (scaled > plain / 32))[between].all()


@pytest.mark.parametrize("name", ["1b", "3b", "scaling of a short context"])
def test_prefill_and_decode_equal_the_full_pass(name: str) -> None:
    config = CONFIGS[name]
    tokens = tokens_of(config, 80)
    model = llama(config)
    full = model.logits(tokens)
    cache = KVCache()
    pieces = [model.logits(tokens[:33], cache), model.logits(tokens[33:64], cache)]
    pieces += [model.logits(tokens[index : index + 1], cache) for index in range(64, 80)]
    assert cache.length == 80
    assert worst(torch.cat(pieces), full) < TOLERANCE


def test_a_later_token_does_not_change_an_earlier_logit() -> None:
    tokens = tokens_of(LIKE_1B, 20)
    other = tokens.clone()
    other[12] = (other[12] + 1) % LIKE_1B.vocab_size
    model = llama(LIKE_1B)
    before, after = model.logits(tokens), model.logits(other)
    assert torch.equal(before[:12], after[:12])
    assert worst(before[12:], after[12:]) > 0.01


def test_a_limited_cache_reads_again_what_does_not_fit(debug_checkpoint: Checkpoint) -> None:
    reads: list[str] = []

    class Counted(FullPrecisionSource):
        def matrix(self, name: str) -> Tensor:
            reads.append(name)
            return super().matrix(name)

    first, second = (block_weight(0, part) for part in ("mlp.up_proj", "mlp.gate_proj"))
    weights = debug_checkpoint.weights
    source = Counted(debug_checkpoint.config, weights)
    cached = CachedSource(source, limit_bytes=weights.read(first).nbytes)
    for name in (first, second) * 2:
        assert torch.equal(cached.matrix(name), weights.read(name))
    assert reads == [first, second, second]
