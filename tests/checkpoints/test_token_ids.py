"""Random texts and dialogs of `tests.token_ids`, and every code point, next to Meta's own ids."""

from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
from llama_models.llama3.tokenizer import MAX_NO_WHITESPACES_CHARS
from llama_models.llama3.tokenizer import Tokenizer as MetaTokenizer

from llama_edge.text import tokenizer_child
from llama_edge.text.tokenizer import Tokenizer
from tests import token_ids
from tests.checkpoint_writers import llama3_text, meta_tokenizer_path
from tests.token_ids import Comparison, compare, random_texts


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(llama3_text())


@pytest.fixture(scope="module")
def meta() -> MetaTokenizer:
    return MetaTokenizer(meta_tokenizer_path())


def agreed(tokenizer: Tokenizer, count: int, seed: int) -> Comparison:
    return compare(
        count,
        seed,
        lambda text: tokenizer.encode(text, add_bos=False),
        tokenizer.encode_rendered,
        tokenizer.encode_chat,
    )


def test_random_texts_and_dialogs_have_meta_s_ids(tokenizer: Tokenizer) -> None:
    found = agreed(tokenizer, 3000, seed=1)
    assert found.different == []
    assert (found.texts, found.dialogs) == (3000, 150)
    assert found.with_control_tokens > 300


def test_texts_come_back(tokenizer: Tokenizer, meta: MetaTokenizer) -> None:
    for _, text in zip(range(300), random_texts(seed=2), strict=False):
        ids = meta.encode(text, bos=False, eos=False)
        assert tokenizer.decode(ids) == meta.decode(ids) == text


def test_a_difference_is_found(tokenizer: Tokenizer) -> None:
    """In a text, in one whose control tokens are asked for, in a dialog."""

    def without_last(ids: Sequence[int]) -> list[int]:
        return list(ids)[:-1]

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_bos=False)

    chat = tokenizer.encode_chat
    right = compare(20, 3, encode, tokenizer.encode_rendered, chat)
    assert (right.different, right.dialogs) == ([], 1)
    wrong = compare(20, 3, lambda t: without_last(encode(t)), tokenizer.encode_rendered, chat)
    assert len(wrong.different) == 20
    wrong = compare(20, 3, encode, encode, chat)
    assert len(wrong.different) == right.with_control_tokens > 0
    wrong = compare(20, 3, encode, tokenizer.encode_rendered, lambda d: without_last(chat(d)))
    assert len(wrong.different) == 1


@pytest.fixture
def in_this_process() -> None:
    """What `Tokenizer` asks its child for, without a message each: ten times as fast."""
    request: dict[str, Any] = {"added": [], "removed": [], "begin": None, "canonical": False}
    tokenizer_child.answer({"operation": "open", "text": llama3_text().tokenizer_json, **request})


def encode_plain(text: str) -> list[int]:
    request = {"text": text, "control_tokens": [], "after_control": False}
    ids: list[int] = tokenizer_child.answer({"operation": "encode_plain", **request})
    return ids


def encode_rendered(text: str) -> list[int]:
    ids: list[int] = tokenizer_child.answer({"operation": "encode", "text": text})
    return ids


@pytest.mark.usefixtures("in_this_process")
def test_every_code_point_has_meta_s_ids(meta: MetaTokenizer) -> None:
    """In three places: within a word, after an apostrophe, between blanks and line feeds."""
    points = [point for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    Random(0).shuffle(points)
    for first in range(0, len(points), 512):
        letters = [chr(point) for point in points[first : first + 512]]
        for form in ("a{0}b 1{0}2", "'{0}x I'{0}", ".{0}  {0} \n{0}\n"):
            text = "\n".join(form.format(letter) for letter in letters)
            assert encode_plain(text) == meta.encode(text, bos=False, eos=False)


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
def test_many_random_texts_and_dialogs_have_meta_s_ids(tokenizer: Tokenizer) -> None:
    found = compare(200_000, 4, encode_plain, encode_rendered, tokenizer.encode_chat)
    assert found.different == []
    assert (found.texts, found.dialogs) == (200_000, 10_000)


def test_a_line_longer_than_meta_s_tokenizer_takes_whole(
    tokenizer: Tokenizer, meta: MetaTokenizer
) -> None:
    """`llama_models` cuts it for tiktoken, which encodes it as we do: the one difference."""
    for letters, count in (("abc", 10_000), ("ไทย", 9_000), (" ", 30_000)):
        line = letters * count
        assert len(line) > MAX_NO_WHITESPACES_CHARS
        ids = tokenizer.encode(line, add_bos=False)
        assert ids == meta.model.encode(line, disallowed_special=())
        short = line[:MAX_NO_WHITESPACES_CHARS]
        assert tokenizer.encode(short, add_bos=False) == meta.encode(short, bos=False, eos=False)


def test_line_feeds_at_the_start_of_a_message(tokenizer: Tokenizer, meta: MetaTokenizer) -> None:
    """The same characters as `ChatFormat`'s, with the header's own line feeds in one token."""
    dialog = [{"role": "user", "content": "\n\nHi"}]
    theirs = token_ids.chat_format_ids(meta, dialog)
    ours = tokenizer.encode_chat(dialog)
    assert tokenizer.decode(ours, skip_special_tokens=False) == meta.decode(theirs)
    assert ours == meta.encode(meta.decode(theirs), bos=False, eos=False, allowed_special="all")
    assert ours != theirs


def test_the_mark_of_what_was_typed(tokenizer: Tokenizer, meta: MetaTokenizer) -> None:
    dialog = [{"role": "user", "content": "a\ufdd0b"}]
    replaced = [{"role": "user", "content": "a\ufffdb"}]
    assert tokenizer.encode_chat(dialog) == token_ids.chat_format_ids(meta, replaced)
    assert tokenizer.encode("a\ufdd0b") == meta.encode("a\ufdd0b", bos=True, eos=False)
