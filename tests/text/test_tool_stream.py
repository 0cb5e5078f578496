"""The stream of an answer's calls agrees with the parser of the whole."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_edge.core.errors import ToolCallError
from llama_edge.text.tool_calls import (
    CallFormat,
    ToolCall,
    parse_tool_calls,
    write_tool_calls,
)
from llama_edge.text.tool_stream import CallDelta, Delta, TextDelta, ToolCallStream

NAMES = st.sampled_from(["f", "get_weather", "a.b", "x1"])
ARGUMENTS = st.sampled_from(["a", "city", "b_2", "z"])
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=8)
    | st.sampled_from(["it's", '"', "\\", "#1", "[f(", "),", "}", '"}', "'''"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
CALLS = st.lists(
    st.builds(
        lambda name, arguments: ToolCall(name=name, arguments=arguments),
        NAMES,
        st.dictionaries(ARGUMENTS, VALUES, max_size=3),
    ),
    min_size=1,
    max_size=3,
)
#: What answers, and what nearly are calls, are made of.
PIECES = (
    *("[", "]", "{", "}", "(", ")", ",", ";", ":", " ", "\n", "f(", "a=", '"name"', '"f"', "1"),
    *('"parameters"', '{"name": "f", "parameters": {', '{"a": 1}', "[f(a=1", "'x'", '"', "'"),
    *("<|python_tag|>", "<", "text", "#", "\\", "True", "true", "-", ".call(", "é", "=", "b"),
)
FRAGMENTS = st.lists(st.sampled_from(PIECES), max_size=14).map("".join)


def cut(text: str, places: Sequence[int]) -> list[str]:
    ends = sorted({place % (len(text) + 1) for place in places})
    return [text[a:b] for a, b in zip([0, *ends], [*ends, len(text)], strict=True)]


def collected(deltas: Sequence[Delta]) -> tuple[str, list[tuple[str, Any]]]:
    """The text, and the calls, that the deltas are together."""
    text = "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))
    names: list[str] = []
    arguments: list[str] = []
    for delta in deltas:
        if isinstance(delta, CallDelta):
            if delta.name is not None:
                assert delta.index == len(names)
                names.append(delta.name)
                arguments.append("")
            arguments[delta.index] += delta.arguments
    calls = [(name, json.loads(text)) for name, text in zip(names, arguments, strict=True)]
    return text, calls


def streamed(pieces: Sequence[str]) -> list[Delta]:
    stream = ToolCallStream()
    deltas = [delta for piece in pieces for delta in stream.push(piece)]
    return deltas + stream.flush()


def plain(calls: Sequence[ToolCall]) -> list[tuple[str, Any]]:
    return [(call.name, dict(call.arguments)) for call in calls]


@settings(max_examples=300, deadline=None)
@given(CALLS, st.sampled_from(CallFormat), st.lists(st.integers(0, 999), max_size=20))
def test_calls_in_any_pieces(calls: list[ToolCall], form: CallFormat, places: list[int]) -> None:
    whole = write_tool_calls(calls, form)
    assert plain(parse_tool_calls(whole)) == plain(calls)
    assert collected(streamed(cut(whole, places))) == ("", plain(calls))


@settings(max_examples=500, deadline=None)
@given(FRAGMENTS, st.lists(st.integers(0, 999), max_size=20))
def test_anything_in_any_pieces(whole: str, places: list[int]) -> None:
    pieces = cut(whole, places)
    try:
        calls = parse_tool_calls(whole)
    except ToolCallError:
        with pytest.raises(ToolCallError):
            streamed(pieces)
        return
    try:
        found = collected(streamed(pieces))
    except ToolCallError:
        # It began as a call and is plain text, or has a key twice.
        assert not calls or whole.count('"name"') + whole.count('"parameters"') > 2
        return
    assert found == (("", plain(calls)) if calls else (whole, []))


@pytest.mark.parametrize(
    ("form", "wanted"),
    [
        (CallFormat.JSON, '{"a": "lo'),
        (CallFormat.PYTHONIC, '{"b": 2'),
    ],
)
def test_a_call_is_known_before_its_end(form: CallFormat, wanted: str) -> None:
    text = {
        CallFormat.JSON: '{"name": "f", "parameters": {"a": "lo',
        CallFormat.PYTHONIC: "[f(b=2, a='lo",
    }[form]
    stream = ToolCallStream()
    deltas = [delta for letter in text for delta in stream.push(letter)]
    assert isinstance(deltas[0], CallDelta)
    assert deltas[0].name == "f"
    assert "".join(d.arguments for d in deltas if isinstance(d, CallDelta)) == wanted


def test_text_is_given_out_at_once() -> None:
    stream = ToolCallStream()
    assert stream.push(" ") == []
    assert stream.push("No") == [TextDelta(" No")]
    assert stream.push(" [f(") == [TextDelta(" [f(")]
    assert stream.flush() == []


def test_a_call_that_ends_as_none_is_an_error() -> None:
    stream = ToolCallStream()
    assert stream.push('{"name": "f", "parameters": {}} {"x": 1}')
    with pytest.raises(ToolCallError, match="begins as a call"):
        stream.flush()
