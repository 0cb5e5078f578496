"""The tokens before the user's message."""

from dataclasses import replace
from datetime import date

import pytest

from llama_edge.checkpoints.tiktoken import LLAMA3_TEMPLATE
from llama_edge.core.errors import TokenizerError, UsageError
from llama_edge.text.prompt_prefix import common_length, depends_on_day, system_prefix
from llama_edge.text.tokenizer import Tokenizer
from tests.conftest import debug_text

SYSTEM = "Answer in one sentence."
DAY = date(2026, 11, 28)


def tokenizer_of(template: str | None) -> Tokenizer:
    return Tokenizer(replace(debug_text(), chat_template=template))


def test_every_dialog_begins_with_it() -> None:
    tokenizer = Tokenizer(debug_text())
    tokens = system_prefix(tokenizer, SYSTEM, DAY)
    text = tokenizer.decode(tokens, skip_special_tokens=False)
    assert text == f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n"
    for said in ("the rain", "9", " a", "<|im_end|>", "\u0e01"):
        dialog = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": said}]
        assert tuple(tokenizer.encode_chat(dialog))[: len(tokens)] == tokens


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (debug_text().chat_template, False),
        (LLAMA3_TEMPLATE, False),
        ("{{ strftime_now('%d %b %Y') }}" + str(debug_text().chat_template), True),
    ],
)
def test_a_day_in_the_template_is_seen(template: str, expected: bool) -> None:
    tokenizer = tokenizer_of(template)
    assert depends_on_day(tokenizer, SYSTEM) is expected
    days = {system_prefix(tokenizer, SYSTEM, day) for day in (DAY, date(2001, 2, 3))}
    assert len(days) == 1 + expected


def test_a_template_that_writes_the_system_prompt_last_has_no_prefix() -> None:
    template = "{% for m in messages | reverse %}<|im_start|>{{ m['content'] }}{% endfor %}"
    with pytest.raises(UsageError, match="only their first 1 tokens in common"):
        system_prefix(tokenizer_of(template), SYSTEM, DAY)


def test_without_a_template_or_a_place_for_the_prompt() -> None:
    with pytest.raises(TokenizerError, match="no chat template"):
        system_prefix(tokenizer_of(None), SYSTEM, DAY)
    refuses = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    )
    with pytest.raises(TokenizerError, match="takes no system message"):
        system_prefix(tokenizer_of(refuses + str(debug_text().chat_template)), SYSTEM, DAY)


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [([], [1], 0), ([1, 2], [1, 2, 3], 2), ([1, 2, 3], [1, 4, 3], 1), ([2], [1], 0)],
)
def test_common_length(first: list[int], second: list[int], same: int) -> None:
    assert common_length(first, second) == same
