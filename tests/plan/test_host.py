"""The host's cost against every measured export; its numbers against the rule they come from."""

from dataclasses import replace

import pytest

from llama_edge.core.model_shapes import SHAPES
from llama_edge.core.progress import Job
from llama_edge.core.recipe import Recipe
from llama_edge.plan.host import (
    CALIBRATED_LINEARS,
    CALIBRATION,
    CPU_BAND,
    FIXED_CPU_S,
    GATE_TOKENS,
    MEMORY_BAND,
    RATES,
    HostRates,
    host_cost,
    is_planned,
    stage_seconds,
    weights_of,
)
from llama_edge.plan.host_rows import HOST_ROWS, HostRow
from llama_edge.plan.plan import planned_config
from llama_edge.quantize import (
    RECIPES,
    W4A8_DISTILLED,
    W4A8_GPTQ,
    W4A8_MIXED,
    W4A8_RTN,
    W4A8_SPINQUANT,
)

ROWS = pytest.mark.parametrize(
    "row", HOST_ROWS, ids=lambda row: f"{row.model}-{row.backend}-{row.gate_tokens}"
)
BACKENDS = pytest.mark.parametrize("backend", RATES)
PLANNED = [recipe for recipe in RECIPES.values() if is_planned(recipe)]


@ROWS
def test_every_measured_export_is_within_the_bands(row: HostRow) -> None:
    found = row.planned(planned_config(row.model), W4A8_RTN)
    assert 60 * found.cpu_minutes == pytest.approx(row.cpu_s, rel=CPU_BAND)
    assert found.memory_mib == pytest.approx(row.memory_mib, rel=MEMORY_BAND)


@ROWS
def test_wrong_rates_are_outside_the_bands(row: HostRow, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bands would notice twice the work a weight, and a file that is held twice more."""
    rates = RATES[row.backend]
    wrong = replace(
        rates,
        weight_cpu_s=2 * rates.weight_cpu_s,
        token_cpu_s=2 * rates.token_cpu_s,
        runtime_mib=2 * rates.runtime_mib,
        runtime_files=2 * rates.runtime_files,
    )
    monkeypatch.setattr("llama_edge.plan.host.RATES", {row.backend: wrong})
    found = row.planned(planned_config(row.model), W4A8_RTN)
    assert 60 * found.cpu_minutes != pytest.approx(row.cpu_s, rel=CPU_BAND)
    assert found.memory_mib != pytest.approx(row.memory_mib, rel=MEMORY_BAND)


def rate(row: HostRow) -> float:
    """CPU seconds for each million weights."""
    return (row.cpu_s - FIXED_CPU_S) / sum(weights_of(planned_config(row.model))) * 1e6


def rows_of(backend: str, *, short: bool) -> list[HostRow]:
    return [
        row
        for row in HOST_ROWS
        if row.backend == backend and (row.gate_tokens < GATE_TOKENS) is short
    ]


def tokens_cost(row: HostRow, rates: HostRates) -> float:
    """Of the gate, CPU seconds for each million weights."""
    config = planned_config(row.model)
    layers = 1e6 * config.num_hidden_layers / sum(weights_of(config))
    return row.gate_tokens / 1000 * (rates.token_cpu_s + rates.layer_cpu_s * layers)


@BACKENDS
def test_weights_are_fitted_on_short_gates_and_tokens_on_whole_ones(backend: str) -> None:
    rates = RATES[backend]
    first, second = rows_of(backend, short=True)
    short = (rate(first) * rate(second)) ** 0.5
    assert rates.weight_cpu_s == pytest.approx(short - tokens_cost(first, rates), rel=0.01)
    for row in rows_of(backend, short=False):
        found = rates.weight_cpu_s + tokens_cost(row, rates)
        assert found == pytest.approx(rate(row), rel=0.02)


def test_a_layer_costs_the_share_that_was_measured_on_one_backend() -> None:
    assert len(rows_of("executorch", short=False)) == 2
    shares = [rates.layer_cpu_s / rates.token_cpu_s for rates in RATES.values()]
    assert shares == pytest.approx([shares[0]] * len(shares), rel=0.01)


def test_more_tokens_and_more_weights_cost_more() -> None:
    config, large = (SHAPES[f"llama-3.2-{size}"].config for size in ("1b", "3b"))
    small = host_cost(config, W4A8_RTN, "executorch", 800 << 20)
    big = host_cost(large, W4A8_RTN, "executorch", 1900 << 20)
    assert small.memory_mib < big.memory_mib
    assert small.cpu_minutes < big.cpu_minutes
    calibrated, mixed = (
        host_cost(config, recipe, "executorch", 800 << 20) for recipe in (W4A8_GPTQ, W4A8_MIXED)
    )
    assert small.cpu_minutes < calibrated.cpu_minutes < mixed.cpu_minutes


@pytest.mark.parametrize(("model", "which"), [("smollm2-135m", "small"), ("llama-3.2-1b", "large")])
def test_calibration_takes_what_was_measured(model: str, which: str) -> None:
    config = planned_config(model)
    planned = stage_seconds(Job(config=config, recipe=W4A8_MIXED))
    assert weights_of(config)[1] in CALIBRATED_LINEARS
    for stage in ("write calibration text", "measure sensitivity, back"):
        assert planned[stage] == pytest.approx(getattr(CALIBRATION[stage], which))


@pytest.mark.parametrize("recipe", PLANNED, ids=lambda recipe: recipe.name)
@BACKENDS
def test_the_stages_are_the_whole_cost_but_the_start(recipe: Recipe, backend: str) -> None:
    config = SHAPES["llama-3.2-1b"].config
    found = stage_seconds(Job(config=config, recipe=recipe, backend=backend))
    whole = host_cost(config, recipe, backend, 800 << 20)
    assert sum(found.values()) == pytest.approx(60 * whole.cpu_minutes - FIXED_CPU_S)
    quantizing = stage_seconds(Job(config=config, recipe=recipe))
    last = f"quantize ({recipe.name})"
    assert list(quantizing) == list(found)[: 1 + list(found).index(last)]


def test_only_what_a_recipe_has_is_planned() -> None:
    config = SHAPES["llama-3.2-1b"].config

    def stages(recipe: Recipe) -> list[str]:
        return list(stage_seconds(Job(config=config, recipe=recipe)))

    assert stages(W4A8_RTN) == ["quantize (w4a8-rtn)"]
    assert stages(W4A8_GPTQ) == ["write calibration text", "quantize (w4a8-gptq)"]
    assert stages(W4A8_SPINQUANT)[1:2] == ["learn rotations"]
    assert stages(W4A8_MIXED)[1:3] == [
        "measure sensitivity, forward",
        "measure sensitivity, back",
    ]
    assert stages(W4A8_DISTILLED) == []


def test_calibration_at_3b_is_within_half_of_what_was_measured() -> None:
    """Nothing was fitted on it: `benchmarks/scale.py --recipe w4a8-mixed`, docs/scale.md."""
    planned = stage_seconds(Job(config=SHAPES["llama-3.2-3b"].config, recipe=W4A8_MIXED))
    sensitivity = planned["measure sensitivity, forward"] + planned["measure sensitivity, back"]
    assert 1 / 1.5 < sensitivity / 587 < 1.5
    assert 1 / 1.5 < planned["quantize (w4a8-mixed)"] / 1832 < 1.5


def test_rates_are_positive() -> None:
    for rates in RATES.values():
        assert isinstance(rates, HostRates)
        assert min(rates.weight_cpu_s, rates.token_cpu_s, rates.runtime_files) > 0
