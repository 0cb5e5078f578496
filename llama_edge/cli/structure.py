"""Options of `run` and `chat` that say what an answer must be."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from llama_edge.cli.console import say

if TYPE_CHECKING:
    from llama_edge.generate.chat import Chat
    from llama_edge.generate.run import Run
    from llama_edge.generate.structure import Structure

ToolsOption = typer.Option(
    "--tools",
    help="JSON file with a list of functions that the model may call: OpenAI's form, or the "
    "functions alone.",
)
ToolChoiceOption = typer.Option(
    "--tool-choice",
    metavar="auto|none|required|NAME",
    help="Whether an answer is a call; a name: of this tool.",
)
JsonSchemaOption = typer.Option(
    "--json-schema", help="JSON file with a schema: the answer is JSON that is valid under it."
)
RegexOption = typer.Option("--regex", help="The whole answer matches this regular expression.")


def structure_from(
    tools: Path | None, tool_choice: str | None, json_schema: Path | None, regex: str | None
) -> "Structure":
    """What the options say.

    Raises:
        UsageError: A file cannot be read, or they do not fit together.
    """
    from llama_edge.core.errors import UsageError
    from llama_edge.core.json_files import read_json_object
    from llama_edge.generate.structure import build_structure
    from llama_edge.text.grammar import MAX_SCHEMA_BYTES
    from llama_edge.text.tools import read_tools

    schema = None
    if json_schema is not None:
        schema = read_json_object(json_schema, UsageError, limit=MAX_SCHEMA_BYTES)
    return build_structure(
        schema=schema,
        regex=regex,
        tools=() if tools is None else read_tools(tools),
        tool_choice=tool_choice,
    )


def say_notes(opened: "Run | Chat") -> None:
    """What a person should know before they read the answer."""
    if opened.failed_gate:
        say("warning: this bundle failed its gate; see its parity.json", err=True)
    if opened.tools_are_added:
        say(
            "note: the model's chat template has no place for tools; they are written into the "
            "prompt in Llama's format",
            err=True,
        )
    if opened.state_note is not None:
        say(f"note: {opened.state_note}", err=True)
