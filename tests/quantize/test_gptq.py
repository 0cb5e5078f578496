import pytest
import torch

from llama_edge.core.errors import QuantizeError
from llama_edge.quantize.gptq import Curvature, gptq_codes
from llama_edge.quantize.groupwise import choose_scales


def problem(rows: int = 24, columns: int = 96, tokens: int = 400) -> tuple[torch.Tensor, ...]:
    """A matrix, correlated inputs, their Hessian and the matrix's scales."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, columns, generator=generator)
    mix = torch.randn(columns, columns, generator=generator) / columns**0.5
    inputs = torch.randn(tokens, columns, generator=generator) @ (mix + 0.3 * torch.eye(columns))
    return weight, inputs, inputs.T @ inputs, choose_scales(weight, 4, 32)


def rounded(weight: torch.Tensor, hessian: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return gptq_codes(weight, Curvature.of("w", hessian), scales, 4)


def output_error(weight: torch.Tensor, rounded: torch.Tensor, inputs: torch.Tensor) -> float:
    return float(((weight - rounded) @ inputs.T).square().mean())


def values(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return codes.float() * scales.float().repeat_interleave(32, dim=1)


def nearest(weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    wide = scales.float().repeat_interleave(32, dim=1)
    return (weight / wide).round().clamp(-8, 7)


def slow_codes(weight: torch.Tensor, hessian: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The paper's greedy step by its definition: solve for the rest after each rounded column."""
    columns = weight.shape[1]
    hessian = hessian.double() + 0.01 * hessian.diagonal().mean().double() * torch.eye(columns)
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True).tolist()
    current, codes = weight.double().clone(), torch.empty_like(weight)
    wide = scales.double().repeat_interleave(32, dim=1)
    for place, column in enumerate(order):
        codes[:, column] = (current[:, column] / wide[:, column]).round().clamp(-8, 7).float()
        error = current[:, column] - codes[:, column].double() * wide[:, column]
        rest = order[place + 1 :]
        if rest:
            update = torch.linalg.solve(hessian[rest][:, rest], hessian[rest][:, [column]])
            current[:, rest] += error[:, None] * update.T
    return codes


def test_equals_the_definition() -> None:
    weight, _, hessian, scales = problem()
    codes = rounded(weight, hessian, scales).float()
    assert (codes == slow_codes(weight, hessian, scales)).float().mean() > 0.999


def test_outputs_are_nearer_than_by_rounding() -> None:
    weight, inputs, hessian, scales = problem()
    found = output_error(weight, values(rounded(weight, hessian, scales), scales), inputs)
    plain = output_error(weight, values(nearest(weight, scales), scales), inputs)
    assert found < 0.6 * plain


def test_uncorrelated_inputs_give_plain_rounding() -> None:
    weight, _, _, scales = problem()
    codes = rounded(weight, torch.diag(torch.rand(96) + 0.5), scales)
    assert torch.equal(codes.float(), nearest(weight, scales))


def test_a_dead_input_is_rounded_and_disturbs_nothing() -> None:
    weight, inputs, _, scales = problem()
    inputs[:, 40] = 0
    codes = rounded(weight, inputs.T @ inputs, scales)
    assert torch.equal(codes[:, 40].float(), nearest(weight, scales)[:, 40])
    changed = weight.clone()
    changed[:, 40] *= -1
    other = rounded(changed, inputs.T @ inputs, scales)
    keep = torch.arange(96) != 40
    assert torch.equal(codes[:, keep], other[:, keep])


def test_no_input_at_all_is_plain_rounding() -> None:
    weight, _, _, scales = problem()
    codes = rounded(weight, torch.zeros(96, 96), scales)
    assert torch.equal(codes.float(), nearest(weight, scales))


def test_an_all_zero_row_stays_zero() -> None:
    weight, _, hessian, _ = problem()
    weight[3] = 0
    codes = rounded(weight, hessian, choose_scales(weight, 4, 32))
    assert not codes[3].any()


def test_fewer_tokens_than_a_group_are_damped() -> None:
    weight, inputs, _, scales = problem(tokens=5)
    codes = rounded(weight, inputs.T @ inputs, scales)
    plain = output_error(weight, values(nearest(weight, scales), scales), inputs)
    assert output_error(weight, values(codes, scales), inputs) < plain


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_activations_that_are_not_finite(bad: float) -> None:
    _, _, hessian, _ = problem()
    hessian[2, 2] = bad
    with pytest.raises(QuantizeError, match="mlp: its calibration activations are not finite"):
        Curvature.of("mlp", hessian)


def test_a_hessian_that_is_none() -> None:
    _, _, hessian, _ = problem()
    with pytest.raises(QuantizeError, match="not positive definite"):
        Curvature.of("w", hessian - 1e6 * torch.ones(96, 96))
