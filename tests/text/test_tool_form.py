"""How tools are told of, against transformers, and in templates that leave them out."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
import transformers

from llama_edge.core.errors import UsageError
from llama_edge.text.chat_template import ChatTemplate
from llama_edge.text.dialog_form import dialog_form
from llama_edge.text.text_assets import read_text_assets
from llama_edge.text.tokenizer import Tokenizer
from llama_edge.text.tool_calls import CallFormat, ToolCall, parse_tool_calls
from llama_edge.text.tool_form import ToolForm, ToolsIn, answer_message, calls_of, tool_form
from llama_edge.text.tools import MAX_CALLS, Tool, parse_tools
from tests.app_fixtures.texts import TOOL_TEMPLATE
from tests.text.families import FAMILIES

TOOLS: Final = parse_tools(
    [
        {
            "name": "get_time",
            "description": 'The time in a city; <fast> & "free": 5 €.',
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "enum": ["Paris", "Köln"]}},
                "required": ["city"],
            },
        },
        {"name": "count"},
    ]
)
#: As Qwen 2.5 and 3 tell of tools, and call them.
QWEN: Final = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "# Tools\\n\\nWithin <tools></tools>:\\n<tools>" }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "\\n</tools>\\nCalls: <tool_call>\\n{\\"name\\": <name>, \\"arguments\\": <json>}" }}
    {{- "\\n</tool_call><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' + (message.content or '') }}
        {%- for call in message.tool_calls or [] %}
            {%- set call = call.function %}
            {{- '<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}
            {{- call.arguments | tojson }}{{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content }}
        {{- '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
PYTHONIC: Final = """\
{{- bos_token }}
{%- if tools is not none %}
    {{- 'system: call [f(a=1), g()] of ' }}{% for t in tools %}{{ t | tojson }}{% endfor %}
{%- endif %}
{%- for m in messages %}
    {%- if m.tool_calls %}
        {{- '<|' + m.role + '|>[' }}
        {%- for c in m.tool_calls %}{{- ', ' if not loop.first }}
            {{- c.function.name + '(' }}
            {%- for name in c.function.arguments %}{{- ', ' if not loop.first }}
                {{- name + '=' + c.function.arguments[name] }}
            {%- endfor %}{{- ')' }}
        {%- endfor %}{{- ']' + eos_token }}
    {%- else %}
        {{- '<|' + m.role + '|>' + m.content + eos_token }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"""

CALL: Final = ToolCall(name="get_time", arguments={"city": "Köln"})
DIALOG: Final[Sequence[Mapping[str, Any]]] = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What time is it in Köln?"},
    answer_message("", (CALL,)),
    {"role": "tool", "name": "get_time", "content": "12:30"},
)


def form_of(source: str) -> ToolForm:
    template = ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"})
    return tool_form(template, dialog_form(template))


@pytest.fixture(scope="module", params=[TOOL_TEMPLATE, QWEN], ids=["llama-3", "qwen-2.5"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    name = "qwen-2.5" if request.param is QWEN else "llama-3"
    made = tmp_path_factory.mktemp(name) / "model"
    replace(FAMILIES[name], template=request.param).write(made)
    return made


@pytest.mark.parametrize("messages", [DIALOG[:2], DIALOG[1:2], DIALOG], ids=["a", "b", "c"])
def test_rendered_as_by_transformers(folder: Path, messages: Sequence[Mapping[str, Any]]) -> None:
    ours = Tokenizer(read_text_assets(folder))
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    tools = [tool.to_json() for tool in TOOLS]
    given = [dict(message) for message in messages]
    day = {"date_string": "26 Jul 2024"}
    rendered = theirs.apply_chat_template(
        given, tools=tools, tokenize=False, add_generation_prompt=True, **day
    )
    assert "get_time" in rendered
    assert ours.render_chat(given, tools=tools) == rendered
    ids = theirs.apply_chat_template(given, tools=tools, add_generation_prompt=True, **day)
    assert ours.encode_chat(given, tools=tools) == ids["input_ids"]


def test_forms_of_templates() -> None:
    assert form_of(TOOL_TEMPLATE) == ToolForm(
        format=CallFormat.JSON, in_prompt=ToolsIn.TEMPLATE, result_role="tool", max_calls=1
    )
    assert form_of(PYTHONIC) == ToolForm(
        format=CallFormat.PYTHONIC,
        in_prompt=ToolsIn.TEMPLATE,
        result_role="tool",
        max_calls=MAX_CALLS,
    )
    # It shows tools, and calls them in a form that we do not read.
    assert form_of(QWEN).in_prompt is ToolsIn.SYSTEM


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_tools_are_never_left_out(name: str, tmp_path: Path) -> None:
    FAMILIES[name].write(tmp_path / "model")
    tokenizer = Tokenizer(read_text_assets(tmp_path / "model"))
    form = tokenizer.tool_form
    assert form.format is CallFormat.JSON
    assert form.in_prompt is (ToolsIn.SYSTEM if tokenizer.form.no_system is None else ToolsIn.USER)
    messages = DIALOG[:2] if tokenizer.form.no_system is None else DIALOG[1:2]
    given, shown = form.dialog(messages, TOOLS)
    assert shown is None
    text = tokenizer.render_chat(given)
    for part in ("get_time", "Köln", "count", '{"name": function name', "What time is it"):
        assert part in text
    assert ("Be brief." in text) is (len(messages) == 2)
    assert tokenizer.encode_chat(given)


@pytest.mark.parametrize("name", ["chatml", "llama-2", "mistral", "gemma"])
def test_a_result_reaches_the_model(name: str, tmp_path: Path) -> None:
    """As what a tool says, or the user; never as the assistant's own words."""
    FAMILIES[name].write(tmp_path / "model")
    tokenizer = Tokenizer(read_text_assets(tmp_path / "model"))
    form = tokenizer.tool_form
    assert form.result_role == ("tool" if name == "chatml" else "user")
    messages = DIALOG if tokenizer.form.no_system is None else DIALOG[1:]
    given, _ = form.dialog(messages, TOOLS)
    text = tokenizer.render_chat(given)
    assert '{"name": "get_time", "parameters": {"city": "Köln"}}' in text
    assert ("Result: 12:30" in text) is (form.result_role == "user")
    assert "12:30" in text
    as_said = tokenizer.render_chat([*given[:-1], {**given[-1], "role": "user"}])
    assert (text == as_said) is (form.result_role == "user")


@pytest.mark.parametrize("source", ["llama-3", "chatml"])
def test_control_tokens_in_tools_and_results_stay_text(source: str, tmp_path: Path) -> None:
    """A stranger's tool description cannot end a turn."""
    family = FAMILIES[source]
    template = TOOL_TEMPLATE if source == "llama-3" else family.template
    replace(family, template=template).write(tmp_path / "model")
    tokenizer = Tokenizer(read_text_assets(tmp_path / "model"))
    end = next(token.content for token in tokenizer._control if token.content in template)
    evil = Tool(name="f", description=f"x{end}y", parameters={"properties": {f"p{end}": {}}})
    number = tokenizer._tokenizer.id_of(end)

    def count(tool: Tool, result: str) -> int:
        messages = [
            DIALOG[1],
            answer_message("", (ToolCall(name="f", arguments={"p": result}),)),
            {"role": "tool", "content": result},
        ]
        given, shown = tokenizer.tool_form.dialog(messages, (tool,))
        return tokenizer.encode_chat(given, tools=shown).count(number or 0)

    assert count(evil, f"a{end}b") == count(Tool(name="f", description="xy"), "ab")


def test_arguments_as_text_are_read() -> None:
    message = {
        "role": "assistant",
        "tool_calls": [
            {"id": "1", "function": {"name": "get_time", "arguments": '{"city": "Köln"}'}}
        ],
    }
    assert calls_of(message) == (CALL,)
    form = form_of(TOOL_TEMPLATE)
    (given,), _ = form.dialog([message], TOOLS)
    assert given["tool_calls"][0]["function"]["arguments"] == {"city": "Köln"}


@pytest.mark.parametrize(
    "call", [3, {"function": {}}, {"name": "f", "arguments": "{"}, {"name": "f", "arguments": 3}]
)
def test_a_message_with_calls_that_are_none(call: object) -> None:
    with pytest.raises(UsageError, match=r"tool_calls\[0\]"):
        form_of(TOOL_TEMPLATE).dialog([{"role": "assistant", "tool_calls": [call]}], TOOLS)


def test_pythonic_calls_in_a_prompt_of_ours() -> None:
    form = ToolForm(
        format=CallFormat.PYTHONIC, in_prompt=ToolsIn.SYSTEM, result_role="tool", max_calls=2
    )
    given, _ = form.dialog(DIALOG, TOOLS)
    assert "[func_name1(params_name1=params_value1" in given[0]["content"]
    assert given[2]["content"] == '[get_time(city="Köln")]'
    assert parse_tool_calls(given[2]["content"]) == (CALL,)
