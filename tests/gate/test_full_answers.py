"""Full precision's answers do not depend on the draft that saves it passes."""

import pytest

from llama_edge.core.checkpoint import Checkpoint
from llama_edge.gate.full_answers import FullAnswers
from llama_edge.models.reference import Reference
from llama_edge.models.sources import FullPrecisionSource
from llama_edge.runtimes.eager import EagerSession
from llama_edge.text.generate import Generation

MAX_NEW_TOKENS = 16


@pytest.fixture(scope="module")
def full(debug_checkpoint: Checkpoint) -> Reference:
    return Reference(
        debug_checkpoint.config,
        FullPrecisionSource(debug_checkpoint.config, debug_checkpoint.weights),
    )


def greedy(model: Reference, prompt: list[int], checkpoint: Checkpoint) -> list[int]:
    session = EagerSession(model, 512)
    ends = checkpoint.text.eos_token_ids
    return [*Generation(session, prompt, eos_token_ids=ends, max_new_tokens=MAX_NEW_TOKENS)]


def test_a_draft_changes_nothing(full: Reference, debug_checkpoint: Checkpoint) -> None:
    answers = FullAnswers(full, debug_checkpoint.text, MAX_NEW_TOKENS)
    for prompt in ([3, 40, 41], [3, 70, 99, 120, 30]):
        wanted = greedy(full, prompt, debug_checkpoint)
        for draft in ([], wanted, wanted[:4], [*wanted[:3], 17, 18], [5], [*wanted, 9][:16]):
            assert answers.answer(prompt, draft) == wanted
