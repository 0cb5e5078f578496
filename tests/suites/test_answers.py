"""A session is compared with full precision's answers, token by token."""

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest

from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.errors import UsageError
from llama_edge.core.progress import SilentProgress
from llama_edge.core.text_assets import TextAssets
from llama_edge.gate.full_answers import FullAnswers
from llama_edge.models.reference import Reference
from llama_edge.models.sources import FullPrecisionSource
from llama_edge.runtimes.eager import EagerSession
from llama_edge.suites.answers import Examiner, encode_suite
from llama_edge.suites.scores import group_scores
from llama_edge.suites.suite import Suite, parse_suite
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
        vocab_size=session_of.config.vocab_size,
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


def test_a_grammar_keeps_calls_valid(full: Reference, debug_checkpoint: Checkpoint) -> None:
    """A model of random weights writes none otherwise."""
    text = debug_checkpoint.text
    value = {**TINY, "prompts": [{**TINY["prompts"][0], "tools": [TIMER]}, *TINY["prompts"][1:2]]}
    questions = encode_suite(parse_suite(json.dumps(value).encode(), "tiny.json"), text, 2048)
    asked = replace(examiner(full, full, text), session=EagerSession(full, 2048))
    called, plain = asked.examine(questions, SilentProgress())
    assert called.bundle.valid_call is False
    assert called.constrained is not None
    assert called.constrained.valid_call is True
    assert plain.constrained is None
    shares = group_scores([called, plain])[0].metrics
    assert (shares["tool_call"].value, shares["constrained_tool_call"].value) == (0, 1)
    # A call that is cut is none.
    cut = replace(asked, max_call_tokens=3).examine(questions[:1], SilentProgress())[0]
    assert cut.constrained is not None
    assert cut.constrained.valid_call is False


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
    assert with_tools.startswith("<|im_start|>system\nYou have access to the following functions")
    assert '"name": "set_timer"' in with_tools
    assert with_tools.index("set_timer") < with_tools.index("Say 0.")
    plain = asked_as(replace(text, chat_template=None), {"tools": [TIMER]})
    assert plain.startswith("You have access to the following functions")
    assert plain.endswith("Say 0.")
    assert asked_as(replace(text, chat_template=None), {}) == "Say 0."
