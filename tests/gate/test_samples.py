"""Short answers for a person to read."""

import pytest

from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.progress import SilentProgress
from llama_edge.gate import samples
from llama_edge.gate.samples import SAMPLE_QUESTIONS, write_samples
from llama_edge.models.reference import Reference
from llama_edge.models.sources import FullPrecisionSource
from llama_edge.runtimes.eager import EagerSession


@pytest.fixture(scope="module")
def full(debug_checkpoint: Checkpoint) -> Reference:
    return Reference(
        debug_checkpoint.config,
        FullPrecisionSource(debug_checkpoint.config, debug_checkpoint.weights),
    )


def test_both_answer_the_same_questions(full: Reference, debug_checkpoint: Checkpoint) -> None:
    with EagerSession(full, 512) as session:
        found = write_samples(session, full, debug_checkpoint.text, SilentProgress())
    assert [sample.question for sample in found] == [question for _, question in SAMPLE_QUESTIONS]
    for sample in found:
        assert sample.artifact == sample.full
        assert sample.same_tokens == sample.artifact_tokens


def test_without_full_precision(
    full: Reference, debug_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    with EagerSession(full, 512) as session:
        found = write_samples(session, None, debug_checkpoint.text, SilentProgress())
        assert all(sample.full is None for sample in found)
        monkeypatch.setattr(samples, "MAX_FULL_BYTES", 1)
        found = write_samples(session, full, debug_checkpoint.text, SilentProgress())
        assert all(sample.full is None and sample.artifact for sample in found)


def test_a_context_that_holds_no_answer_is_left_out(
    full: Reference, debug_checkpoint: Checkpoint
) -> None:
    with EagerSession(full, 20) as session:
        assert write_samples(session, None, debug_checkpoint.text, SilentProgress()) == ()
