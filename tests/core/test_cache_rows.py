"""The int8 cache's arithmetic against ExecuTorch's operator, numbers by hand, and a plain loop."""

import math

import pytest
import torch

# Loading this library registers ExecuTorch's own kernels.
from executorch.kernels import quantized as _quantized_operators  # noqa: F401
from torch import Tensor

from llama_edge.core.artifact import ActivationQuantization, KVCacheDtype
from llama_edge.core.cache_rows import quantize_rows, row_parameters
from llama_edge.core.hadamard import hadamard
from llama_edge.core.model_config import ModelConfig
from llama_edge.models.blocks import apply_rope
from llama_edge.models.reference import KVCache, Reference
from llama_edge.models.rope import rope_tables
from llama_edge.models.sources import FullPrecisionSource
from llama_edge.models.weight_names import block_weight
from tests.conftest import DEBUG_CONFIG, MemoryWeights


def test_one_row_by_hand() -> None:
    # From -1 to 1.55: step 0.01, zero point -128 + 100.
    found = quantize_rows(torch.tensor([[-1.0, 0.0, 0.004, 0.006, 1.55]]))
    assert found.steps.item() == pytest.approx(0.01, rel=1e-6)
    assert found.zero_points.item() == -28
    assert found.codes.tolist() == [[-128, -28, -28, -27, 127]]
    torch.testing.assert_close(found.dequantize(), torch.tensor([[-1.0, 0.0, 0.0, 0.01, 1.55]]))


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e-3, 1.0, 1e4])
def test_rows_are_bit_for_bit_those_of_the_operator(scale: float) -> None:
    x = scale * torch.randn(50, 3, 16, generator=torch.Generator().manual_seed(1))
    x[0], x[1], x[2] = 0.0, x[1].abs(), -x[2].abs()
    steps = torch.empty(50, 3, 1, dtype=torch.float64)
    zero_points = torch.empty(50, 3, 1, dtype=torch.int64)
    codes = torch.empty(50, 3, 16, dtype=torch.int8)
    operators = torch.ops.quantized_decomposed
    operators.choose_qparams_per_token_asymmetric.out(
        x, torch.int8, scale_out=steps, zero_point_out=zero_points
    )
    operators.quantize_per_token.out(x, steps, zero_points, -128, 127, torch.int8, out=codes)
    found = quantize_rows(x)
    assert torch.equal(found.steps, steps.float())
    assert torch.equal(found.zero_points, zero_points.float())
    assert torch.equal(found.codes, codes.float())
    assert found.dequantize()[0].count_nonzero() == 0


def test_parameters_are_what_is_rounded() -> None:
    x = torch.randn(200, 16, generator=torch.Generator().manual_seed(2))
    steps, zero_points = row_parameters(x)
    found = quantize_rows(x)
    torch.testing.assert_close(found.steps, steps.float())
    assert ((zero_points - found.zero_points).abs() <= 0.5).all()


def test_bytes_of_a_token() -> None:
    # 2 layers, 2 key/value heads of 16, keys and values
    assert KVCacheDtype.FLOAT32.bytes_per_token(DEBUG_CONFIG) == 2 * 2 * 2 * 64
    assert KVCacheDtype.FLOAT16.bytes_per_token(DEBUG_CONFIG) == 2 * 2 * 2 * 32
    assert KVCacheDtype.INT8.bytes_per_token(DEBUG_CONFIG) == 2 * 2 * 2 * 21


def model(kv_cache: KVCacheDtype, config: ModelConfig = DEBUG_CONFIG) -> Reference:
    source = FullPrecisionSource(config, MemoryWeights(config))
    return Reference(config, source, ActivationQuantization.NONE, kv_cache)


def rounded(row: Tensor) -> Tensor:
    low, high = min(row.min().item(), 0.0), max(row.max().item(), 0.0)
    step = (high - low) / 255
    zero = round(-128 - low / step)
    codes = [min(max(round(value / step) + zero, -128), 127) for value in row.tolist()]
    return torch.tensor([(code - zero) * step for code in codes])


def test_attention_over_an_int8_cache_by_a_plain_loop() -> None:
    """Token by token and head by head, from the projections on."""
    config, tokens = DEBUG_CONFIG, 7
    weights = MemoryWeights(config)
    normed = torch.randn(tokens, config.hidden_size, generator=torch.Generator().manual_seed(3))
    cos, sin = rope_tables(config, 0, tokens)

    def heads(part: str, count: int, *, turned: bool) -> list[list[Tensor]]:
        out = normed @ weights.read(block_weight(1, f"self_attn.{part}_proj")).T
        rows = [list(token.view(count, config.head_dim)) for token in out]
        if turned:
            matrix = hadamard(config.head_dim)
            rows = [
                [
                    matrix @ apply_rope(row[None], cos[at : at + 1], sin[at : at + 1])[0]
                    for row in found
                ]
                for at, found in enumerate(rows)
            ]
        return [[rounded(row) for row in token] for token in rows]

    queries = heads("q", config.num_attention_heads, turned=True)
    keys = heads("k", config.num_key_value_heads, turned=True)
    values = heads("v", config.num_key_value_heads, turned=False)
    expected = torch.zeros(tokens, config.query_size).view(tokens, -1, config.head_dim)
    shared = config.num_attention_heads // config.num_key_value_heads
    for token in range(tokens):
        for head, query in enumerate(queries[token]):
            group = head // shared
            scores = [float(query @ keys[at][group]) for at in range(token + 1)]
            powers = [math.exp(score / math.sqrt(config.head_dim)) for score in scores]
            for at, power in enumerate(powers):
                expected[token, head] += power / sum(powers) * values[at][group]

    empty = torch.empty(config.num_key_value_heads, 0, config.head_dim)
    cache = KVCache(keys=[empty, empty], values=[empty, empty])
    int8 = model(KVCacheDtype.INT8)
    found = torch.cat([int8.attend(1, normed[:4], cache), int8.attend(1, normed[4:], cache)])
    torch.testing.assert_close(found, expected.flatten(1), rtol=1e-4, atol=1e-5)


def test_r3_changes_nothing_but_the_rounding() -> None:
    tokens = torch.arange(3, 40)
    plain = model(KVCacheDtype.FLOAT32)
    turned = model(KVCacheDtype.INT8)
    normed = plain.attention_input(0, plain.embed(tokens))
    scores = [
        queries[:2] @ keys[:1].transpose(-1, -2)
        for queries, keys, _ in (one.queries_keys_values(0, normed, 5) for one in (plain, turned))
    ]
    torch.testing.assert_close(*scores, rtol=1e-4, atol=1e-4)


def test_r3_spreads_an_outlier_of_the_keys() -> None:
    """One channel a hundred times the others: the rounding of all others is what it spoils."""
    x = torch.randn(100, 64, generator=torch.Generator().manual_seed(4))
    x[:, 5] *= 100

    def error(rows: Tensor) -> float:
        return float((quantize_rows(rows).dequantize() - rows).square().mean())

    assert error(x @ hadamard(64).T) < 0.5 * error(x)


def test_prefill_and_decode_agree() -> None:
    tokens = torch.arange(3, 40)
    int8 = model(KVCacheDtype.INT8)
    cache = KVCache()
    parts = [int8.logits(part, cache) for part in torch.split(tokens, [20, 1, 1, 15])]
    torch.testing.assert_close(torch.cat(parts), int8.logits(tokens), rtol=1e-3, atol=1e-3)
