"""Grammars are compiled where a hang or a crash harms nobody."""

import pytest

from llama_edge.text.grammar_child import answer


@pytest.mark.parametrize(
    ("lark", "message"),
    [
        ("start: /a+/", ""),
        ("start: /(/", "unclosed group"),
        ("start: x", "x"),
        ("", "Empty grammar"),
    ],
)
def test_what_is_wrong_is_said(lark: str, message: str) -> None:
    found = answer({"source": lark})
    assert (found == "") is (message == "")
    assert message in found
