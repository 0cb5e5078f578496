"""Tools and JSON schemas through OpenAI's client, over a model whose weights are random.

Without a grammar it writes no JSON; so what comes is the grammar's work.
"""

import json
from collections.abc import Callable
from typing import Any

import jsonschema
import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel

from llama_edge.serve.calls import CallReader
from llama_edge.serve.pieces import Piece
from tests.serve.conftest import NAME

pytestmark = pytest.mark.onnx

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"enum": [1, 2]}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
THE_WEATHER = {"type": "function", "function": {"name": "weather"}}
CLOCK: dict[str, Any] = {"type": "function", "function": {"name": "clock"}}
PARAMETERS: dict[str, Any] = WEATHER["function"]["parameters"]
ASKED: dict[str, Any] = {
    "model": NAME,
    "messages": [{"role": "user", "content": "the"}],
    "seed": 3,
    "max_tokens": 120,
}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"on": {"type": "boolean"}, "one": {"enum": ["a", "b"]}},
    "required": ["on", "one"],
    "additionalProperties": False,
}


Create = Callable[..., Any]


@pytest.fixture
def create(client: OpenAI) -> Create:
    return client.chat.completions.create


def schema_format(schema: object, **more: object) -> dict[str, Any]:
    wanted = {"name": "wanted", "schema": schema, **more}
    return {"type": "json_schema", "json_schema": wanted}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": WEATHER["function"]}]
)
def test_a_tool_is_called(create: Create, stream: bool, choice: Any) -> None:  # noqa: ANN401
    named = choice != "required"
    reply = create(
        **ASKED,
        tools=[WEATHER],
        tool_choice=THE_WEATHER if named else "required",
        stream=stream,
    )
    if stream:
        choices = [chunk.choices[0] for chunk in reply]
        deltas = [call for each in choices for call in each.delta.tool_calls or ()]
        assert {delta.index for delta in deltas} == {0}
        assert [(delta.type, delta.function.name) for delta in deltas if delta.id] == [
            ("function", "weather")
        ]
        arguments = "".join(delta.function.arguments or "" for delta in deltas)
        assert "".join(each.delta.content or "" for each in choices) == ""
        finish = choices[-1].finish_reason
    else:
        (choice,) = reply.choices
        (call,) = choice.message.tool_calls
        assert call.id.startswith("call_")
        assert (call.type, call.function.name) == ("function", "weather")
        assert choice.message.content is None
        arguments, finish = call.function.arguments, choice.finish_reason
    jsonschema.validate(json.loads(arguments), PARAMETERS)
    assert finish == ("stop" if named else "tool_calls")


def test_a_call_and_its_result_go_back(create: Create) -> None:
    first = create(**ASKED, tools=[WEATHER], tool_choice="required")
    answer = first.choices[0].message
    messages = [
        *ASKED["messages"],
        answer.model_dump(),
        {"role": "tool", "tool_call_id": answer.tool_calls[0].id, "content": "rain"},
    ]
    second = create(**{**ASKED, "messages": messages, "max_tokens": 5}, tools=[WEATHER, CLOCK])
    assert second.choices[0].message.tool_calls is None
    third = create(**{**ASKED, "messages": messages, "max_tokens": 5})
    assert third.usage is not None
    assert second.usage is not None
    assert third.usage.prompt_tokens < second.usage.prompt_tokens


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", ["auto", "none"])
def test_an_answer_need_not_be_a_call(create: Create, choice: str, stream: bool) -> None:
    reply = create(
        **{**ASKED, "max_tokens": 4},
        tools=[WEATHER],
        tool_choice=choice,
        stream=stream,
        logprobs=True,
    )
    if stream:
        choices = [chunk.choices[0] for chunk in reply]
        text = "".join(each.delta.content or "" for each in choices)
        entries = [entry for each in choices if each.logprobs for entry in each.logprobs.content]
    else:
        text, entries = reply.choices[0].message.content, reply.choices[0].logprobs.content
    assert text
    # A character that could not be finished is not begun.
    assert 1 <= len(entries) <= 4


def test_a_call_that_is_cut_stays_cut(create: Create) -> None:
    for most in (1, 12, 40):
        reply = create(**{**ASKED, "max_tokens": most}, tools=[WEATHER], tool_choice="required")
        assert reply.choices[0].finish_reason == "length"
        message = reply.choices[0].message
        assert message.content or message.tool_calls


@pytest.mark.parametrize(
    ("param", "options"),
    [
        ("tool_choice", {"tool_choice": "required"}),
        ("tool_choice", {"tool_choice": THE_WEATHER}),
        ("tool_choice", {"tools": [CLOCK], "tool_choice": "always"}),
        (
            "tool_choice",
            {
                "tools": [CLOCK],
                "tool_choice": THE_WEATHER,
            },
        ),
        ("tools", {"tools": [CLOCK, CLOCK]}),
        ("tools[0].function.name", {"tools": [{"type": "function", "function": {"name": "a b"}}]}),
        ("tools[0].type", {"tools": [{"type": "web_search", "function": {"name": "a"}}]}),
        (
            "tools",
            {
                "tools": [
                    {"type": "function", "function": {"name": "f", "parameters": {"type": "odd"}}}
                ]
            },
        ),
        ("response_format", {"tools": [CLOCK], "response_format": {"type": "json_object"}}),
        ("response_format", {"response_format": schema_format({"type": "nonsense"})}),
        ("response_format", {"response_format": schema_format({"allOf": [False]})}),
        ("response_format", {"response_format": schema_format({"pattern": "(", "type": "string"})}),
        ("response_format.json_schema", {"response_format": {"type": "json_schema"}}),
        ("response_format.json_schema.name", {"response_format": schema_format({}, name="a b")}),
        ("response_format.type", {"response_format": {"type": "xml"}}),
        (
            "messages[1].tool_calls[0].function.arguments",
            {
                "messages": [
                    {"role": "user", "content": "a"},
                    {
                        "role": "assistant",
                        "tool_calls": [
                            {
                                "id": "1",
                                "type": "function",
                                "function": {"name": "f", "arguments": "{"},
                            }
                        ],
                    },
                ]
            },
        ),
    ],
)
def test_a_form_that_is_none(create: Create, param: str, options: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        create(**{**ASKED, **options})
    assert caught.value.param == param, caught.value.message


@pytest.mark.parametrize("stream", [False, True])
def test_a_json_schema(create: Create, stream: bool) -> None:
    reply = create(**ASKED, response_format=schema_format(SCHEMA, strict=True), stream=stream)
    if stream:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in reply)
    else:
        assert reply.choices[0].finish_reason == "stop"
        text = reply.choices[0].message.content
    jsonschema.validate(json.loads(text), SCHEMA)


class Wanted(BaseModel):
    on: bool


def test_the_clients_own_parser(client: OpenAI) -> None:
    reply = client.chat.completions.parse(**ASKED, response_format=Wanted)
    assert isinstance(reply.choices[0].message.parsed, Wanted)


def test_a_json_object(create: Create) -> None:
    reply = create(**ASKED, response_format={"type": "json_object"})
    assert (reply.choices[0].message.content or "").startswith("{")
    plain = create(**ASKED, response_format={"type": "text"})
    assert not (plain.choices[0].message.content or "").startswith("{")


def test_an_error_in_the_middle_of_a_call() -> None:
    reader = CallReader()
    piece = reader.push(Piece(text='{"name": "f", "parameters": {"a": 1'))
    assert piece.calls
    assert reader.flush(cut=True) == Piece()
    reader = CallReader()
    reader.push(Piece(text='{"na'))
    assert reader.flush(cut=True) == Piece(text='{"na')
