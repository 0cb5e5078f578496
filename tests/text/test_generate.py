"""Greedy and sampled generation over a scripted session."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from llama_edge.core.errors import SessionError, UsageError
from llama_edge.core.session import FloatArray, check_tokens
from llama_edge.text.generate import Generation, SamplingConfig, StopReason, token_probabilities


class CountingSession:
    """After token t, t + 1 is the most probable of 10, and t + 2 the next."""

    def __init__(self, max_context: int = 100) -> None:
        self.max_context = max_context
        self.seen: list[int] = []

    def prefill(self, tokens: Sequence[int]) -> FloatArray:
        check_tokens(tokens, used=len(self.seen), max_context=self.max_context, vocab_size=10)
        self.seen += tokens
        logits = np.zeros(10, np.float32)
        logits[(tokens[-1] + 1) % 10] = 6.0
        logits[(tokens[-1] + 2) % 10] = 5.0
        return logits

    def prefill_logits(self, tokens: Sequence[int]) -> FloatArray:
        return self.prefill(tokens)[None]

    def decode(self, token: int) -> FloatArray:
        return self.prefill([token])

    def reset(self, keep: int = 0) -> None:
        self.seen = []

    def close(self) -> None: ...

    def __enter__(self) -> "CountingSession":
        return self

    def __exit__(self, *_: object) -> None: ...


def test_greedy_stops_before_any_eos() -> None:
    for eos, expected in (((7,), [3, 4, 5, 6]), ((9, 5), [3, 4]), ((3,), [])):
        generation = Generation(CountingSession(), [1, 2], eos_token_ids=eos, max_new_tokens=20)
        assert list(generation) == expected
        assert generation.stop_reason is StopReason.EOS


def test_max_new_tokens_and_no_needless_decode() -> None:
    session = CountingSession()
    generation = Generation(session, [1, 2], eos_token_ids=(), max_new_tokens=3)
    assert list(generation) == [3, 4, 5]
    assert generation.stop_reason is StopReason.MAX_NEW_TOKENS
    assert session.seen == [1, 2, 3, 4]


@pytest.mark.parametrize("prompt_length", [1, 5, 6])
def test_context_full(prompt_length: int) -> None:
    session = CountingSession(max_context=6)
    generation = Generation(session, [0] * prompt_length, eos_token_ids=(), max_new_tokens=50)
    assert len(list(generation)) == 6 - prompt_length + 1
    assert generation.stop_reason is StopReason.CONTEXT_FULL
    assert len(session.seen) == 6


def test_sampling_is_seeded_and_varies() -> None:
    def run(seed: int) -> list[int]:
        sampling = SamplingConfig(temperature=1.0, seed=seed)
        return list(
            Generation(
                CountingSession(), [0], eos_token_ids=(), max_new_tokens=30, sampling=sampling
            )
        )

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_token_probabilities_by_hand() -> None:
    logits = np.log(np.array([0.1, 0.4, 0.2, 0.3], np.float32))

    def kept(**values: float) -> list[float]:
        sampling = SamplingConfig(**{"temperature": 1.0, **values})  # type: ignore[arg-type]
        return [round(float(p), 6) for p in token_probabilities(logits, sampling)]

    assert kept() == [0.1, 0.4, 0.2, 0.3]
    assert kept(top_k=2) == [0, 0.571429, 0, 0.428571]
    assert kept(top_p=0.39) == [0, 1, 0, 0]
    assert kept(top_p=0.5) == [0, 0.571429, 0, 0.428571]
    assert kept(top_p=0.01) == [0, 1, 0, 0]
    assert kept(temperature=0.5) == [0.033333, 0.533333, 0.133333, 0.3]


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", -1), ("temperature", np.nan), ("top_p", 0), ("top_p", 1.5), ("top_k", -1)],
)
def test_bad_sampling_is_refused(name: str, value: float) -> None:
    with pytest.raises(UsageError, match="must be"):
        SamplingConfig(**{name: value})  # type: ignore[arg-type]


class OddTokens:
    """Odd tokens only, and none after 7."""

    def __init__(self, ending: int = -1) -> None:
        self.pushed: list[int] = []
        self.ending = ending

    def allowed(self) -> NDArray[np.bool_]:
        allowed: NDArray[np.bool_] = np.arange(10) % 2 == 1
        return np.zeros_like(allowed) if 7 in self.pushed else allowed

    def in_time(self, token: int, left: int) -> int:
        return token if left >= self.ending else 7

    def push(self, token: int) -> None:
        self.pushed.append(token)


@pytest.mark.parametrize("temperature", [0.0, 5.0])
def test_a_constraint_decides_which_tokens_are_chosen(temperature: float) -> None:
    constraint = OddTokens()
    generation = Generation(
        CountingSession(),
        [2],
        eos_token_ids=[7],
        max_new_tokens=50,
        sampling=SamplingConfig(temperature=temperature),
        constraint=constraint,
    )
    made = list(generation)
    assert made
    assert all(token % 2 for token in made)
    assert constraint.pushed == made  # the end is not pushed
    assert generation.stop_reason is StopReason.EOS


def test_a_constraint_that_allows_nothing_is_an_error() -> None:
    generation = Generation(
        CountingSession(), [6], eos_token_ids=(), max_new_tokens=5, constraint=OddTokens()
    )
    with pytest.raises(SessionError, match="the grammar allows no token here"):
        list(generation)


@pytest.mark.parametrize(("most", "context"), [(6, 100), (50, 6)])
def test_a_constraint_is_told_how_many_tokens_are_left(most: int, context: int) -> None:
    """Six: by the caller's limit, or by the context's. It would say 9, 1, 3, 5, and end."""
    constraint = OddTokens(ending=2)
    session = CountingSession(context)
    generation = Generation(
        session, [7], eos_token_ids=[7], max_new_tokens=most, constraint=constraint
    )
    assert len(list(generation)) == 3
    expected = StopReason.MAX_NEW_TOKENS if most == 6 else StopReason.CONTEXT_FULL
    assert generation.stop_reason is expected
