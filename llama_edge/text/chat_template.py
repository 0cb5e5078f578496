"""Chat templates, rendered as Hugging Face's tools do, in a sandbox with a budget.

A template is a program from a stranger. Jinja's sandbox keeps it away from Python; the budget keeps
it from running for ever or filling the memory: each turn of a loop and each macro call is counted,
and every value that can grow is measured.
"""

import json
from collections.abc import Mapping, Sequence, Sized
from datetime import date
from typing import Any, Final, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import LoopControlExtension
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from llama_edge.core.errors import TokenizerError

#: What `strftime_now` says by default, so that a dialog has the same tokens tomorrow. It is the day
#: that Llama 3.2's own template falls back to.
REFERENCE_DATE: Final = date(2024, 7, 26)

MAX_TEMPLATE_CHARACTERS: Final = 1 << 17  # the longest published ones have about 20,000
MAX_STEPS: Final = 50_000
MAX_VALUE_SIZE: Final = 1 << 22
MAX_OUTPUT_CHARACTERS: Final = 1 << 24

#: What a wrong template can raise from compiling or running; anything else is our own fault.
_TEMPLATE_ERRORS: Final = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
)


class _OverBudgetError(jinja2.TemplateError):
    """The template does more than any chat needs."""


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, counting steps and measuring values."""

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[LoopControlExtension])
        self.filters["tojson"] = _tojson
        self.globals["raise_exception"] = _raise_exception
        self.intercepted_binops = frozenset({"+", "*", "**", "%"})
        self.steps = 0

    def charge(self) -> str:
        """Count one turn of a loop or one macro call."""
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise _OverBudgetError(f"it takes more than {MAX_STEPS} steps")
        return ""

    def measured(self, value: object) -> object:
        """`value`, unless it has grown too large."""
        if isinstance(value, Sized) and len(value) > MAX_VALUE_SIZE:
            raise _OverBudgetError(f"it makes a value of more than {MAX_VALUE_SIZE} items")
        return value

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:  # noqa: ANN401
        """Refuse a power or a repetition before it is made, and a sum after."""
        if operator == "**" or (operator == "*" and _product_size(left, right) > MAX_VALUE_SIZE):
            raise _OverBudgetError(f"it makes a value of more than {MAX_VALUE_SIZE} items")
        return self.measured(super().call_binop(context, operator, left, right))

    def call(  # the parent's own signature
        self,
        __context: Context,
        __obj: Any,  # noqa: ANN401
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """Measure what a function or method gives."""
        return self.measured(super().call(__context, __obj, *args, **kwargs))

    def compiled(self, source: str) -> jinja2.Template:
        """The template, with a charge in front of each loop's and each macro's body."""
        tree = self.parse(source)
        for kind in (nodes.For, nodes.Macro, nodes.CallBlock):
            for block in tree.find_all(kind):
                charge = nodes.ExprStmt(_call("charge", [])).set_lineno(block.lineno)
                block.body.insert(0, charge)  # type: ignore[attr-defined]
        _Measure().visit(tree)
        code = self.compile(tree)
        return jinja2.Template.from_code(self, code, self.make_globals(None))


class _Measure(NodeTransformer):
    """Puts `measured` around what is neither a call nor an operator and can still make values grow.

    That is `~`, a filter, and `{% set x %}...{% endset %}`.
    """

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        return _call("measured", [self.generic_visit(node)])

    def visit_Filter(self, node: nodes.Filter) -> nodes.Node:  # noqa: N802
        return _call("measured", [self.generic_visit(node)])

    def visit_FilterBlock(self, node: nodes.FilterBlock) -> nodes.Node:  # noqa: N802
        node.body = [self.visit(part) for part in node.body]
        return node

    def visit_AssignBlock(self, node: nodes.AssignBlock) -> list[nodes.Node]:  # noqa: N802
        node.body = [self.visit(part) for part in node.body]
        value: nodes.Expr = nodes.Name("", "load")
        match node.target:
            case nodes.NSRef(name=name, attr=attribute):
                value = nodes.Getattr(nodes.Name(name, "load"), attribute, "load")
            case nodes.Name(name=name):
                value = nodes.Name(name, "load")
        return [node, nodes.ExprStmt(_call("measured", [value])).set_lineno(node.lineno)]


def _call(method: str, arguments: list[Any]) -> nodes.Call:
    """A call of one of the environment's own methods, which no template can reach or shadow."""
    return nodes.Call(nodes.EnvironmentAttribute(method), arguments, [], None, None)


def _product_size(left: object, right: object) -> int:
    """How large `left * right` will be: items of a repeated sequence, bits of a number."""
    if isinstance(left, int) and isinstance(right, int):
        return left.bit_length() + right.bit_length()
    for sequence, times in ((left, right), (right, left)):
        if isinstance(sequence, Sized) and isinstance(times, int):
            return len(sequence) * times
    return 0


def _tojson(
    value: object, ensure_ascii: bool = False, indent: int | None = None, sort_keys: bool = False
) -> str:
    """JSON without HTML escapes, as transformers has it."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


class ChatTemplate:
    """A compiled template."""

    def __init__(self, source: str, *, bos_token: str = "", eos_token: str = "") -> None:
        if len(source) > MAX_TEMPLATE_CHARACTERS:
            raise TokenizerError(
                f"the chat template has {len(source)} characters; at most "
                f"{MAX_TEMPLATE_CHARACTERS} are accepted"
            )
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._environment = _Environment()
        try:
            self._template = self._environment.compiled(source)
        except _TEMPLATE_ERRORS as error:
            raise TokenizerError(f"the chat template cannot be compiled: {error}") from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        today: date = REFERENCE_DATE,
    ) -> str:
        """The dialog as one string, control tokens and BOS included.

        Args:
            messages: `role` and `content` each, as in transformers' `apply_chat_template`.
            add_generation_prompt: End with the header of the assistant's turn.
            tools: JSON schemas of functions, for templates that show them.
            today: What the template takes for the current day.

        Raises:
            TokenizerError: The template fails, refuses the messages or exceeds its budget.
        """
        variables: dict[str, object] = {
            **self._tokens,
            "messages": [dict(message) for message in messages],
            "add_generation_prompt": add_generation_prompt,
            "tools": tools,
            "strftime_now": today.strftime,
        }
        self._environment.steps = 0
        pieces: list[str] = []
        size = 0
        try:
            for piece in self._template.generate(variables):
                pieces.append(piece)
                size += len(piece)
                if size > MAX_OUTPUT_CHARACTERS:
                    raise _OverBudgetError(f"it writes over {MAX_OUTPUT_CHARACTERS} characters")
        except _TEMPLATE_ERRORS as error:
            raise TokenizerError(f"the chat template failed: {error}") from error
        return "".join(pieces)
