"""`chat`: a conversation with a bundle in a terminal, or line by line through a pipe."""

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from llama_edge.cli.console import (
    PublicKeyOption,
    RuntimeOption,
    SeedOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    print_error,
    say,
    say_answer,
    trust_in,
)
from llama_edge.cli.guard import CategoriesOption, ThresholdOption, guard_of
from llama_edge.cli.structure import (
    JsonSchemaOption,
    RegexOption,
    ToolChoiceOption,
    ToolsOption,
    say_notes,
    structure_from,
)
from llama_edge.core.errors import LlamaEdgeError, OutputError, RuntimeCrashError, UsageError
from llama_edge.core.regular import real_path
from llama_edge.text.generate import DEFAULT_MAX_NEW_TOKENS, GREEDY, SamplingConfig, StopReason

if TYPE_CHECKING:
    from llama_edge.generate.chat import Chat

_HELP: Final = (
    "/system TEXT  begin again, with this system prompt",
    "/reset        begin again, with the same system prompt",
    "/tool RESULT  what the called tool returned; the model goes on",
    "/stats        what the last turn took, and how full the context is",
    "/save FILE    write the dialog as JSON into a new file",
    "/quit         end; so does Ctrl-D",
    "Ctrl-C ends an answer. A line that ends with \\ goes on in the next one.",
)


def chat(
    bundle: Annotated[Path, typer.Argument(help="A bundle's folder.")],
    *,
    system: Annotated[str | None, typer.Option(help="A system prompt.")] = None,
    max_new_tokens: Annotated[
        int, typer.Option(help="Tokens of an answer; the context keeps so many free.")
    ] = DEFAULT_MAX_NEW_TOKENS,
    temperature: Annotated[float, TemperatureOption] = GREEDY.temperature,
    top_p: Annotated[float, TopPOption] = GREEDY.top_p,
    top_k: Annotated[int, TopKOption] = GREEDY.top_k,
    seed: Annotated[int, SeedOption] = GREEDY.seed,
    guard: Annotated[
        Path | None,
        typer.Option(
            help="The folder of a Llama Guard's bundle: questions and answers that it finds unsafe "
            "are left out. An answer comes when it is whole and checked."
        ),
    ] = None,
    categories: Annotated[str | None, CategoriesOption] = None,
    threshold: Annotated[float, ThresholdOption] = 0.5,
    tools: Annotated[Path | None, ToolsOption] = None,
    tool_choice: Annotated[str | None, ToolChoiceOption] = None,
    json_schema: Annotated[Path | None, JsonSchemaOption] = None,
    regex: Annotated[str | None, RegexOption] = None,
    runtime: Annotated[str | None, RuntimeOption] = None,
    public_key: Annotated[Path | None, PublicKeyOption] = None,
) -> None:
    """Talk to a bundle on this machine; /help lists what else a line may be.

    Where the context is full, the oldest exchanges are left out, never the system prompt. What was
    typed is remembered until the end, and not written anywhere.
    """
    from llama_edge.generate.assistant import AnswerConfig
    from llama_edge.generate.chat import Chat
    from llama_edge.generate.guarded_chat import GuardedChat
    from llama_edge.generate.structure import ANYTHING

    sampling = SamplingConfig(temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)
    trust = trust_in(public_key)
    structure = structure_from(tools, tool_choice, json_schema, regex)
    opens_guard = guard_of(guard, categories, threshold, trust)
    if opens_guard is not None and structure != ANYTHING:
        raise UsageError(
            "--guard is for answers that are any text: leave out --tools, --json-schema and --regex"
        )
    with ExitStack() as stack:
        open_chat = (
            partial(Chat, structure=structure)
            if opens_guard is None
            else partial(GuardedChat, guard=stack.enter_context(opens_guard()))
        )
        opened = stack.enter_context(
            open_chat(
                bundle,
                system=system,
                config=AnswerConfig(max_new_tokens=max_new_tokens, sampling=sampling),
                runtime=runtime,
                trust=trust,
            )
        )
        say_notes(opened)
        say(f"{real_path(bundle).name}: a context of {opened.max_context} tokens; /help", err=True)
        talk = _Talk(opened, system)
        for line in _lines():
            if not talk.take(line):
                return


def _lines() -> Iterator[str]:
    """What is typed, with editing and history on a terminal; until the end of the input."""
    ask = _terminal() if sys.stdin.isatty() else _piped
    while True:
        try:
            line = ask("> ")
            while line.endswith("\\"):
                line = f"{line[:-1]}\n{ask('. ')}"
        except KeyboardInterrupt:
            continue  # as in a shell: the line is given up
        except EOFError:
            return
        if line.strip():
            yield line.strip()


def _terminal() -> Callable[[str], str]:
    from prompt_toolkit import PromptSession

    session: PromptSession[str] = PromptSession(reserve_space_for_menu=0)
    return session.prompt


def _piped(prompt: str) -> str:
    del prompt
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.removesuffix("\n")


@contextmanager
def _interruption() -> Iterator[Callable[[], bool]]:
    """Ctrl-C ends an answer between two tokens; a second one, before that, ends the program."""
    heard: list[int] = []

    def hear(number: int, frame: object) -> None:
        del frame
        if heard:
            raise KeyboardInterrupt
        heard.append(number)

    before = signal.signal(signal.SIGINT, hear)
    try:
        yield lambda: bool(heard)
    finally:
        signal.signal(signal.SIGINT, before)


class _Talk:
    """What a line does."""

    def __init__(self, chat: "Chat", system: str | None) -> None:
        self._chat = chat
        self._system = system
        self._seconds = 0.0
        #: of the calls of the last answer, as far as they were given
        self._results: list[str] = []

    def take(self, line: str) -> bool:
        """Answer a line; whether to go on.

        Raises:
            RuntimeCrashError: The model's process has died.
        """
        command, _, rest = line.partition(" ")
        try:
            if not command.startswith("/"):
                self._answer(self._chat.stream(line))
            elif command in ("/quit", "/exit"):
                return False
            else:
                self._command(command, rest.strip())
        except RuntimeCrashError:
            raise
        except LlamaEdgeError as error:
            print_error(error, as_json=False)
        return True

    def _command(self, command: str, rest: str) -> None:
        match command:
            case "/help":
                say(*_HELP, err=True)
            case "/reset":
                self._chat.begin(self._system)
                say("a new dialog", err=True)
            case "/system":
                self._system = rest or None
                self._chat.begin(self._system)
                say(
                    "a new dialog, " + ("with" if rest else "without") + " a system prompt",
                    err=True,
                )
            case "/stats":
                say(self._stats(), err=True)
            case "/tool":
                self._take_result(rest)
            case "/save":
                self._save(rest)
            case _:
                say(f"{command} is no command; /help lists them", err=True)

    def _take_result(self, result: str) -> None:
        calls = self._chat.calls
        if not calls:
            say("no tool was called; /tool gives the result of a call", err=True)
            return
        self._results.append(result)
        if len(self._results) < len(calls):
            following = calls[len(self._results)].name
            say(f"{len(calls)} tools were called; now the result of {following}", err=True)
            return
        results, self._results = self._results, []
        self._answer(self._chat.stream_results(results))

    def _answer(self, pieces: Iterator[str]) -> None:
        from llama_edge.generate.guarded_chat import GuardedChat

        self._results = []
        chat, begin = self._chat, time.monotonic()
        with _interruption() as is_interrupted:
            for number, piece in enumerate(pieces):
                if number == 0 and chat.dropped:
                    say(
                        f"note: the {chat.dropped} oldest messages no longer fit the context and "
                        "were left out",
                        err=True,
                    )
                say_answer(piece)
                if is_interrupted():
                    say("")
                    say("stopped: neither the question nor this is part of the dialog", err=True)
                    return
        self._seconds = time.monotonic() - begin
        refusal = chat.refusal if isinstance(chat, GuardedChat) else None
        if refusal is not None:
            say(f"{refusal}; it is not part of the dialog", err=True)
            return
        say("")
        if chat.stop_reason is not StopReason.EOS:
            say(f"note: the answer was cut: {_CUT[chat.stop_reason]}", err=True)
        for call in chat.calls:
            say(
                f"call: {call.name} {json.dumps(dict(call.arguments), ensure_ascii=False)}",
                err=True,
            )
        if chat.calls:
            say(f"/tool RESULT gives the result of {chat.calls[0].name}", err=True)

    def _stats(self) -> str:
        chat = self._chat
        used = chat.dialog_tokens + chat.new_tokens
        speed = f"{chat.new_tokens / self._seconds:.1f} tokens/s" if self._seconds else "none yet"
        return (
            f"the last turn: {chat.prompt_tokens} of {chat.dialog_tokens} tokens read, the others "
            f"were in the cache; {chat.new_tokens} written; {self._seconds:.1f} s in all, {speed} "
            f"on this machine. In the context: {used} of {chat.max_context} tokens"
        )

    def _save(self, name: str) -> None:
        from llama_edge.core.files import explained, write_new
        from llama_edge.core.json_files import canonical_json

        if not name:
            raise OutputError("/save needs the name of a file that does not exist yet")
        path = Path(name).expanduser()
        if path.exists():
            raise OutputError(f"{path}: exists already; name another file")
        with explained(path):
            write_new(path, canonical_json({"messages": list(self._chat.messages)}).encode())
        say(f"{len(self._chat.messages)} messages in {path}", err=True)


_CUT: Final = {
    StopReason.MAX_NEW_TOKENS: "--max-new-tokens is reached",
    StopReason.CONTEXT_FULL: "the context is full",
    None: "it has not ended",
}
