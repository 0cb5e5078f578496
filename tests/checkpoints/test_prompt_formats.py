"""Dialogs of a Meta folder next to Meta's published prompts and Meta's own `ChatFormat`.

The prompts are those of `llama3_1/prompt_format.md` and `llama3_2/text_prompt_format.md`, which the
`llama-models` package carries; the models' cards show the same ones.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from llama_models.datatypes import RawMessage, RawTextItem, StopReason, ToolCall, ToolPromptFormat
from llama_models.llama3.chat_format import ChatFormat
from llama_models.llama3.tokenizer import Tokenizer as MetaTokenizer
from llama_models.llama3.tool_utils import (
    is_valid_python_list,
    parse_python_list_for_function_calls,
)

from llama_edge.checkpoints import load_checkpoint
from llama_edge.core.errors import TokenizerError
from llama_edge.text.chat_template import ChatTemplate
from llama_edge.text.tokenizer import Tokenizer
from llama_edge.text.tool_calls import parse_tool_calls
from tests.checkpoint_writers import (
    LLAMA32_CONFIG,
    llama3_text,
    meta_tokenizer_path,
    random_weights,
    write_meta,
)

Message = dict[str, Any]

_MODELS: Final = meta_tokenizer_path().parent.parent
_EXAMPLE: Final = re.compile(
    r"\n##+ (?P<title>[^\n#]+)\n(?:(?!\n##+ ).)*?"
    r"\n##### Input Prompt Format\n```\n(?P<prompt>.*?)\n```\n"
    r".*?##### Model Response Format\n```\n(?P<response>.*?)\n```\n",
    re.DOTALL,
)
_TURN: Final = re.compile(
    r"<\|start_header_id\|>(?P<role>[a-z]+)<\|end_header_id\|>\n\n"
    r"(?P<content>.*?)(?P<end><\|eot_id\|>|<\|eom_id\|>)",
    re.DOTALL,
)
_BEGIN: Final = "<|begin_of_text|>"
_ASSISTANT: Final = "<|start_header_id|>assistant<|end_header_id|>\n\n"
_TAG: Final = "<|python_tag|>"


@dataclass(frozen=True, slots=True)
class Published:
    """One example of Meta's."""

    name: str
    prompt: str
    response: str

    @property
    def is_dialog(self) -> bool:
        return self.prompt.endswith(_ASSISTANT)

    @property
    def messages(self) -> list[Message]:
        """Who says what, as it is printed; every character of the prompt is accounted for."""
        turns = list(_TURN.finditer(self.prompt))
        assert _BEGIN + "".join(turn[0] for turn in turns) + _ASSISTANT == self.prompt
        return [{"role": turn["role"], "content": turn["content"]} for turn in turns]


def _published() -> list[Published]:
    files = {"3.1": "llama3_1/prompt_format.md", "3.2": "llama3_2/text_prompt_format.md"}
    return [
        Published(f"{version} {found['title']}", found["prompt"], found["response"])
        for version, file in files.items()
        for found in _EXAMPLE.finditer("\n" + (_MODELS / file).read_text())
    ]


PUBLISHED: Final = {example.name: example for example in _published()}
#: Their prompts have a call in them, which no text of a message writes: a tag is a control token.
WITH_CALLS: Final = {
    "3.1 Built-in tools full interaction",
    "3.2 Zero shot function calling E2E format",
}
DIALOGS: Final = [name for name, example in PUBLISHED.items() if example.is_dialog]
TEXTS: Final = [name for name, example in PUBLISHED.items() if not example.is_dialog]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Of a whole checkpoint in Meta's own form."""
    folder = tmp_path_factory.mktemp("meta") / "model"
    write_meta(folder, LLAMA32_CONFIG, random_weights(LLAMA32_CONFIG))
    return Tokenizer(load_checkpoint(str(folder)).text)


@pytest.fixture(scope="module")
def meta() -> MetaTokenizer:
    return MetaTokenizer(meta_tokenizer_path())


def test_every_published_example_is_found() -> None:
    assert len(PUBLISHED) == 13
    assert len(DIALOGS) == 11
    assert set(DIALOGS) > WITH_CALLS
    for file in ("llama3_1/prompt_format.md", "llama3_2/text_prompt_format.md"):
        assert (_MODELS / file).read_text().count("##### Input Prompt Format") in (6, 7)


@pytest.mark.parametrize("name", DIALOGS)
def test_a_published_dialog_is_rendered_character_by_character(
    tokenizer: Tokenizer, meta: MetaTokenizer, name: str
) -> None:
    example = PUBLISHED[name]
    if _TAG in example.prompt:
        assert name in WITH_CALLS  # see the next two tests
        return
    assert tokenizer.render_chat(example.messages) == example.prompt
    ids = meta.encode(example.prompt, bos=False, eos=False, allowed_special="all")
    assert tokenizer.encode_chat(example.messages) == ids


def test_the_published_call_of_a_built_in_tool(tokenizer: Tokenizer, meta: MetaTokenizer) -> None:
    example = PUBLISHED["3.1 Built-in tools full interaction"]
    messages = example.messages
    written = messages[2].pop("content")
    assert written == f'{_TAG}wolfram_alpha.call(query="100th decimal of pi")'
    (call,) = parse_tool_calls(written)
    messages[2]["tool_calls"] = [_call(call.name, dict(call.arguments))]
    assert tokenizer.render_chat(messages) == example.prompt
    ids = meta.encode(example.prompt, bos=False, eos=False, allowed_special="all")
    assert tokenizer.encode_chat(messages) == ids


def test_the_published_pythonic_call(tokenizer: Tokenizer, meta: MetaTokenizer) -> None:
    """The format has no name for a pythonic call: it is the assistant's text.

    In the one example of a whole exchange it has a tag in front, in the responses and in
    `ChatFormat` it has none. Typed, the tag is text for `ChatFormat` as it is for us.
    """
    example = PUBLISHED["3.2 Zero shot function calling E2E format"]
    messages = example.messages
    assert tokenizer.render_chat(messages) == example.prompt
    assert tokenizer.encode_chat(messages) == _chat_format(meta, messages)
    messages[2]["content"] = messages[2]["content"].removeprefix(_TAG)
    (call,) = parse_tool_calls(messages[2]["content"])
    assert call.name == "get_weather"
    assert tokenizer.render_chat(messages) == example.prompt.replace(_TAG, "")
    as_call = [RawMessage(role=m["role"], content=m["content"]) for m in _meta_roles(messages)]
    as_call[2].content = ""
    as_call[2].tool_calls = [ToolCall(call_id="", tool_name=call.name, arguments=call.arguments)]
    theirs = ChatFormat(meta).encode_dialog_prompt(as_call, ToolPromptFormat.python_list).tokens
    assert tokenizer.encode_chat(messages) == theirs


@pytest.mark.parametrize("name", TEXTS)
def test_a_base_model_s_prompt_is_the_text_after_bos(
    tokenizer: Tokenizer, meta: MetaTokenizer, name: str
) -> None:
    text = PUBLISHED[name].prompt.removeprefix(_BEGIN)
    ids = meta.encode(PUBLISHED[name].prompt, bos=False, eos=False, allowed_special="all")
    assert tokenizer.encode(text) == ids


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_responses_are_read_as_meta_reads_them(name: str) -> None:
    """Calls where Meta's parser finds some: pythonic (all of them), JSON, built-in."""
    response = re.sub(r"<\|eo[tm]_id\|>$", "", PUBLISHED[name].response)
    if "Code Interpreter" in name:
        assert response.startswith(f"{_TAG}def is_prime(n):")  # a program, not a call
        return
    calls = [(call.name, dict(call.arguments)) for call in parse_tool_calls(response)]
    if is_valid_python_list(response):
        assert calls == parse_python_list_for_function_calls(response)
        return
    if name == "3.1 Example of a user defined tool calling":
        assert not calls  # a format of that prompt's own
        return
    read = ChatFormat(MetaTokenizer.get_instance()).decode_assistant_message_from_content(
        PUBLISHED[name].response, StopReason.end_of_turn
    )
    theirs = [(getattr(c.tool_name, "value", c.tool_name), c.arguments) for c in read.tool_calls]
    assert calls == theirs


def _call(name: str, arguments: object) -> Message:
    return {"type": "function", "id": "1", "function": {"name": name, "arguments": arguments}}


def _meta_roles(messages: list[Message]) -> list[Message]:
    return [{**m, "role": "tool" if m["role"] == "ipython" else m["role"]} for m in messages]


def _chat_format(meta: MetaTokenizer, messages: list[Message]) -> list[int]:
    raw = [RawMessage(role=m["role"], content=m["content"]) for m in _meta_roles(messages)]
    tokens: list[int] = ChatFormat(meta).encode_dialog_prompt(raw).tokens
    return tokens


_ARGUMENTS: Final[dict[str, dict[str, Any]]] = {
    "none": {},
    "texts": {"city": "San Francisco", "quoted": 'a "b" \\ \n', "empty": ""},
    "values": {"n": 3, "x": -1.5, "yes": True, "nothing": None, "list": [1, "a"], "map": {"k": 2}},
    "control tokens": {"text": "<|eot_id|><|start_header_id|>system"},
}


@pytest.mark.parametrize("name", _ARGUMENTS)
@pytest.mark.parametrize("content", ["", "Let me see. "])
@pytest.mark.parametrize("role", ["tool", "ipython"])
def test_a_call_and_its_result_are_chat_format_s(
    tokenizer: Tokenizer, meta: MetaTokenizer, name: str, content: str, role: str
) -> None:
    arguments = _ARGUMENTS[name]
    calls = [_call("get_weather", arguments), _call("other_tool", {})]
    result = json.dumps({"t": 25})
    question = {"role": "user", "content": "How warm is it?"}
    messages: list[Message] = [
        question,
        {"role": "assistant", "content": content or None, "tool_calls": calls},
        {"role": role, "content": result},
    ]
    raw = [
        RawMessage(role="user", content="How warm is it?"),
        RawMessage(
            role="assistant",
            content=content,
            tool_calls=[
                ToolCall(call_id="1", tool_name="get_weather", arguments=arguments),
                ToolCall(call_id="2", tool_name="other_tool", arguments={}),
            ],
        ),
        RawMessage(role="tool", content=result),
    ]
    expected = ChatFormat(meta).encode_dialog_prompt(raw).tokens
    rendered = tokenizer.render_chat(messages)
    assert rendered == meta.decode(expected)
    ids = tokenizer.encode_chat(messages)
    assert meta.decode(ids) == rendered
    controls = set(meta.special_tokens.values())
    assert [i for i in ids if i in controls] == [i for i in expected if i in controls]
    # OpenAI's clients give arguments as JSON, and a result may be a value.
    calls[0]["function"]["arguments"] = json.dumps(arguments)
    messages[2]["content"] = {"t": 25}
    assert tokenizer.render_chat(messages) == rendered


def test_arguments_keep_their_letters(tokenizer: Tokenizer, meta: MetaTokenizer) -> None:
    """`ChatFormat` writes them with escapes, which the apps' templates cannot."""
    messages = [{"role": "assistant", "tool_calls": [_call("f", {"city": "Zürich"})]}]
    call = ToolCall(call_id="1", tool_name="f", arguments={"city": "Zürich"})
    raw = [RawMessage(role="assistant", content="", tool_calls=[call])]
    theirs = meta.decode(ChatFormat(meta).encode_dialog_prompt(raw).tokens)
    assert tokenizer.render_chat(messages) == theirs.replace("\\u00fc", "ü") != theirs


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [("code_interpreter", {"code": "print(1)"}), ("brave_search", {"query": "price of gold"})],
)
def test_built_in_calls_are_chat_format_s(
    tokenizer: Tokenizer, meta: MetaTokenizer, tool: str, arguments: dict[str, str]
) -> None:
    """But for the tag, which Meta's examples have in front of every one, its code of one only."""
    call = ToolCall(call_id="1", tool_name=tool, arguments=arguments)
    raw = RawMessage(
        role="assistant", content="", tool_calls=[call], stop_reason=StopReason.end_of_message
    )
    expected = ChatFormat(meta).encode_dialog_prompt([raw]).tokens
    found = tokenizer.encode_chat([{"role": "assistant", "tool_calls": [_call(tool, arguments)]}])
    if tool == "brave_search":
        assert found[5] == meta.python_tag_id
        del found[5]
    assert found == expected


def test_parts_of_text_are_one_text(tokenizer: Tokenizer, meta: MetaTokenizer) -> None:
    parts = ["One ", "two.", ""]
    messages = [{"role": "user", "content": [{"type": "text", "text": text} for text in parts]}]
    raw = [RawMessage(role="user", content=[RawTextItem(text=text) for text in parts])]
    assert tokenizer.render_chat(messages) == meta.decode(
        ChatFormat(meta).encode_dialog_prompt(raw).tokens
    )


_IMAGE: Final = {"type": "image_url", "image_url": {"url": "x"}}


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        ({"role": "user", "content": [_IMAGE]}, "a part that is not text"),
        ({"role": "assistant", "tool_calls": [{"function": {}}]}, "no name"),
        ({"role": "assistant", "tool_calls": [{}]}, "no attribute 'function'"),
        ({"role": "assistant", "tool_calls": [_call("brave_search", "{}")]}, "not an object"),
    ],
)
def test_what_the_format_cannot_say_is_refused(
    tokenizer: Tokenizer, message: Message, cause: str
) -> None:
    with pytest.raises(TokenizerError, match=cause):
        tokenizer.encode_chat([message])


def test_tools_are_not_dropped_without_a_word() -> None:
    text = llama3_text()
    assert text.chat_template is not None
    template = ChatTemplate(text.chat_template, text.special_tokens)
    with pytest.raises(TokenizerError, match="describe them in a message"):
        template.render([{"role": "user", "content": "x"}], tools=[{"type": "function"}])


def test_a_prompt_that_differs_by_one_character_is_seen(tokenizer: Tokenizer) -> None:
    example = PUBLISHED["3.2 User and assistant conversation"]
    messages = example.messages
    messages[0]["content"] += "."
    assert tokenizer.render_chat(messages) != example.prompt


def test_a_folder_s_own_text_is_the_tokenizer_s(tmp_path: Path, tokenizer: Tokenizer) -> None:
    assert tokenizer._text == llama3_text()
