"""In a child process: compile a chat template and render dialogs, as transformers does.

A template is a program from a stranger. Jinja's sandbox keeps it away from Python, and the child's
limits from running for ever or filling the memory. Tags, filters, functions and variables are
those of transformers' `render_jinja_template`, which published templates are written for.
"""

import json
import re
from collections.abc import Mapping
from datetime import date
from functools import lru_cache
from typing import Any, Final, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llama_edge.confined.child import RefusedError
from llama_edge.text.typed_text import MARK, mark_typed

#: A context of 131,072 tokens has about half a million.
MAX_OUTPUT_CHARACTERS: Final = 1 << 22

#: What a wrong template can raise from compiling or running; anything else is our own fault.
_TEMPLATE_ERRORS: Final = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
)
_ESCAPED_MARK: Final = re.compile(r"(?<!\\)((?:\\\\)*)" + re.escape(json.dumps(MARK)[1:-1]))
#: Names under which programs pass what a model thought before it answered.
_REASONING: Final = ("reasoning_content", "thinking", "reasoning")


class _Generation(Extension):
    """`{% generation %}`: marks what the assistant says, for training; it changes no text."""

    tags = {"generation"}  # noqa: RUF012  (jinja2's own declaration)

    def parse(self, parser: Parser) -> nodes.Node:
        """The statements between the tags, in a scope of their own."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def answer(request: dict[str, Any]) -> Any:  # noqa: ANN401
    """The rendering of `messages` by `source`, or what it mentions.

    Args:
        request: `source`; and for a rendering `messages`, `tools`, `add_generation_prompt`,
            `variables`, `given` (more variables), `today` (ISO) and `firsts`, of which the typed
            text is marked.
    """
    compiled = _compiled(request["source"])
    if "messages" not in request:
        return _literals(request["source"])
    today = date.fromisoformat(request["today"])
    messages = [_with_reasoning(message) for message in request["messages"]]
    tools, given = request["tools"], request["given"]
    if request["firsts"]:
        messages, tools, given = mark_typed([messages, tools, given], request["firsts"])
    variables = {
        **request["variables"],
        **given,
        "messages": messages,
        "tools": tools,
        "documents": None,
        "add_generation_prompt": request["add_generation_prompt"],
        "strftime_now": today.strftime,
    }
    pieces: list[str] = []
    size = 0
    try:
        for piece in compiled.generate(variables):
            pieces.append(piece)
            size += len(piece)
            if size > MAX_OUTPUT_CHARACTERS:
                raise RefusedError(f"it writes over {MAX_OUTPUT_CHARACTERS} characters")
    except _TEMPLATE_ERRORS as error:
        raise RefusedError(f"the chat template failed: {error}") from error
    return "".join(pieces)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[LoopControlExtension, _Generation]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    return environment


@lru_cache(maxsize=1)
def _compiled(source: str) -> jinja2.Template:
    try:
        return _environment().from_string(source)
    except _TEMPLATE_ERRORS as error:
        raise RefusedError(f"the chat template cannot be compiled: {error}") from error


def _literals(source: str) -> list[str]:
    """Everything that the template can write of its own: its text, and its string constants."""
    tree = _environment().parse(source)
    found = {node.data for node in tree.find_all(nodes.TemplateData)}
    found |= {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
    return sorted(found)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without HTML escapes, with `json.dumps`'s own arguments."""
    text = json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
    return _ESCAPED_MARK.sub(rf"\g<1>{MARK}", text)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _with_reasoning(message: Mapping[str, Any]) -> dict[str, Any]:
    """The message under each name of the reasoning that some template looks for."""
    given = {name: value for name, value in message.items() if value is not None}
    reasoning = next((given[name] for name in _REASONING if name in given), None)
    if reasoning is None:
        return given
    return {"thinking": reasoning, **given, "reasoning_content": reasoning}
