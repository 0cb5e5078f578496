"""The parser of calls under fuzz; what each form means, the shared app fixtures say."""

import ast
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_edge.core.errors import ToolCallError
from llama_edge.text.tool_calls import (
    MAX_CALL_CHARACTERS,
    CallFormat,
    ToolCall,
    parse_tool_calls,
    write_tool_calls,
)
from tests.text.test_tool_stream import CALLS, FRAGMENTS

HOSTILE = (
    *("[__import__('os').system('x')]", "[f(a=__import__('os'))]", "[f(a=1+1)]", "[f(**{})]"),
    *("[f(a=lambda: 1)]", "[f(a=[x for x in y])]", "[f(a=f'{x}')]", "[f(a=...)]", "[f(a=1j)]"),
    *("[f(a=b'x')]", "[f(a=(1,))]", "[f(a={1: 2})]", "[f(a={**b})]", "[f(a:=1)]", "[f(1)]"),
    *("[f(a=1e999)]", "[f(a=-1e999)]", "[f(a=9223372036854775808)]", "[f(a=" + "9" * 5000 + ")]"),
    *("[f(a=" + "[" * 60000 + ")]", "[f(a=" + "-" * 9000 + "1)]", "[f(a=" + "(" * 300 + "1)]"),
    *('{"name": "f", "parameters": ' + "[" * 60000, '{"name": "f", "parameters": {"a": NaN}}'),
    *(
        "[f(" * 20000,
        "[f(a='" + "x" * MAX_CALL_CHARACTERS + "')]",
        "[f(a='\x00')]",
        "[f(a='\ud800')",
    ),
    *('{"name": "f", "parameters": {"a": ' + "[" * 17 + "]" * 17 + "}}", "<|python_tag|>x = 1"),
)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_call_is_an_error(text: str) -> None:
    with pytest.raises(ToolCallError):
        parse_tool_calls(text)


@settings(max_examples=400, deadline=2000)
@given(FRAGMENTS | st.text(max_size=60))
def test_anything_is_an_error_or_a_value(text: str) -> None:
    try:
        calls = parse_tool_calls(text)
    except ToolCallError:
        return
    for call in calls:
        json.dumps(dict(call.arguments), allow_nan=False)


@settings(max_examples=200, deadline=None)
@given(CALLS, st.sampled_from(CallFormat))
def test_written_calls_are_read(calls: list[ToolCall], form: CallFormat) -> None:
    assert list(parse_tool_calls(write_tool_calls(calls, form))) == calls


def test_nothing_is_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("evaluated")

    monkeypatch.setattr("builtins.eval", refuse)
    monkeypatch.setattr("builtins.exec", refuse)
    monkeypatch.setattr(ast, "literal_eval", refuse)
    assert parse_tool_calls("[f(a='__import__(\"os\")')]")[0].name == "f"
