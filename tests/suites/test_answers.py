"""A session is compared with full precision's answers, token by token."""

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.errors import UsageError
from llama_edge.core.progress import SilentProgress
from llama_edge.core.text_assets import TextAssets
from llama_edge.gate.full_answers import FullAnswers
from llama_edge.models.reference import Reference
from llama_edge.models.sources import FullPrecisionSource
from llama_edge.runtimes.eager import EagerSession
from llama_edge.suites.answers import Examiner, encode_suite
from llama_edge.suites.suite import Suite, parse_suite
from llama_edge.text.generate import Constraint
from llama_edge.text.tokenizer import Tokenizer
from tests.conftest import MemoryWeights
from tests.suites.test_checks import TIMER
from tests.suites.tiny import TINY

LIMIT = 12


@pytest.fixture(scope="module")
def suite() -> Suite:
    return parse_suite(json.dumps(TINY).encode(), "tiny.json")


@pytest.fixture(scope="module")
def full(debug_checkpoint: Checkpoint) -> Reference:
    config = debug_checkpoint.config
    return Reference(config, FullPrecisionSource(config, debug_checkpoint.weights))


def examiner(session_of: Reference, full: Reference, text: TextAssets) -> Examiner:
    return Examiner(
        session=EagerSession(session_of, 512),
        text=text,
        max_new_tokens=LIMIT,
        answer_in_full=FullAnswers(full, text, LIMIT).answer,
    )


def test_full_precision_agrees_with_itself(
    suite: Suite, full: Reference, debug_checkpoint: Checkpoint
) -> None:
    text = debug_checkpoint.text
    questions = encode_suite(suite, text, 512)
    for result in examiner(full, full, text).examine(questions, SilentProgress()):
        assert result.bundle == result.full
        assert result.tokens == result.agreeing_tokens == result.common_tokens
        assert result.bundle.failed == ("ends_with",)


def test_another_model_does_not(
    suite: Suite, full: Reference, debug_checkpoint: Checkpoint
) -> None:
    config, text = debug_checkpoint.config, debug_checkpoint.text
    other = Reference(config, FullPrecisionSource(config, MemoryWeights(config, seed=1)))
    questions = encode_suite(suite, text, 512)
    results = examiner(other, full, text).examine(questions, SilentProgress())
    assert sum(r.agreeing_tokens for r in results) < 0.3 * sum(r.tokens for r in results)


def test_one_token_that_differs_costs_one(
    suite: Suite, full: Reference, debug_checkpoint: Checkpoint
) -> None:
    """Full precision is said to answer otherwise in its second token; the rest follows from it."""
    text = debug_checkpoint.text
    [question, *_] = encode_suite(suite, text, 512)
    answers = FullAnswers(full, text, LIMIT)

    def otherwise(prompt: Sequence[int], draft: Sequence[int]) -> list[int]:
        del draft
        first = answers.answer(prompt, ())[0]
        begin = [first, 77]
        return [*begin, *answers.answer([*prompt, *begin], ())][:LIMIT]

    asked = replace(examiner(full, full, text), answer_in_full=otherwise)
    [result] = asked.examine([question], SilentProgress())
    assert result.tokens - result.agreeing_tokens == 1
    assert result.common_tokens == 1


def test_the_end_is_a_token(suite: Suite, full: Reference, debug_checkpoint: Checkpoint) -> None:
    """Full precision's answer ends where the bundle's goes on."""
    text = debug_checkpoint.text
    [question, *_] = encode_suite(suite, text, 512)
    begin = FullAnswers(full, text, LIMIT).answer(question.tokens, ())[:3]
    asked = replace(examiner(full, full, text), answer_in_full=lambda prompt, draft: begin)
    [result] = asked.examine([question], SilentProgress())
    assert (result.tokens, result.agreeing_tokens, result.common_tokens) == (4, 3, 3)


class Only:
    """Allows one token, again and again."""

    def allowed(self) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = np.arange(256) == 77
        return found

    def push(self, token: int) -> None:
        assert token == 77


def test_an_answer_may_be_constrained(
    suite: Suite, full: Reference, debug_checkpoint: Checkpoint
) -> None:
    text = debug_checkpoint.text
    [question, *_] = encode_suite(suite, text, 512)

    def constrain(prompt: object) -> Constraint:
        assert prompt is question.prompt
        return Only()

    asked = replace(examiner(full, full, text), constrain=constrain)
    [result] = asked.examine([question], SilentProgress())
    assert result.bundle.text == Tokenizer(text).decode([77] * LIMIT)


def test_a_prompt_that_does_not_fit_is_named(suite: Suite, debug_checkpoint: Checkpoint) -> None:
    [question, *_] = encode_suite(suite, debug_checkpoint.text, 512)
    needed = len(question.tokens) + LIMIT
    encode_suite(suite, debug_checkpoint.text, needed)
    with pytest.raises(UsageError, match=rf"tiny: en-0 takes {needed} tokens .* {needed - 1};"):
        encode_suite(suite, debug_checkpoint.text, needed - 1)


def asked_as(text: TextAssets, prompt: dict[str, object]) -> str:
    value = {**TINY, "prompts": [{**TINY["prompts"][0], **prompt}]}
    parsed = parse_suite(json.dumps(value).encode(), "tiny.json")
    [question] = encode_suite(parsed, text, 10_000)
    return Tokenizer(text).decode(question.tokens, skip_special_tokens=False)


def test_tools_and_a_model_without_a_template(debug_checkpoint: Checkpoint) -> None:
    text = debug_checkpoint.text
    with_tools = asked_as(text, {"tools": [TIMER]})
    assert with_tools.startswith("<|im_start|>user\nGiven the following functions")
    assert '"name": "set_timer"' in with_tools
    assert asked_as(replace(text, chat_template=None), {}) == "Say 0."
