"""What a request says of the form of its answer: tools, a choice among them, a JSON schema."""

from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from llama_edge.core.errors import GrammarStuckError, TokenizerError, UsageError
from llama_edge.generate.bundle_model import BundleModel
from llama_edge.serve.errors import ApiError, invalid, unsupported
from llama_edge.serve.requests import (
    ChatCompletionRequest,
    ChosenTool,
    JsonObjectFormat,
    JsonSchemaFormat,
)
from llama_edge.text.generate import Constraint
from llama_edge.text.grammar import Grammar, JsonSchema, ToolCalls
from llama_edge.text.tools import Tool, ToolChoice, parse_tools

_ANY_OBJECT = JsonSchema({"type": "object"})


def tools_of(request: ChatCompletionRequest) -> tuple[Tool, ...]:
    """The tools that the model is told of.

    Raises:
        ApiError: One is wrong.
    """
    if not request.tools:
        return ()
    try:
        return parse_tools([msgspec.to_builtins(tool) for tool in request.tools])
    except UsageError as error:
        raise invalid("tools", str(error)) from error


def calls_tools(request: ChatCompletionRequest) -> bool:
    """Whether its answer may be a call."""
    return bool(request.tools) and request.tool_choice != "none"


def constraint_of(request: ChatCompletionRequest, model: BundleModel) -> Constraint | None:
    """What keeps the answer to its form; None: it may be anything.

    Raises:
        ApiError: The form is wrong, too large, or cannot be kept with this model.
    """
    with form_errors(request):
        try:
            grammar = _grammar(request, model)
            return None if grammar is None else model.constraint_for(grammar)
        except TokenizerError as error:
            raise UsageError(f"this model's answers cannot be kept to a form: {error}") from error


@contextmanager
def form_errors(request: ChatCompletionRequest) -> Iterator[None]:
    """What is wrong with the form, as the error of a request.

    Raises:
        ApiError: It is wrong.
    """
    try:
        yield
    except (UsageError, GrammarStuckError) as error:
        raise invalid("tools" if request.tools else "response_format", str(error)) from error


def _grammar(request: ChatCompletionRequest, model: BundleModel) -> Grammar | None:
    tools = tools_of(request)
    choice = _choice(request, tools)
    wanted = _format(request)
    if not tools:
        return wanted
    if wanted is not None:
        raise unsupported(
            "response_format",
            "response_format and tools are not supported together: leave one of them out",
        )
    form = model.tool_form
    most = 1 if request.parallel_tool_calls is False else form.max_calls
    return ToolCalls(tools=tools, format=form.format, choice=choice, max_calls=most)


def _choice(request: ChatCompletionRequest, tools: tuple[Tool, ...]) -> ToolChoice | Tool:
    match request.tool_choice:
        case None:
            return ToolChoice.AUTO
        case ChosenTool(function=function):
            found = next((tool for tool in tools if tool.name == function.name), None)
            if found is None:
                raise invalid(
                    "tool_choice", f"there is no tool {function.name[:80]!r} among the tools"
                )
            return found
        case str() as name:
            if name == "required" and not tools:
                raise invalid("tool_choice", "tool_choice is 'required', and there are no tools")
            return ToolChoice(name)


def _format(request: ChatCompletionRequest) -> Grammar | None:
    match request.response_format:
        case JsonObjectFormat():
            return _ANY_OBJECT
        case JsonSchemaFormat(json_schema=wanted):
            return JsonSchema(wanted.schema if wanted.schema is not None else {})
        case _:
            return None


def context_exceeded(message: str) -> ApiError:
    """For a dialog that is too long."""
    return ApiError(message, param="messages", code="context_length_exceeded")
