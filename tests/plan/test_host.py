"""The host's cost against every measured export; its numbers against the rule they come from."""

from dataclasses import replace

import pytest

from llama_edge.core.model_shapes import SHAPES
from llama_edge.core.progress import Job
from llama_edge.core.recipe import Recipe
from llama_edge.plan.host import (
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
from llama_edge.quantize.measured import read_measurements

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


@BACKENDS
def test_time_is_fitted_on_short_gates_of_large_models_and_a_whole_one_of_a_small(
    backend: str,
) -> None:
    first, second = rows_of(backend, short=True)
    short = (rate(first) * rate(second)) ** 0.5
    (whole,) = rows_of(backend, short=False)
    per_token = (rate(whole) - short) / (whole.gate_tokens - first.gate_tokens)
    rates = RATES[backend]
    assert rates.token_cpu_s == pytest.approx(1000 * per_token, rel=0.01)
    assert rates.weight_cpu_s == pytest.approx(short - first.gate_tokens * per_token, rel=0.01)


def test_more_tokens_and_more_weights_cost_more() -> None:
    config, large = (SHAPES[f"llama-3.2-{size}"].config for size in ("1b", "3b"))
    small = host_cost(config, W4A8_RTN, "executorch", 800 << 20)
    big = host_cost(large, W4A8_RTN, "executorch", 1900 << 20)
    assert small.memory_mib < big.memory_mib
    assert small.cpu_minutes < big.cpu_minutes
    calibrated = host_cost(config, W4A8_GPTQ, "executorch", 800 << 20)
    # Nine times SmolLM2's linears.
    minutes = read_measurements().recipes[W4A8_GPTQ.name].cpu_minutes
    assert 8 < (calibrated.cpu_minutes - small.cpu_minutes) / minutes < 10


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


def test_rates_are_positive() -> None:
    for rates in RATES.values():
        assert isinstance(rates, HostRates)
        assert min(rates.weight_cpu_s, rates.token_cpu_s, rates.runtime_files) > 0
