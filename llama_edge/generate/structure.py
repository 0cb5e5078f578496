"""What an answer must be: JSON under a schema, a match of a regex, calls of tools, or anything."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from llama_edge.core.errors import UsageError
from llama_edge.generate.bundle_model import BundleModel
from llama_edge.text.generate import Constraint
from llama_edge.text.grammar import Grammar, JsonSchema, Regex, ToolCalls, check_grammar
from llama_edge.text.tool_form import ToolsIn
from llama_edge.text.tools import Tool, ToolChoice, parse_choice, parse_tools


@dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """At most one of `schema`, `regex` and `tools` is given.

    Raises:
        UsageError: More than one is; or a schema or a regex is wrong.
    """

    schema: Mapping[str, Any] | None = None
    regex: str | None = None
    tools: tuple[Tool, ...] = ()
    #: a tool: this one is called
    choice: ToolChoice | Tool = ToolChoice.AUTO

    def __post_init__(self) -> None:
        given = {"a JSON schema": self.schema is not None, "a regex": self.regex is not None}
        given["tools"] = bool(self.tools)
        names = [name for name, is_given in given.items() if is_given]
        if len(names) > 1:
            raise UsageError(f"{' and '.join(names)} are given; an answer can be one of them")
        if self.schema is not None or self.regex is not None:
            check_grammar(self._grammar(None))

    def after_result(self) -> "Structure":
        """Of the answer to a tool's result: it need not be a call again."""
        if self.choice is ToolChoice.NONE:
            return self
        return replace(self, choice=ToolChoice.AUTO)

    def adds_tools(self, model: BundleModel) -> bool:
        """Whether the tools are in the prompt by our words, since the template leaves them out.

        Raises:
            TokenizerError: There is no chat template.
        """
        return bool(self.tools) and model.tool_form.in_prompt is not ToolsIn.TEMPLATE

    def constraint(self, model: BundleModel) -> Constraint | None:
        """For one answer of this model; None where it may be anything.

        Raises:
            UsageError: A tool's schema cannot be kept, or its name not written.
            TokenizerError: The model has no chat template for tools, or its tokenizer's bytes are
                not known.
        """
        if self.schema is None and self.regex is None and not self.tools:
            return None
        return model.constraint_for(self._grammar(model))

    def _grammar(self, model: BundleModel | None) -> Grammar:
        if self.schema is not None:
            return JsonSchema(self.schema)
        if self.regex is not None:
            return Regex(self.regex)
        assert model is not None, "how tools are called, the model says"
        form = model.tool_form
        return ToolCalls(
            tools=self.tools, format=form.format, choice=self.choice, max_calls=form.max_calls
        )


ANYTHING: Final = Structure()


def build_structure(
    *,
    schema: Mapping[str, Any] | None = None,
    regex: str | None = None,
    tools: Sequence[Tool | Mapping[str, Any]] = (),
    tool_choice: str | None = None,
) -> Structure:
    """From values of outside.

    Args:
        schema: JSON Schema of the answer.
        regex: What the whole answer matches.
        tools: Definitions in OpenAI's form, or the functions alone.
        tool_choice: `auto` (the default), `none`, `required` or the name of a tool.

    Raises:
        UsageError: One of them is wrong, or they do not fit together.
    """
    if not tools and tool_choice not in (None, ToolChoice.AUTO, ToolChoice.NONE):
        raise UsageError(f"the tool choice is {str(tool_choice)[:80]!r}, and there are no tools")
    given = [tool.to_json() if isinstance(tool, Tool) else tool for tool in tools]
    found = parse_tools(given) if given else ()
    choice = parse_choice(tool_choice or ToolChoice.AUTO, found)
    return Structure(schema=schema, regex=regex, tools=found, choice=choice)
