"""Verdicts: parsed, and written by a grammar that allows nothing else."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_edge.core.errors import GuardError
from llama_edge.core.model_shapes import SHAPES
from llama_edge.text.generate import Generation, SamplingConfig
from llama_edge.text.guard_answer import AnswerGrammar, parse_guard_answer, possible_answers
from llama_edge.text.guard_prompt import CATEGORIES
from llama_edge.text.tokenizer import Tokenizer
from tests.checkpoint_writers import llama3_text
from tests.guard_model import ANSWERED, rows_of, small_text

CODES = [category.code for category in CATEGORIES]
ENDS = (7,)


@pytest.mark.parametrize(
    ("answer", "codes"),
    [
        ("\n\nsafe", None),
        ("safe\n", None),
        (" safe ", None),
        ("\n\nunsafe\nS1", ("S1",)),
        ("unsafe\nS1, S10 ,S9", ("S1", "S10", "S9")),
        ("unsafe\r\nS2\r\n", ("S2",)),
        ("unsafe", ()),
        ("unsafe\n,", ()),
    ],
)
def test_verdicts(answer: str, codes: tuple[str, ...] | None) -> None:
    assert parse_guard_answer(answer) == codes


@pytest.mark.parametrize(
    "answer",
    ["", "\n\n", "Safe", "safe.", "It is safe.", "safe\nS1", "unsafe S1", "unsafe\nS1\nS2", "S1"],
)
def test_what_is_no_verdict(answer: str) -> None:
    with pytest.raises(GuardError, match=r"the guard's answer .* is none"):
        parse_guard_answer(answer)


class Dice:
    """A model without an opinion: the same logits for every token."""

    max_context = 100

    def __init__(self, size: int) -> None:
        self._logits = np.zeros(size, np.float32)

    def prefill(self, tokens: object) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        del tokens
        return self._logits

    def decode(self, token: object) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        del token
        return self._logits


@given(seed=st.integers(0, 2**32), few=st.booleans())
def test_whatever_a_model_says_is_a_verdict(seed: int, few: bool) -> None:
    texts = (
        [word for word in ANSWERED if word != "<|eot_id|>"] if few else [*"\nsafeunS,0123456789"]
    )
    tokens = {place + 10: text for place, text in enumerate(dict.fromkeys(texts))}
    grammar = AnswerGrammar(tokens, CODES, ends=ENDS, vocab_size=40)
    sampling = SamplingConfig(temperature=1, seed=seed)
    generation = Generation(
        Dice(40),
        [1],
        eos_token_ids=ENDS,
        max_new_tokens=90,
        sampling=sampling,
        constraint=grammar,
    )
    text = "".join(tokens[token] for token in generation)
    assert text == grammar.text
    assert text.lstrip("\n") == text[max(0, len(text) - len(text.lstrip("\n"))) :]
    codes = parse_guard_answer(text)
    if codes is not None:
        assert codes
        assert set(codes) <= set(CODES)
        assert len(set(codes)) == len(codes)
        assert text.count("\n") in (1, 2, 3)


def test_a_token_without_a_way_on_is_not_chosen() -> None:
    """With the head's rows alone, "s" or "1" of "S1x" would lead nowhere."""
    tokens = {0: "safe", 1: "s", 2: "unsafe", 3: "\n", 4: "A", 5: "AB", 6: "B"}
    grammar = AnswerGrammar(tokens, ["AC", "AB"], ends=ENDS, vocab_size=8)
    assert grammar.can_write("unsafe\nAB")
    assert not grammar.can_write("unsafe\nAC")
    assert list(grammar.allowed().nonzero()[0]) == [0, 2, 3]
    for token in (2, 3):
        grammar.push(token)
    assert list(grammar.allowed().nonzero()[0]) == [4, 5]
    grammar.push(5)
    assert list(grammar.allowed().nonzero()[0]) == [7]


def test_the_shares_are_those_of_the_tokens_that_begin_a_verdict() -> None:
    tokens = {0: "safe", 1: "un", 2: "unsafe", 3: "\n", 4: "a", 5: "S", 6: "1"}
    grammar = AnswerGrammar(tokens, ["S1"], ends=ENDS, vocab_size=8)
    weights = np.array([3, 1, 4, 1, 1, 1, 1, 4], np.float32)
    shares = grammar.first_shares(np.log(weights))
    assert shares == pytest.approx({"safe": 3 / 16, "unsafe": 5 / 16})


@pytest.mark.parametrize("make", [small_text, llama3_text])
def test_the_tokens_of_the_pruned_head_write_every_answer(make: object) -> None:
    text = small_text() if make is small_text else llama3_text()
    tokenizer, rows = Tokenizer(text), rows_of(text)
    assert len(rows) == 20
    if make is llama3_text:
        assert {*rows.values()} == {*(SHAPES["llama-guard-3-1b-int4"].config.output_rows or ())}
    within = tokenizer.tokens_within(possible_answers(CODES))
    assert {within[number] for number in rows.values() if number in within} == {
        word for word in ANSWERED if word != "<|eot_id|>"
    }
    for first, second in pairwise(CODES):
        answer = f"\n\nunsafe\n{first},{second}"
        ids = tokenizer.encode(answer, add_bos=False)
        assert set(ids) <= set(rows.values()), "as the model was taught to write it"
        grammar = AnswerGrammar(within, CODES, ends=text.eos_token_ids, vocab_size=128256)
        for number in ids:
            assert grammar.allowed()[number]
            grammar.push(number)
        assert grammar.text == answer
