"""A reading is one prompt and its steps, and emulations have none."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from llama_edge.backends import get_exporter
from llama_edge.bundle.folder import Bundle
from llama_edge.core.errors import UsageError
from llama_edge.core.session import ClosesOnExit, FloatArray
from llama_edge.runtimes.child import ChildRuntime
from llama_edge.runtimes.speed import TIMED_FACTORY, SpeedPlan, time_session, timed_name
from tests.stateless import Stateless


class Recorder(Stateless, ClosesOnExit):
    """Writes down what is asked of it; after token t it wants t + 1."""

    max_context = 99

    def __init__(self) -> None:
        self.calls: list[list[int] | str] = []

    def prefill(self, tokens: Sequence[int]) -> FloatArray:
        self.calls.append(list(tokens))
        logits: FloatArray = np.eye(8, dtype=np.float32)[(tokens[-1] + 1) % 8]
        return logits

    def prefill_logits(self, tokens: Sequence[int]) -> FloatArray:
        raise NotImplementedError

    def decode(self, token: int) -> FloatArray:
        return self.prefill([token])

    def reset(self, keep: int = 0) -> None:
        self.calls.append("reset")

    def close(self) -> None:
        return


def test_a_reading_is_one_prompt_and_greedy_steps() -> None:
    session = Recorder()
    reading = time_session(session, SpeedPlan(prompt_tokens=6, new_tokens=3), vocab_size=8)
    assert session.calls == ["reset", [3, 4, 5, 6, 7, 0], [1], [2], [3]]
    assert reading.first_token_s > 0
    assert reading.decode_s > 0


def test_an_emulation_has_no_speed() -> None:
    with pytest.raises(UsageError, match="no speed figure"):
        timed_name("coreml", 2)


@pytest.mark.parametrize("target", ["android", "onnx"])
def test_a_bundle_is_timed_in_its_child(debug_bundles: Mapping[str, Bundle], target: str) -> None:
    bundle = debug_bundles[target]
    backend = bundle.manifest.backend
    artifact = get_exporter(backend).open(bundle.root).artifact
    with ChildRuntime(timed_name(backend, 1), factory=TIMED_FACTORY) as runtime:
        before = runtime.peak_rss_bytes()
        with runtime.open(artifact) as session:
            plan = SpeedPlan(prompt_tokens=4, new_tokens=2)
            reading = session.measure(plan, artifact.config.vocab_size)
            after = session.peak_rss_bytes()
    assert 1 << 20 < before <= after
    assert reading.first_token_s > 0
    assert reading.decode_s > 0
