"""The reference's arithmetic, piece by piece: hand-computed values and int8 rounding."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from llama_edge.core.artifact import ActivationQuantization
from llama_edge.core.packing import QuantizedTensor
from llama_edge.models.blocks import apply_rope, attention, rms_norm
from llama_edge.models.network import Node
from llama_edge.models.reference import Reference, quantize_per_block, quantize_per_token
from llama_edge.models.sources import CachedSource, DequantizedSource, FullPrecisionSource
from llama_edge.models.weight_names import EMBEDDING, LM_HEAD
from llama_edge.models.weights import block_linear_names
from tests.conftest import DEBUG_CONFIG, MemoryWeights


def worst(left: Tensor, right: Tensor) -> float:
    return (left - right).abs().max().item()


def test_attention_reads_the_key_value_head_of_its_group() -> None:
    # One cached token: softmax is 1, so each query head returns its group's value untouched.
    values = torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]])
    out = attention(torch.randn(6, 1, 2), torch.randn(2, 1, 2), values)
    assert out.tolist() == [[1, 2, 1, 2, 1, 2, 3, 4, 3, 4, 3, 4]]


def test_attention_masks_the_future_of_the_last_tokens() -> None:
    # Equal scores: row t of the last two of four positions averages values 0 .. t.
    values = torch.tensor([[[0.0], [3.0], [6.0], [9.0]]])
    out = attention(torch.zeros(1, 2, 1), torch.zeros(1, 4, 1), values)
    torch.testing.assert_close(out, torch.tensor([[3.0], [4.5]]))


def test_rms_norm_by_hand() -> None:
    # rms of (3, 4) is sqrt(12.5).
    out = rms_norm(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 2.0]), 1e-12)
    torch.testing.assert_close(out, torch.tensor([3.0, 8.0]) / 12.5**0.5)


def test_rope_turns_the_first_half_against_the_second() -> None:
    x = torch.tensor([[[1.0, 0.0, 0.0, 1.0]]])
    quarter = torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 1.0]])
    assert apply_rope(x, *quarter).tolist() == [[[0.0, -1.0, 1.0, 0.0]]]


def test_per_token_int8_equals_quantized_decomposed() -> None:
    from torch.ao.quantization.fx import _decomposed  # noqa: F401  (registers the operators)

    generator = torch.Generator().manual_seed(3)
    x = torch.randn(400, 96, generator=generator)
    x[:100] += 3.0  # most tokens one-sided: the zero point leaves the middle
    x[100:110, 5] = 5000.0  # a massive activation
    x[110:115] = x[110:115].abs()
    x[115:120] = 0.0
    operators = torch.ops.quantized_decomposed
    scale, zero_point = operators._choose_qparams_per_token_asymmetric_impl(x, torch.int8)
    codes = operators.quantize_per_token(x, scale, zero_point, -128, 127, torch.int8)
    theirs = operators.dequantize_per_token(
        codes, scale, zero_point, -128, 127, torch.int8, torch.float32
    )
    ours = quantize_per_token(x)
    # They multiply by 1 / scale and we by 255 / span: a value within an ulp of the boundary between
    # two codes may fall on either side.
    differs = (ours - theirs).abs() > 1e-5 * theirs.abs().clamp(min=1.0)
    assert differs.float().mean() < 1e-3
    assert ((ours - theirs).abs() <= 1.001 * scale).all()
    assert worst(ours[115:120], x[115:120]) == 0.0


def test_per_token_int8_by_hand() -> None:
    # span 2.55, step 0.01, zero point -128 + 100: codes 155 - 28 and -100 - 28.
    x = torch.tensor([[-1.0, 0.0, 0.004, 0.006, 1.55]])
    torch.testing.assert_close(
        quantize_per_token(x), torch.tensor([[-1.0, 0.0, 0.0, 0.01, 1.55]]), rtol=1e-6, atol=1e-8
    )


def test_per_block_int8_by_hand() -> None:
    x = torch.zeros(1, 40)
    x[0, :3] = torch.tensor([1.27, -0.014, 0.016])  # step 0.01
    x[0, 32:34] = torch.tensor([-127.0, 0.6])  # a second, short block: step 1
    expected = torch.zeros(1, 40)
    expected[0, :3] = torch.tensor([1.27, -0.01, 0.02])
    expected[0, 32:34] = torch.tensor([-127.0, 1.0])
    out = quantize_per_block(x)
    assert out.shape == x.shape
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("activation", "rounding"),
    [
        (ActivationQuantization.INT8_PER_TOKEN, quantize_per_token),
        (ActivationQuantization.INT8_PER_BLOCK, quantize_per_block),
    ],
)
def test_every_linear_and_only_linears_round_their_input(
    activation: ActivationQuantization,
    rounding: Callable[[Tensor], Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = Reference(
        DEBUG_CONFIG, FullPrecisionSource(DEBUG_CONFIG, MemoryWeights(DEBUG_CONFIG)), activation
    )
    inputs: dict[str, Tensor] = {}
    plain = Reference._linear

    def record(self: Reference, x: Tensor, node: Node) -> Tensor:
        inputs[node.weight] = x
        return plain(self, x, node)

    monkeypatch.setattr(Reference, "_linear", record)
    model.logits(torch.arange(5))
    assert set(inputs) == {*block_linear_names(DEBUG_CONFIG), LM_HEAD}
    for x in inputs.values():
        # Rounding is idempotent up to float32's own rounding.
        torch.testing.assert_close(rounding(x), x, rtol=1e-5, atol=1e-6)


class _CountingWeights:
    """`QuantizedWeights` of one table; counts reads."""

    def __init__(self) -> None:
        self.reads = 0

    def quantized_names(self) -> tuple[str, ...]:
        return (EMBEDDING,)

    def quantized(self, name: str) -> QuantizedTensor:
        self.reads += 1
        return QuantizedTensor(
            codes=torch.tensor([[1, -2], [3, 127]], dtype=torch.int8),
            scales=torch.tensor([[0.5], [2.0]], dtype=torch.bfloat16),
            bits=8,
            group_size=2,
        )

    def vector(self, name: str) -> Tensor:
        self.reads += 1
        return torch.ones(2)


def test_a_dequantized_source_multiplies_codes_by_scales() -> None:
    source = DequantizedSource(_CountingWeights())
    assert source.matrix(EMBEDDING).tolist() == [[0.5, -1.0], [6.0, 254.0]]
    assert source.embedding_rows(torch.tensor([1, 1, 0])).tolist() == [
        [6.0, 254.0],
        [6.0, 254.0],
        [0.5, -1.0],
    ]


def test_a_cached_source_reads_once() -> None:
    weights = _CountingWeights()
    source = CachedSource(DequantizedSource(weights))
    for _ in range(3):
        source.matrix(EMBEDDING)
        source.vector("norm")
        source.embedding_rows(torch.tensor([0]))
    assert weights.reads == 2
