"""`run`: one prompt, one streamed answer."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llama_edge.cli.console import (
    JsonOption,
    PublicKeyOption,
    RuntimeOption,
    SeedOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    print_json,
    say,
    say_answer,
    trust_in,
)
from llama_edge.cli.structure import (
    JsonSchemaOption,
    RegexOption,
    ToolChoiceOption,
    ToolsOption,
    say_notes,
    structure_from,
)
from llama_edge.core.errors import ToolCallError
from llama_edge.text.generate import DEFAULT_MAX_NEW_TOKENS, GREEDY, SamplingConfig

if TYPE_CHECKING:
    from llama_edge.generate.run import Run


def run(
    bundle: Annotated[Path, typer.Argument(help="A bundle's folder.")],
    prompt: Annotated[str, typer.Argument(help="What to say to the model.")],
    *,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the prompt as it is: no chat template.")
    ] = False,
    system: Annotated[str | None, typer.Option(help="A system prompt.")] = None,
    max_new_tokens: Annotated[
        int, typer.Option(help="Stop after so many tokens.")
    ] = DEFAULT_MAX_NEW_TOKENS,
    temperature: Annotated[float, TemperatureOption] = GREEDY.temperature,
    top_p: Annotated[float, TopPOption] = GREEDY.top_p,
    top_k: Annotated[int, TopKOption] = GREEDY.top_k,
    seed: Annotated[int, SeedOption] = GREEDY.seed,
    tools: Annotated[Path | None, ToolsOption] = None,
    tool_choice: Annotated[str | None, ToolChoiceOption] = None,
    json_schema: Annotated[Path | None, JsonSchemaOption] = None,
    regex: Annotated[str | None, RegexOption] = None,
    runtime: Annotated[str | None, RuntimeOption] = None,
    public_key: Annotated[Path | None, PublicKeyOption] = None,
    as_json: Annotated[bool, JsonOption] = False,
) -> None:
    """Let a bundle answer a prompt on this machine; the text streams to stdout."""
    from llama_edge.generate.assistant import AnswerConfig
    from llama_edge.generate.run import PromptRequest, Run

    sampling = SamplingConfig(temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)
    request = PromptRequest(
        prompt=prompt,
        system=system,
        raw=raw,
        config=AnswerConfig(max_new_tokens=max_new_tokens, sampling=sampling),
        structure=structure_from(tools, tool_choice, json_schema, regex),
        runtime=runtime,
    )
    answer = Run(bundle, request, trust_in(public_key))
    say_notes(answer)
    pieces = []
    for piece in answer:
        pieces.append(piece)
        if not as_json:
            say_answer(piece)
    calls, cut = _calls(answer)
    if not as_json:
        say("")
    if cut:
        say(f"note: the answer is a call that was cut: {cut}", err=True)
    if not as_json:
        return
    print_json(
        {
            "text": "".join(pieces),
            **({} if tools is None else {"tool_calls": calls}),
            "prompt_tokens": answer.prompt_tokens,
            "read_tokens": answer.read_tokens,
            "new_tokens": answer.new_tokens,
            "stop_reason": answer.stop_reason,
        }
    )


def _calls(answer: "Run") -> tuple[list[dict[str, Any]], str]:
    """The calls in the answer as JSON values; or none, and why they cannot be read."""
    try:
        calls = answer.tool_calls()
    except ToolCallError as error:
        return [], str(error)
    return [{"name": call.name, "arguments": dict(call.arguments)} for call in calls], ""
