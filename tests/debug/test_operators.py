"""Operators held one by one: rounding flips are explained, one wrong channel is not."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from llama_edge.core.artifact import ActivationQuantization, KVCacheDtype
from llama_edge.core.quantized import QuantizedCheckpoint
from llama_edge.core.session import FloatArray
from llama_edge.debug.operators import (
    MAX_SNR_DB,
    Comparison,
    OperatorResult,
    compare_block,
    compare_head,
    judge,
    snr_db,
)
from llama_edge.gate.rounding import border_flips
from llama_edge.models.reference import Reference
from llama_edge.models.sources import CachedSource, DequantizedSource
from llama_edge.models.weight_names import block_weight

TOKENS = [3, *range(40, 88)]
PREFILL = 32
Values = dict[str, FloatArray]


@pytest.fixture(params=[ActivationQuantization.INT8_PER_TOKEN, ActivationQuantization.NONE])
def model(request: pytest.FixtureRequest, debug_quantized: QuantizedCheckpoint) -> Reference:
    source = CachedSource(DequantizedSource(debug_quantized.weights))
    return Reference(debug_quantized.config, source, request.param)


@torch.no_grad()
def values_of(model: Reference, layer: int = 1) -> Values:
    """What a right artifact shows: each expectation is made the next operator's input."""
    shown: Values = {"hidden": (model.embed(torch.tensor(TOKENS)) * 2).numpy()}
    names = ["input_layernorm", "q_proj", "k_proj", "v_proj", "q_rope", "k_rope", "attention"]
    names += ["o_proj", "attention_residual", "post_attention_layernorm", "gate_proj", "up_proj"]
    names += ["swiglu", "down_proj", "mlp_residual"]
    blank = torch.full_like(torch.tensor(shown["hidden"]), 12345.0)
    for name in names:
        asked = compare_block(model, layer, {**shown, name: blank.numpy()})
        shown[name] = next(one for one in asked if torch.equal(one.found, blank)).expected.numpy()
    shown["key_cache"], shown["value_cache"] = shown["k_rope"], shown["v_proj"]
    return shown


@torch.no_grad()
def results(model: Reference, shown: Values, layer: int = 1) -> list[OperatorResult]:
    return [judge(model, one, PREFILL) for one in compare_block(model, layer, shown)]


def wrong(model: Reference, shown: Values) -> dict[str, tuple[str, ...]]:
    return {one.name: one.wrong_in for one in results(model, shown) if not one.passed}


def test_right_values_pass(model: Reference) -> None:
    shown = values_of(model)
    found = results(model, shown)
    assert len(found) == 17
    assert all(one.passed and one.snr_db > 140 for one in found)


def test_a_value_that_is_not_shown_is_made(model: Reference) -> None:
    shown = values_of(model)
    for name in ("q_rope", "k_rope", "swiglu"):
        del shown[name]
    found = results(model, shown)
    assert all(one.passed for one in found)
    assert [one.name for one in found].count("rope") == 1, "keys are seen in the cache"
    assert "swiglu" not in [one.name for one in found]


def with_matrix(model: Reference, name: str, change: Callable[[Tensor], Tensor]) -> Reference:
    class Changed(CachedSource):
        def matrix(self, asked: str) -> Tensor:
            matrix = super().matrix(asked)
            return change(matrix.clone()) if asked == name else matrix

    return Reference(model.config, Changed(model.source), model.activation)


def test_one_scale_one_step_off_is_seen_in_its_channel(model: Reference) -> None:
    shown = values_of(model)
    x = model.quantize_activation(torch.tensor(shown["attention"]))
    matrix = model.source.matrix(block_weight(1, "self_attn.o_proj")).clone()
    matrix[5, 32:64] *= 1 + 2**-7
    shown["o_proj"] = functional.linear(x, matrix).numpy()
    found = {one.name: one for one in results(model, shown)}
    assert not found["o_proj"].passed
    assert found["o_proj"].channel == 5
    assert found["o_proj"].worst_channel > 3e-4
    # The residual sum itself is not what it was shown to add.
    assert next(name for name, one in found.items() if not one.passed) == "o_proj"


def test_a_code_on_a_border_that_fell_the_other_way_is_no_fault(model: Reference) -> None:
    if model.activation is ActivationQuantization.NONE:
        pytest.skip("nothing is rounded")
    shown = values_of(model)
    x = torch.tensor(shown["post_attention_layernorm"])
    rounded = model.quantize_activation(x)
    row, flips = next(
        (row, flips) for row in range(len(x)) if (flips := border_flips(model, 0, x[row], 9e-3))
    )
    rounded[row, flips[0].index] = flips[0].value
    weight = model.source.matrix(block_weight(1, "mlp.gate_proj"))
    shown["gate_proj"] = functional.linear(rounded, weight).numpy()
    shown["swiglu"] = (
        functional.silu(torch.tensor(shown["gate_proj"])) * torch.tensor(shown["up_proj"])
    ).numpy()
    found = {one.name: one for one in results(model, shown)}
    assert found["gate_proj"].passed
    assert found["gate_proj"].flips == 1
    assert found["gate_proj"].raw_worst_row > 1e-4 > found["gate_proj"].worst_row


def test_activations_left_unrounded_are_no_flips(debug_quantized: QuantizedCheckpoint) -> None:
    source = CachedSource(DequantizedSource(debug_quantized.weights))
    rounds, keeps = (
        Reference(debug_quantized.config, source, activation)
        for activation in (ActivationQuantization.INT8_PER_BLOCK, ActivationQuantization.NONE)
    )
    shown = values_of(rounds)
    x = torch.tensor(shown["post_attention_layernorm"])
    weight = keeps.source.matrix(block_weight(1, "mlp.up_proj"))
    shown["up_proj"] = functional.linear(x, weight).numpy()
    assert "up_proj" in wrong(rounds, shown)


def test_the_cache_is_told_from_rope_by_its_values(model: Reference) -> None:
    shown = values_of(model)
    del shown["k_rope"], shown["q_rope"]
    keys, values = shown["key_cache"], shown["value_cache"]
    shown["key_cache"] = -keys
    assert list(wrong(model, shown)) == ["rope"]
    for name, rows in (("key_cache", keys), ("value_cache", values)):
        moved = rows.copy()
        moved[PREFILL - 1 : -1] = moved[PREFILL:]
        shown[name] = moved
    assert list(wrong(model, shown)) == ["kv_cache"]


def test_a_fault_in_decode_alone_is_told(model: Reference) -> None:
    shown = values_of(model)
    shown["attention"] = shown["attention"].copy()
    shown["attention"][PREFILL:] *= 1.01
    assert wrong(model, shown)["attention"] == ("decode",)


def test_another_shape_and_nan_are_wrong(model: Reference) -> None:
    shown = values_of(model)
    shown["attention"] = shown["attention"][:, :-1]
    found = next(
        one for one in compare_block(model, 1, values_of(model)) if one.name == "attention"
    )
    other = Comparison(
        name="attention",
        kind="attention",
        found=found.found[:, :-1],
        expected=found.expected,
        inputs={},
    )
    assert not judge(model, other, PREFILL).passed
    broken = replace(found, found=found.found * torch.nan)
    assert not judge(model, broken, PREFILL).passed


@torch.no_grad()
def test_the_head(model: Reference) -> None:
    hidden = model.embed(torch.tensor(TOKENS[:4]))
    normed = model.head_input(hidden) if model.activation is ActivationQuantization.NONE else None
    logits = model.head(hidden)
    shown = {"hidden": hidden.numpy(), "lm_head": logits.numpy()}
    if normed is not None:
        shown["norm"] = normed.numpy()
    assert all(judge(model, one, 1).passed for one in compare_head(model, shown))
    shown["lm_head"] = (logits * 1.001).numpy()
    found = [judge(model, one, 1) for one in compare_head(model, shown)]
    assert [one.name for one in found if not one.passed] == ["lm_head"]


def test_an_int8_cache_rounds_once_more(debug_quantized: QuantizedCheckpoint) -> None:
    source = CachedSource(DequantizedSource(debug_quantized.weights))
    kind = ActivationQuantization.INT8_PER_TOKEN
    model = Reference(debug_quantized.config, source, kind, KVCacheDtype.INT8)
    shown = values_of(model)
    del shown["key_cache"], shown["value_cache"]
    assert not wrong(model, shown)
    plain = Reference(debug_quantized.config, source, kind)
    assert "rope" in wrong(plain, shown), "R3 turns queries and keys"


def test_signal_to_noise_is_capped() -> None:
    zeros = torch.zeros(3, dtype=torch.float64).numpy()
    assert snr_db(zeros) == MAX_SNR_DB
    assert snr_db(zeros + 0.1) == pytest.approx(20)
