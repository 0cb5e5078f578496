"""Prompts: long enough, in every language, the same each time, and within the context."""

from dataclasses import replace

import pytest

from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.errors import ConfigError, TokenizerError
from llama_edge.gate.prompts import PromptPlan, check_context, fidelity_prompts, gate_prompts
from llama_edge.text.tokenizer import Tokenizer

LANGUAGES = {"en", "de", "fr", "it", "pt", "hi", "es", "th"}


@pytest.fixture(scope="module")
def tokenizer(smollm2: Checkpoint) -> Tokenizer:
    return Tokenizer(smollm2.text)


def test_real_tokenizer_and_template(tokenizer: Tokenizer) -> None:
    prompts = fidelity_prompts(tokenizer, 2048)
    assert {prompt.language for prompt in prompts} == LANGUAGES
    kinds = {prompt.name.rsplit("-", 1)[0] for prompt in prompts}
    assert kinds == {"chat", "summary", "rewriting", "retrieval-query", "tool-call"}
    for prompt in prompts:
        assert 64 <= len(prompt.tokens) <= 160, prompt.name
        assert len(prompt.continuation) == 64
        text = tokenizer.decode(prompt.tokens, skip_special_tokens=False)
        assert text.count("<|im_start|>user") == 1
        assert text.endswith("<|im_start|>assistant\n")


def test_gate_prompts_are_four_scripts_and_deterministic(tokenizer: Tokenizer) -> None:
    prompts = gate_prompts(tokenizer, 2048)
    assert [prompt.language for prompt in prompts] == ["en", "de", "hi", "th"]
    assert prompts == gate_prompts(tokenizer, 2048)
    assert prompts == fidelity_prompts(tokenizer, 2048)[:4]
    first = prompts[0]
    assert first.sequence == first.tokens + first.continuation


def test_continuation_is_the_answer(tokenizer: Tokenizer) -> None:
    answer = tokenizer.decode(gate_prompts(tokenizer, 2048)[1].continuation)
    assert answer.startswith("Ein Verein hat die seit vierzig Jahren leere Wassermühle gekauft")


def test_without_a_template_the_text_is_raw(smollm2: Checkpoint) -> None:
    raw = replace(smollm2.text, chat_template=None, bos_token_id=1, add_bos=True)
    tokenizer = Tokenizer(raw)
    for prompt in gate_prompts(tokenizer, 2048):
        assert prompt.tokens[0] == 1
        assert len(prompt.tokens) >= 64
        assert "<|im_start|>user" not in tokenizer.decode(prompt.tokens, skip_special_tokens=False)
        assert 1 not in prompt.continuation


def test_a_small_context_shortens_the_continuation(tokenizer: Tokenizer) -> None:
    for prompt in gate_prompts(tokenizer, 160):
        assert len(prompt.tokens) >= 64
        assert len(prompt.continuation) == min(64, 160 - len(prompt.tokens))


def test_a_context_too_small_is_told_with_one_that_is_not(tokenizer: Tokenizer) -> None:
    with pytest.raises(
        ConfigError, match=r"max_context is 40; .* prompt .* --max-context \d+"
    ) as no:
        check_context(tokenizer, 40)
    enough = int(str(no.value).rpartition("--max-context ")[2].split()[0])
    check_context(tokenizer, enough)
    with pytest.raises(ConfigError, match=f"--max-context {enough} or more"):
        check_context(tokenizer, enough - 1)
    # A plan that runs less fits where all of it would not.
    check_context(tokenizer, 40, PromptPlan(gate=1, fidelity=1, max_prompt_tokens=16))


class FrugalTokenizer:
    """One token for 20 characters: a prompt's own sentences are not enough."""

    has_chat_template = False

    def encode(self, text: str, *, add_bos: bool | None = None) -> list[int]:
        return [len(text) % 97 for _ in range(0, len(text), 20)]


def test_few_tokens_are_made_up_for_by_more_text() -> None:
    for prompt in gate_prompts(FrugalTokenizer(), 2048):  # type: ignore[arg-type]
        assert 64 <= len(prompt.tokens) < 100
        assert len(prompt.continuation) == 64


class MuteTokenizer(FrugalTokenizer):
    def encode(self, text: str, *, add_bos: bool | None = None) -> list[int]:
        return [0]


def test_a_tokenizer_that_swallows_text_is_an_error() -> None:
    with pytest.raises(TokenizerError, match="makes 1 tokens, 64 are needed"):
        gate_prompts(MuteTokenizer(), 2048)  # type: ignore[arg-type]
