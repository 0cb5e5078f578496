"""`run`: one prompt, one streamed answer."""

from pathlib import Path
from typing import Annotated

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
from llama_edge.text.generate import DEFAULT_MAX_NEW_TOKENS, GREEDY, SamplingConfig


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
        runtime=runtime,
    )
    answer = Run(bundle, request, trust_in(public_key))
    if answer.failed_gate:
        say("warning: this bundle failed its gate; see its parity.json", err=True)
    if answer.state_note is not None:
        say(f"note: {answer.state_note}", err=True)
    pieces = []
    for piece in answer:
        pieces.append(piece)
        if not as_json:
            say_answer(piece)
    if not as_json:
        say("")
        return
    print_json(
        {
            "text": "".join(pieces),
            "prompt_tokens": answer.prompt_tokens,
            "read_tokens": answer.read_tokens,
            "new_tokens": answer.new_tokens,
            "stop_reason": answer.stop_reason,
        }
    )
