"""Random texts and dialogs of `tests.token_ids`, and every code point, next to Meta's own ids."""

from collections.abc import Iterable, Sequence
from itertools import chain

import pytest
from llama_models.llama3.tokenizer import MAX_NO_WHITESPACES_CHARS
from llama_models.llama3.tokenizer import Tokenizer as MetaTokenizer

from llama_edge.text.tokenizer import Tokenizer
from tests import token_ids
from tests.checkpoint_writers import llama3_text, meta_tokenizer_path
from tests.token_ids import Comparison, Encode, compare, in_this_process, random_texts


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
    assert (found.texts, found.dialogs) == (3000, 60)
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


@pytest.fixture(scope="module")
def quick() -> tuple[Encode, Encode]:
    return in_this_process(llama3_text().tokenizer_json)


#: Within a word, after an apostrophe, before and after digits, dots, blanks and line feeds.
_FORMS = ("a{0}b 1{0}2 .{0}. '{0}  {0} \n{0}", "'{0}x I'{0}")


def different_points(encode: Encode, meta: MetaTokenizer, points: Iterable[int]) -> list[str]:
    texts = (form.format(chr(point)) for point in points for form in _FORMS)
    return [text for text in texts if encode(text) != meta.encode(text, bos=False, eos=False)]


#: The scripts of the eight languages, punctuation, white space; the noncharacters; the last ones.
_NEAR = (range(0x0, 0x600), range(0x900, 0x980), range(0xE00, 0xE80), range(0x1E00, 0x2200))
_ODD = (
    range(0xFDC0, 0xFE10),
    range(0xFFF0, 0x10010),
    range(0x1F5F0, 0x1F650),
    range(0x10FFF0, 0x110000),
)


def test_code_points_have_meta_s_ids(quick: tuple[Encode, Encode], meta: MetaTokenizer) -> None:
    assert different_points(quick[0], meta, chain(*_NEAR, *_ODD)) == []


@pytest.mark.slow
def test_every_code_point_has_meta_s_ids(quick: tuple[Encode, Encode], meta: MetaTokenizer) -> None:
    points = chain(range(0xD800), range(0xE000, 0x110000))
    assert different_points(quick[0], meta, points) == []


@pytest.mark.slow
def test_many_random_texts_and_dialogs_have_meta_s_ids(
    tokenizer: Tokenizer, quick: tuple[Encode, Encode]
) -> None:
    found = compare(200_000, 4, *quick, tokenizer.encode_chat)
    assert found.different == []
    assert (found.texts, found.dialogs) == (200_000, 4_000)


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
