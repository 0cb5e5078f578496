"""The judgement of a prompt state, over sessions whose faults are known."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from llama_edge.bundle.prompt_state import Origin, PromptState
from llama_edge.core.artifact import ActivationQuantization, KVCacheDtype
from llama_edge.core.cache_state import CacheState
from llama_edge.core.progress import SilentProgress
from llama_edge.core.session import ClosesOnExit, FloatArray
from llama_edge.gate.prompt_state import StateLimits, StateReport, check_state
from llama_edge.gate.tolerances import Tolerances
from llama_edge.text.tokenizer import Tokenizer
from tests.conftest import debug_text

CONTEXT, TOKENS, VOCAB = 64, (5, 7, 11, 13), 256
LIMIT_KL = 1e-2


class Sums(ClosesOnExit):
    """The cache is one number a token; logits follow from their sum.

    Args:
        drift: Added to every number that is read, more with every call.
        loss: Added to the first number that is restored.
        cut: Added to the logits of a call of that many tokens and more.
    """

    max_context = CONTEXT

    def __init__(self, drift: float = 0.0, loss: float = 0.0, cut: int = CONTEXT) -> None:
        self._drift, self._loss, self._cut = drift, loss, cut
        self._reads = count()
        self._cache: list[np.float32] = []

    def prefill(self, tokens: Sequence[int]) -> FloatArray:
        drift = self._drift * next(self._reads)
        self._cache += [np.float32(1 + token / VOCAB + drift) for token in tokens]
        more = 0.5 if len(tokens) >= self._cut else 0.0
        total = sum(map(float, self._cache)) + more
        logits: FloatArray = np.sin(np.arange(VOCAB) * total).astype(np.float32)
        return logits

    def prefill_logits(self, tokens: Sequence[int]) -> FloatArray:
        raise NotImplementedError

    def decode(self, token: int) -> FloatArray:
        return self.prefill([token])

    def reset(self, keep: int = 0) -> None:
        del self._cache[keep:]

    def save(self) -> CacheState:
        values = np.array(self._cache, np.float32).reshape(-1, 1, 1)
        return CacheState(
            kv_cache=KVCacheDtype.FLOAT32, tokens=len(values), arrays={"key.0": values}
        )

    def restore(self, state: CacheState) -> None:
        self._cache = [*state.arrays["key.0"].ravel()]
        self._cache[0] += np.float32(self._loss)

    def close(self) -> None: ...


def check(
    *, drift: float = 0.0, loss: float = 0.0, cut: int = CONTEXT, made: float = 0.0
) -> StateReport:
    """Of a state whose first number is wrong by `made`."""
    session = Sums()
    session.prefill(TOKENS)
    cache = session.save()
    cache.arrays["key.0"][0] += np.float32(made)
    state = PromptState(
        origin=Origin(
            artifact_sha256="",
            text_sha256="",
            runtime="onnx",
            runtime_version="1",
            max_context=CONTEXT,
            system="",
            day=None,
        ),
        tokens=TOKENS,
        cache=cache,
    )
    limits = StateLimits(mean_kl=LIMIT_KL, row_error=1e-4)
    return check_state(
        state,
        lambda: Sums(drift, loss, cut),
        Tokenizer(debug_text()),
        limits,
        SilentProgress(),
    )


def where(report: StateReport) -> list[str]:
    return [finding.where for finding in report.findings]


def test_a_right_state() -> None:
    report = check()
    assert report.passed
    assert (report.deterministic, report.same_rows, report.same_logits) == (True, True, True)
    assert (report.mean_kl, report.one_call_mean_kl, report.row_error) == (0.0, 0.0, None)
    assert report.to_json()["passed"] is True


def test_a_runtime_that_loses_a_bit_when_it_restores() -> None:
    report = check(loss=1e-6)
    assert where(report) == ["logits"]
    assert "the same bit for bit" in report.findings[0].message


def test_rows_of_another_prompt() -> None:
    report = check(made=1e-2)
    assert where(report)[0] == "rows"
    assert not report.same_rows
    small = check(made=1e-7)
    assert small.passed, "as far as another order of additions goes"
    assert not small.same_rows


def test_a_runtime_that_does_not_do_the_same_twice() -> None:
    """Then logits may differ, within the noise."""
    report = check(drift=1e-6)
    assert report.passed
    assert not report.deterministic
    assert not report.same_logits
    wild = check(drift=1e-2)
    assert "logits" in where(wild)
    assert "at most 0.01" in wild.findings[-1].message


def test_what_it_costs_to_read_a_prompt_in_two_calls_is_told() -> None:
    """It is the runtime's doing, with a state or without."""
    report = check(cut=len(TOKENS) + 16)
    assert report.passed
    assert report.mean_kl == 0.0
    assert report.one_call_mean_kl is not None
    assert report.one_call_mean_kl > LIMIT_KL


@pytest.mark.parametrize(
    ("activation", "floor", "expected"),
    [
        (ActivationQuantization.NONE, 0.5, 1e-6),
        (ActivationQuantization.INT8_PER_TOKEN, 0.5, 1.0 + 5e-6),
        (ActivationQuantization.INT8_PER_TOKEN, None, None),
    ],
)
def test_the_limits_are_the_gate_s(
    activation: ActivationQuantization, floor: float | None, expected: float | None
) -> None:
    assert StateLimits.of(activation, floor, Tolerances()).mean_kl == expected


def test_an_int8_cache_is_compared_by_its_numbers() -> None:
    codes = np.array([[[10, -20]]], np.int8)
    arrays: dict[str, NDArray[Any]] = {
        "key.0.codes": codes,
        "key.0.zero_points": np.array([[[4]]], np.int8),
        "key.0.scales": np.array([[[0.5]]], np.float32),
    }
    state = CacheState(kv_cache=KVCacheDtype.INT8, tokens=1, arrays=arrays)
    ((name, rows),) = state.rows()
    assert (name, rows.tolist()) == ("key.0", [[[3.0, -12.0]]])
    assert not replace(state, arrays={**arrays, "key.0.codes": codes + 1}).equals(state)
