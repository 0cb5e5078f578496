"""No string of somebody else's moves a terminal's cursor, hides text or reorders it."""

import sys
import unicodedata

import pytest

from llama_edge.core.visible import visible, visible_answer

#: By UAX #9, section 2, and ECMA-48.
REORDERS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
CONTROLS = [chr(code) for code in (*range(0x20), *range(0x7F, 0xA0))]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("model.pte", "model.pte"),
        ("Übergröße 日本 ▲ £", "Übergröße 日本 ▲ £"),
        ("1\u202f234\u00a0€", "1\u202f234\u00a0€"),
        ("\x1b[2Jx", r"\x1b[2Jx"),
        ("\x9b31m", r"\x9b31m"),
        ("a\nerror: b\tc\r", r"a\nerror: b\tc\r"),
        ("\x7f\x00", r"\x7f\x00"),
        ("exe\u202etxt.pte", r"exe\u202etxt.pte"),
        ("a\u200bb\ufeff\u00ad", r"a\u200bb\ufeff\xad"),
        ("a\u2028b", r"a\u2028b"),
        ("\udcff.json", r"\udcff.json"),
        ("\U000e0041", r"\U000e0041"),
    ],
)
def test_a_line_shows_what_is_not_seen(text: str, shown: str) -> None:
    assert visible(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("First.\n\tSecond.\n", "First.\n\tSecond.\n"),
        ("👩\u200d🚀 क्\u200dष \u05d0\u200f", "👩\u200d🚀 क्\u200dष \u05d0\u200f"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("line\rover", r"line\rover"),
        ("\u2066\u202e", r"\u2066\u202e"),
        ("\ud83d", r"\ud83d"),
    ],
)
def test_an_answer_keeps_its_lines_and_its_letters(text: str, shown: str) -> None:
    assert visible_answer(text) == shown


def test_no_character_is_left_that_acts() -> None:
    everything = "".join(map(chr, range(sys.maxunicode + 1)))
    line, answer = visible(everything), visible_answer(everything)
    for acting in (*CONTROLS, *REORDERS):
        assert acting not in line
        assert acting not in answer or acting in "\n\t"
    line.encode()
    answer.encode()
    unseen = {unicodedata.category(character) for character in line}
    assert unseen.isdisjoint({"Cc", "Cf", "Cs", "Zl", "Zp"})
