from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llama_edge.core.errors import OutputError
from llama_edge.quantize.averaged_adam import AveragedAdam

RATES = torch.tensor([1e-2, 1e-2, 1e-4])
STEPS = 12


def gradients() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, generator=generator) for _ in range(STEPS)]


def adam_of(values: torch.Tensor, warm_up: int = 0, averaging: float = 0.8) -> AveragedAdam:
    return AveragedAdam(values, RATES, warm_up, averaging)


def test_steps_are_those_of_torch() -> None:
    values = torch.zeros(3)
    adam = adam_of(values)
    theirs = torch.zeros(3, requires_grad=True)
    other = torch.zeros(3, requires_grad=True)
    groups = [{"params": [theirs], "lr": 1e-2}, {"params": [other], "lr": 1e-4}]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.95), eps=1e-12)
    for gradient in gradients():
        adam.advance(gradient)
        theirs.grad, other.grad = gradient.clone(), gradient.clone()
        optimizer.step()
    torch.testing.assert_close(values[:2], theirs.detach()[:2])
    torch.testing.assert_close(values[2:], other.detach()[2:])
    assert adam.step == STEPS


def test_rates_rise_and_later_values_count_more() -> None:
    values = torch.zeros(3)
    adam = adam_of(values, warm_up=4)
    path = []
    for _ in range(STEPS):
        adam.advance(torch.ones(3))
        path.append(values.clone())
    steps = torch.stack(path).diff(dim=0, prepend=torch.zeros(1, 3))
    # Under a constant gradient each step of Adam is as long as its rate.
    warmth = torch.tensor([0.25, 0.5, 0.75, *(1.0 for _ in range(STEPS - 3))])
    torch.testing.assert_close(steps, -warmth[:, None] * RATES)
    weights = 0.8 ** torch.arange(STEPS - 1, -1, -1).float()
    expected = (weights[:, None] * torch.stack(path)).sum(0) / weights.sum()
    torch.testing.assert_close(adam.averaged(), expected)


def test_without_averaging_the_last_values_count() -> None:
    values = torch.zeros(3)
    adam = adam_of(values, averaging=0.0)
    for gradient in gradients():
        adam.advance(gradient)
    assert torch.equal(adam.averaged(), values)


def test_what_has_no_gradient_stays() -> None:
    values = torch.zeros(3)
    adam = adam_of(values)
    adam.advance(torch.tensor([1e-9, 0.0, 1.0]))
    assert values.tolist() == pytest.approx([-1e-2, 0, -1e-4], rel=1e-2)


def test_a_saved_state_resumes_to_the_same_bits(tmp_path: Path) -> None:
    values, again = torch.zeros(3), torch.zeros(3)
    whole, first, second = adam_of(values, 3), adam_of(torch.zeros(3), 3), adam_of(again, 3)
    for gradient in gradients()[:5]:
        first.advance(gradient)
    first.save(tmp_path / "state")
    assert second.load(tmp_path / "state", STEPS)
    assert second.step == 5
    for gradient in gradients():
        whole.advance(gradient)
    for gradient in gradients()[5:]:
        second.advance(gradient)
    assert torch.equal(values, again)
    assert torch.equal(whole.averaged(), second.averaged())


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def other_size(path: Path) -> None:
    adam = AveragedAdam(torch.zeros(4), torch.ones(4), 0, 0.8)
    adam.advance(torch.ones(4))
    adam.save(path)


def not_a_number(path: Path) -> None:
    adam = adam_of(torch.zeros(3))
    adam.advance(torch.tensor([1.0, torch.nan, 1.0]))
    adam.save(path)


def not_begun(path: Path) -> None:
    adam_of(torch.zeros(3)).save(path)


def too_far(path: Path) -> None:
    adam = adam_of(torch.zeros(3))
    for gradient in [*gradients(), torch.ones(3)]:
        adam.advance(gradient)
    adam.save(path)


@pytest.mark.parametrize("damage", [cut, other_size, not_a_number, not_begun, too_far])
def test_a_damaged_state_changes_nothing(damage: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "state"
    saved = adam_of(torch.zeros(3))
    saved.advance(torch.ones(3))
    saved.save(path)
    assert adam_of(torch.zeros(3)).load(path, STEPS)
    damage(path)
    values = torch.zeros(3)
    adam = adam_of(values)
    assert not adam.load(path, STEPS)
    assert adam.step == 0
    assert not values.any()


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="state of the distillation cannot be written"):
        adam_of(torch.zeros(3)).save(tmp_path / "file" / "state")
