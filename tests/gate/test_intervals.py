import numpy as np
import pytest

from llama_edge.gate.intervals import (
    CONFIDENCE,
    MIN_WINDOWS,
    WindowIndices,
    estimate,
    resamples,
    student_quantile,
    tail_probability,
)


@pytest.mark.parametrize(
    ("degrees", "expected"), [(3, 3.182), (4, 2.776), (7, 2.365), (30, 2.042), (10**9, 1.960)]
)
def test_student_quantiles_of_the_printed_table(degrees: int, expected: float) -> None:
    assert student_quantile(0.975, degrees) == pytest.approx(expected, rel=2e-3)
    assert student_quantile(0.025, degrees) == pytest.approx(-expected, rel=2e-3)


def test_the_tail_widens_for_few_windows() -> None:
    assert tail_probability(10**6) == pytest.approx(0.025, rel=1e-3)
    assert tail_probability(8) == pytest.approx(0.0057, rel=0.01)


@pytest.mark.parametrize("windows", [MIN_WINDOWS, 12])
def test_intervals_cover_the_truth_as_often_as_they_say(windows: int) -> None:
    """Windows with a common part each, as text has: the truth is 3."""
    generator = np.random.default_rng(7)
    trials, covered = 150, 0
    for _ in range(trials):
        means = 3 + generator.normal(size=windows)

        def mean(indices: WindowIndices, means: np.ndarray = means) -> float:
            return float(means[indices].mean())

        found = estimate(mean, windows, seed=0)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 3 <= found.high
    assert abs(covered / trials - CONFIDENCE) < 0.05


def test_too_few_windows_have_a_value_and_no_interval() -> None:
    found = estimate(lambda indices: float(len(indices)), MIN_WINDOWS - 1, seed=0)
    assert (found.value, found.low, found.high) == (MIN_WINDOWS - 1, None, None)


def test_draws_are_seeded() -> None:
    first, again, other = (np.stack(list(resamples(9, seed))) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert set(first.ravel().tolist()) == set(range(9))
