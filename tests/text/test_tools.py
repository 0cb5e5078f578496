"""Tool definitions from outside."""

import json
from pathlib import Path
from typing import Any

import pytest

from llama_edge.core.errors import UsageError
from llama_edge.text.tools import (
    MAX_TOOLS_BYTES,
    Tool,
    ToolChoice,
    parse_choice,
    parse_tools,
    read_tools,
)

PLAIN: dict[str, Any] = {"name": "f", "description": "d", "parameters": {"type": "object"}}


def test_both_forms_are_the_same() -> None:
    wrapped = {"type": "function", "function": {**PLAIN, "strict": True}}
    assert parse_tools([PLAIN]) == parse_tools([wrapped])
    assert parse_tools([PLAIN])[0].to_json() == {"type": "function", "function": PLAIN}


def test_what_may_be_absent() -> None:
    (tool,) = parse_tools([{"name": "f", "description": None}])
    assert tool == Tool(name="f")
    assert tool.parameters == {"type": "object", "properties": {}}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "tools: an object; a list of tools is needed"),
        ([], "0 tools; 1 to 128 are possible"),
        ([{"name": f"f{n}"} for n in range(129)], "129 tools"),
        ([3], r"tools\[0\]: a number; an object"),
        ([{"type": "web"}], r"tools\[0\].type: unknown"),
        ([{"type": "web", "function": {}}], r"tools\[0\].type is 'web'"),
        ([{"function": PLAIN}, {"function": None}], r"tools\[1\].function: null; an object"),
        ([{"name": "a b"}], r"tools\[0\].name is 'a b'"),
        ([{"name": "x" * 65}], "up to 63 letters"),
        ([{"name": 'f"'}], "letters, digits"),
        ([{"name": "f", "description": 3}], "description: a number; a string is needed"),
        ([{"name": "f", "parameters": []}], "parameters: a list; a JSON Schema is needed"),
        ([PLAIN, PLAIN], "the name 'f' is there twice"),
        ([{"name": "f", "description": "x" * MAX_TOOLS_BYTES}], "bytes of definitions; at most"),
    ],
)
def test_what_is_no_tool(value: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_tools(value)


def test_a_file(tmp_path: Path) -> None:
    file = tmp_path / "tools.json"
    file.write_text(json.dumps([PLAIN]))
    assert read_tools(file) == parse_tools([PLAIN])
    for text, message in [("[", "not readable as JSON"), ('[{"name": "\\ud800"}]', "surrogate")]:
        file.write_text(text)
        with pytest.raises(UsageError, match=message):
            read_tools(file)
    with pytest.raises(UsageError, match="the file is missing"):
        read_tools(tmp_path / "absent.json")


def test_a_choice() -> None:
    tools = parse_tools([PLAIN])
    assert parse_choice("auto", tools) is ToolChoice.AUTO
    assert parse_choice("f", tools) == tools[0]
    with pytest.raises(UsageError, match="one of none, auto, required, f is needed"):
        parse_choice("g", tools)
