"""Answers under a schema, a regex, or as calls of tools: `run`, `chat` and the Python API."""

import io
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import llama_edge
from llama_edge.backends.base import LowerOptions
from llama_edge.core.errors import UsageError
from llama_edge.core.progress import SilentProgress
from llama_edge.pipeline.export import ExportRequest, export_model
from llama_edge.text.tool_calls import parse_tool_calls
from tests.cli.conftest import Program, Result

pytestmark = [pytest.mark.onnx]

SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": ["x", "y"]}, "b": {"type": "integer", "maximum": 9, "minimum": 0}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
TOOL = {"name": "look_up", "parameters": SCHEMA}
OTHER = {"type": "function", "function": {"name": "stop"}}
SHORT = ("--max-new-tokens", "120", "--temperature", "1")


@pytest.fixture(scope="module")
def folder(debug_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The debug model with room for definitions of tools, of which each letter is a token."""
    place = tmp_path_factory.mktemp("roomy")
    shutil.copytree(debug_folder, place / "model")
    file = place / "model" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "max_position_embeddings": 4096}))
    request = ExportRequest(
        model=str(place / "model"),
        target="onnx",
        recipe="w4a8-rtn",
        out=place / "bundle",
        options=LowerOptions(max_context=4096),
    )
    return export_model(request, SilentProgress()).root


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    file = tmp_path / "tools.json"
    file.write_text(json.dumps([TOOL, OTHER]))
    return file


def checked(calls: list[dict[str, Any]]) -> None:
    assert calls
    for call in calls:
        if call["name"] == "look_up":
            jsonschema.validate(call["arguments"], SCHEMA)
        else:
            assert call == {"name": "stop", "arguments": {}}


def test_run_under_a_schema(program: Program, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(SCHEMA))
    for seed in range(3):
        result = program("run", folder, "the", "--json-schema", file, *SHORT, "--seed", seed)
        assert result.code == 0
        jsonschema.validate(json.loads(result.out), SCHEMA)


def test_run_under_a_regex(program: Program, folder: Path) -> None:
    result = program("run", folder, "the", "--raw", "--regex", "[a-f]{3}-(ja|nein)", *SHORT)
    assert result.code == 0
    assert re.fullmatch("[a-f]{3}-(ja|nein)\n", result.out)


@pytest.mark.parametrize("choice", ["required", "look_up", "stop"])
def test_run_calls_a_tool(program: Program, folder: Path, tools: Path, choice: str) -> None:
    options = ("--tools", tools, "--tool-choice", choice)
    result = program("run", folder, "the", *options, *SHORT, "--json")
    assert result.code == 0
    assert "no place for tools; they are written into the prompt" in result.err
    checked(result.json["tool_calls"])
    assert result.json["stop_reason"] == "eos"
    if choice != "required":
        assert result.json["tool_calls"][0]["name"] == choice
    streamed = program("run", folder, "the", *options, *SHORT)
    assert streamed.out == result.json["text"] + "\n"


def test_a_call_that_is_cut_is_said(program: Program, folder: Path, tools: Path) -> None:
    options = ("--tools", tools, "--tool-choice", "required", "--max-new-tokens", "8")
    result = program("run", folder, "the", *options, "--json")
    assert result.code == 0
    assert result.json["tool_calls"] == []
    assert "note: the answer is a call that was cut" in result.err


def test_no_call_is_made_where_none_is_wanted(program: Program, folder: Path, tools: Path) -> None:
    options = ("--tools", tools, "--tool-choice", "none", "--max-new-tokens", "20")
    result = program("run", folder, "the", *options, "--json")
    assert result.json["tool_calls"] == []
    assert not result.json["text"].lstrip().startswith(("{", "["))


@pytest.fixture
def talk(program: Program, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    def run(*lines: str, options: tuple[object, ...] = ()) -> Result:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        return program("chat", folder, *SHORT, *options)

    return run


def test_chat_shows_a_call_and_takes_its_result(talk: Program, tools: Path, tmp_path: Path) -> None:
    file = tmp_path / "dialog.json"
    options = ("--tools", tools, "--tool-choice", "stop")
    result = talk("/tool early", "the", "/tool 12:30", f"/save {file}", options=options)
    assert result.code == 0
    assert "no tool was called; /tool gives the result of a call" in result.err
    assert "call: stop {}\n/tool RESULT gives the result of stop" in result.err
    messages = json.loads(file.read_text())["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "assistant"]
    assert messages[1]["tool_calls"][0]["function"] == {"name": "stop", "arguments": {}}
    assert messages[2] == {"role": "tool", "name": "stop", "content": "12:30"}


def test_the_python_api(folder: Path) -> None:
    bundle = llama_edge.open_bundle(folder)
    assert bundle.manifest.tools is not None
    assert bundle.manifest.tools.in_prompt == "system"
    text = bundle.generate("the", schema=SCHEMA, temperature=1, max_new_tokens=100)
    jsonschema.validate(json.loads(text), SCHEMA)
    assert bundle.generate("the", regex="ab?") in ("a", "ab")
    text = "".join(bundle.stream("the", tools=[TOOL], tool_choice="required", max_new_tokens=120))
    (call,) = parse_tool_calls(text)
    jsonschema.validate(dict(call.arguments), SCHEMA)
    with bundle.chat(tools=[OTHER], tool_choice="required", max_new_tokens=120) as chat:
        chat.send("the")
        assert [call.name for call in chat.calls] == ["stop"]
        with pytest.raises(UsageError, match="2 results for 1 calls"):
            list(chat.stream_results(["a", "b"]))
        list(chat.stream_results(["a"]))
        assert [m["role"] for m in chat.messages] == ["user", "assistant", "tool", "assistant"]
        chat.begin()
        assert chat.calls == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--tool-choice", "required"), "and there are no tools"),
        (("--tools", "tools.json", "--tool-choice", "x"), "auto, required, look_up, stop"),
        (("--tools", "tools.json", "--regex", "a"), "a regex and tools are given"),
        (("--tools", "tools.json", "--raw"), "leave out --raw or --tools"),
        (("--tools", "absent.json"), "the file is missing"),
        (("--tools", "schema.json"), "a list of tools is needed"),
        (("--json-schema", "tools.json"), "a JSON object is needed"),
        (("--json-schema", "schema.json"), "uniqueItems"),
        (("--regex", "("), "the regex: "),
        (("--tools", "hard.json"), "tool f: parameters.properties.a.not"),
    ],
)
def test_clear_errors(
    program: Program, folder: Path, tools: Path, options: tuple[str, ...], message: str
) -> None:
    place = tools.parent
    (place / "schema.json").write_text('{"type": "array", "uniqueItems": true}')
    hard = [{"name": "f", "parameters": {"properties": {"a": {"not": {}}}}}]
    (place / "hard.json").write_text(json.dumps(hard))
    given = [str(place / each) if each.endswith(".json") else each for each in options]
    result = program("run", folder, "the", *given)
    assert result.code == 2
    assert message in result.err
    assert result.out == ""
