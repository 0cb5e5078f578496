"""How a model is told of tools and how it calls them, found out from its chat template.

A template that shows tools and writes calls in one of our forms is used as it is. With any other,
tools are not left out: they are written into the system prompt, in the words of Llama 3.2's own
template, and the calls are JSON.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from llama_edge.core.errors import TokenizerError, ToolCallError, UsageError
from llama_edge.core.json_files import parse_json_object
from llama_edge.text.chat_template import ChatTemplate, TemplateStoppedError
from llama_edge.text.dialog_form import DialogForm, missing_message
from llama_edge.text.tool_calls import (
    CallFormat,
    ToolCall,
    parse_tool_calls,
    write_tool_calls,
)
from llama_edge.text.tools import MAX_CALLS, Tool

Message = Mapping[str, Any]

#: Source: Llama 3.2's chat template; the pythonic one: its published prompt format.
_INSTRUCTIONS: Final = {
    CallFormat.JSON: (
        "You have access to the following functions. To call a function, please respond with JSON "
        'for a function call. Respond in the format {"name": function name, "parameters": '
        "dictionary of argument name and its value}. Do not use variables."
    ),
    CallFormat.PYTHONIC: (
        "You have access to the following functions. If you decide to invoke any of them, you MUST "
        "put it in the format of [func_name1(params_name1=params_value1, "
        "params_name2=params_value2...), func_name2(params)]. You SHOULD NOT include any other "
        "text in the response."
    ),
}
_USER: Final = {"role": "user", "content": "How deep is the harbour of the old lighthouse?"}
_TOOL: Final = Tool(
    name="harbour_depth",
    description="Looks up the depth of a harbour.",
    parameters={
        "type": "object",
        "properties": {"harbour": {"type": "string", "description": "Its name."}},
        "required": ["harbour"],
    },
)
_CALL: Final = ToolCall(name="harbour_depth", arguments={"harbour": "northern cape"})
_RESULT: Final = {"role": "tool", "content": "nineteen fathoms at low tide"}


class ToolsIn(StrEnum):
    """Where the definitions are in a prompt."""

    TEMPLATE = "template"
    SYSTEM = "system"
    #: in front of the first user's message, for a template that takes no system message
    USER = "user"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolForm:
    """What the apps need to know to use tools with a model."""

    format: CallFormat
    in_prompt: ToolsIn
    #: of a message with what a tool returned: `tool`, or `user` for a template without tools
    result_role: str
    #: in one answer
    max_calls: int

    def dialog(
        self, messages: Sequence[Message], tools: Sequence[Tool]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
        """Messages in OpenAI's form, and tools, as `Tokenizer.encode_chat` takes them.

        Raises:
            UsageError: A message has calls that are none.
        """
        shown = [tool.to_json() for tool in tools] or None
        if self.in_prompt is ToolsIn.TEMPLATE:
            return [_with_calls(message) for message in messages], shown
        found = [self._plain(message) for message in messages]
        return (self._told(found, shown) if shown else _joined(found)), None

    def _plain(self, message: Message) -> dict[str, Any]:
        """A message for a template that knows no tools."""
        if message.get("tool_calls"):
            text = write_tool_calls(calls_of(message), self.format)
            said = [message["content"]] if message.get("content") else []
            return {"role": message["role"], "content": "\n".join([*said, text])}
        if message.get("role") in ("tool", "ipython") and self.result_role == "user":
            return {"role": "user", "content": f"Result: {_text_of(message)}"}
        return dict(message)

    def _told(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> list[Any]:
        definitions = "\n\n".join(json.dumps(tool, indent=4, ensure_ascii=False) for tool in tools)
        text = f"{_INSTRUCTIONS[self.format]}\n\n{definitions}"
        role = "system" if self.in_prompt is ToolsIn.SYSTEM else "user"
        place = next((i for i, m in enumerate(messages) if m.get("role") == role), None)
        if place is None or (role == "system" and place > 0):
            return _joined([{"role": role, "content": text}, *messages])
        first = messages[place]
        changed = {**first, "content": f"{text}\n\n{_text_of(first)}"}
        return _joined([*messages[:place], changed, *messages[place + 1 :]])


def tool_form(template: ChatTemplate, form: DialogForm) -> ToolForm:
    """Render dialogs with a tool and look for it.

    Raises:
        TemplateStoppedError: The template exceeds a limit.
    """
    written = _written_format(template, form) if _shows_tools(template, form) else None
    if written is not None:
        call = _answered((_CALL,))
        takes = _takes_result(template, form, call, tools=True)
        twice = _render(template, form, (_USER, _answered((_CALL, _CALL))), tools=True)
        return ToolForm(
            format=written,
            in_prompt=ToolsIn.TEMPLATE,
            result_role="tool" if takes else "user",
            max_calls=MAX_CALLS if twice is not None and written is CallFormat.PYTHONIC else 1,
        )
    said = {"role": "assistant", "content": write_tool_calls((_CALL,), CallFormat.JSON)}
    takes = _takes_result(template, form, said, tools=False)
    return ToolForm(
        format=CallFormat.JSON,
        in_prompt=ToolsIn.SYSTEM if form.no_system is None else ToolsIn.USER,
        result_role="tool" if takes else "user",
        max_calls=1,
    )


def calls_of(message: Message) -> tuple[ToolCall, ...]:
    """The calls of an assistant's message in OpenAI's form; arguments as JSON text or a value.

    Raises:
        UsageError: One is no call.
    """
    calls = []
    for number, call in enumerate(message.get("tool_calls") or ()):
        where = f"tool_calls[{number}]"
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise UsageError(f"{where}: a function with a name and arguments is needed")
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            arguments = parse_json_object(arguments, f"{where}.arguments", UsageError)
        if not isinstance(arguments, Mapping):
            raise UsageError(f"{where}.arguments: an object is needed")
        calls.append(ToolCall(name=function["name"], arguments=arguments))
    return tuple(calls)


def answer_message(text: str, calls: Sequence[ToolCall]) -> dict[str, Any]:
    """What an assistant said, as a message in OpenAI's form, arguments as values."""
    return _answered(calls) if calls else {"role": "assistant", "content": text}


def _answered(calls: Sequence[ToolCall]) -> dict[str, Any]:
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "type": "function",
                "function": {"name": call.name, "arguments": dict(call.arguments)},
            }
            for call in calls
        ],
    }


def _with_calls(message: Message) -> dict[str, Any]:
    """Arguments are values: templates write them as JSON themselves."""
    if not message.get("tool_calls"):
        return {name: value for name, value in message.items() if name != "tool_calls"}
    given = {**message, **_answered(calls_of(message))}
    return {**given, "content": message.get("content") or ""}


def _text_of(message: Message) -> str:
    content = message.get("content")
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def _joined(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One user's message after another is one: templates want the roles to alternate."""
    found: list[dict[str, Any]] = []
    for message in messages:
        if found and message.get("role") == "user" == found[-1].get("role"):
            both = f"{_text_of(found[-1])}\n\n{_text_of(message)}"
            found[-1] = {"role": "user", "content": both}
        else:
            found.append(message)
    return found


def _shows_tools(template: ChatTemplate, form: DialogForm) -> bool:
    text = _render(template, form, (_USER,), tools=True)
    return text is not None and all(part in text for part in (_TOOL.name, _TOOL.description))


def _written_format(template: ChatTemplate, form: DialogForm) -> CallFormat | None:
    """How the template writes a call that the assistant has made; None where we do not read it."""
    before = _render(template, form, (_USER,), tools=True)
    after = _render(template, form, (_USER, _answered((_CALL,))), tools=True, prompt=False)
    if before is None or after is None or not after.startswith(before):
        return None
    text = after.removeprefix(before).strip()
    text = text.partition(form.after_answer)[0] if form.after_answer else text
    if text.startswith(f"[{_CALL.name}("):  # some leave out the quotes of strings
        return CallFormat.PYTHONIC
    try:
        return CallFormat.JSON if parse_tool_calls(text) == (_CALL,) else None
    except ToolCallError:
        return None


def _takes_result(template: ChatTemplate, form: DialogForm, call: Message, *, tools: bool) -> bool:
    """Whether the template shows a tool's result, and not as what the assistant said."""
    dialog = (_USER, call, _RESULT)
    text = _render(template, form, dialog, tools=tools)
    as_said = _render(template, form, (_USER, call, {**_RESULT, "role": "assistant"}), tools=tools)
    return text is not None and text != as_said and missing_message(dialog, text) is None


def _render(
    template: ChatTemplate,
    form: DialogForm,
    dialog: Sequence[Message],
    *,
    tools: bool,
    prompt: bool = True,
) -> str | None:
    """None where the template refuses the dialog."""
    try:
        return template.render(
            form.given(dialog),
            tools=[_TOOL.to_json()] if tools else None,
            add_generation_prompt=prompt,
        )
    except TemplateStoppedError:
        raise
    except TokenizerError:
        return None
