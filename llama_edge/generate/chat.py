"""A conversation with a bundle: each turn costs its own tokens while the cache fits the dialog."""

from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path

from llama_edge.bundle.signing import NO_KEY, Trust
from llama_edge.core.errors import ToolCallError, UsageError
from llama_edge.core.session import ClosesOnExit
from llama_edge.generate.assistant import AnswerConfig, Assistant
from llama_edge.generate.bundle_model import BundleModel
from llama_edge.generate.structure import ANYTHING, Structure
from llama_edge.text.dialog import Message, trim_dialog
from llama_edge.text.generate import StopReason
from llama_edge.text.tool_calls import ToolCall, parse_tool_calls
from llama_edge.text.tool_form import answer_message


class Chat(ClosesOnExit):
    """Messages so far, and a session that holds their keys and values.

    Use it as a context manager: the runtime is a child process.

    Args:
        folder: The bundle.
        system: A system prompt.
        config: How an answer may be; its tokens are kept free in the context.
        structure: What each answer must be.
        runtime: None takes the one that the gate uses.
        trust: Whose signature the bundle must have.

    Raises:
        ArtifactError: Not a bundle, or an unsafe one.
        CheckFailedError: A file is not what the manifest says, or not listed there; or the
            signature is not the one that `trust` demands.
        UsageError: The runtime is another backend's, an answer's length does not fit, or a tool's
            schema cannot be kept.
    """

    def __init__(
        self,
        folder: Path,
        *,
        system: str | None,
        config: AnswerConfig,
        structure: Structure = ANYTHING,
        runtime: str | None = None,
        trust: Trust = NO_KEY,
    ) -> None:
        model = BundleModel(folder, runtime, trust)
        if config.max_new_tokens >= model.max_context:
            raise UsageError(
                f"max_new_tokens is {config.max_new_tokens}; it must be below the context's "
                f"{model.max_context} tokens"
            )
        self.failed_gate = model.failed_gate
        #: tokens that the dialog may have with the answer
        self.max_context = model.max_context
        #: why the bundle's prompt state is not used, if it has one
        self.state_note = model.state_note
        self._model = model
        self._config = config
        self._structure = structure
        structure.constraint(model)  # what cannot be kept is said before the model is loaded
        self._messages: list[Message] = []
        #: the calls of the last answer, which wait for their results
        self.calls: tuple[ToolCall, ...] = ()
        self._day: date | None = None
        self.begin(system)
        #: messages that the last turn left out, since they did not fit
        self.dropped = 0
        #: tokens of the last turn: those of the dialog before the answer, those of them that had to
        #: be read, and those of the answer
        self.dialog_tokens = self.prompt_tokens = self.new_tokens = 0
        self.stop_reason: StopReason | None = None
        self._assistant = Assistant(model)

    def begin(self, system: str | None = None) -> None:
        """Forget the dialog, and begin another one.

        What the cache holds stays, as far as the next dialog has the same tokens.

        Args:
            system: Its system prompt.
        """
        self.calls = ()
        self._messages = [] if system is None else [{"role": "system", "content": system}]
        self._day = self._model.day_of(system)

    @property
    def tools_are_added(self) -> bool:
        """Whether the tools are in the prompt by our words, since the template leaves them out."""
        return self._structure.adds_tools(self._model)

    @property
    def messages(self) -> tuple[Message, ...]:
        """The dialog, oldest first."""
        return tuple(self._messages)

    def close(self) -> None:
        """End the child process."""
        self._assistant.close()

    def send(self, text: str) -> str:
        """Say something; the whole answer."""
        return "".join(self.stream(text))

    def stream(self, text: str) -> Iterator[str]:
        """Say something; the answer as it comes, whole characters only.

        The oldest exchanges are left out where the dialog does not fit, never the system prompt. A
        stream that is not read to its end leaves the dialog as it was.

        Raises:
            SessionError: The message alone does not fit the context.
            RuntimeCrashError: The runtime died or hung.
        """
        yield from self._answer([{"role": "user", "content": text}], self._structure)

    def stream_results(self, results: Sequence[str]) -> Iterator[str]:
        """Say what the called tools returned, in the order of `calls`; the answer as it comes.

        It may be text or calls again, whatever the choice of tools was.

        Raises:
            UsageError: There are more or fewer results than calls.
            SessionError: The exchange does not fit the context.
            RuntimeCrashError: The runtime died or hung.
        """
        if not results or len(results) != len(self.calls):
            raise UsageError(
                f"{len(results)} results for {len(self.calls)} calls; each call has one result"
            )
        said = [
            {"role": "tool", "name": call.name, "content": result}
            for call, result in zip(self.calls, results, strict=True)
        ]
        yield from self._answer(said, self._structure.after_result())

    def _answer(self, said: Sequence[Message], structure: Structure) -> Iterator[str]:
        asked = [*self._messages, *said]
        limit = self.max_context - self._config.max_new_tokens
        kept = trim_dialog(asked, lambda messages: len(self._encode(messages)), limit)
        self.dropped = len(asked) - len(kept)
        prompt = self._encode(kept)
        constraint = structure.constraint(self._model)
        answer = self._assistant.answer(prompt, self._config, constraint)
        self.dialog_tokens, self.new_tokens = len(prompt), 0
        pieces = list[str]()
        for piece in answer:
            self.prompt_tokens, self.new_tokens = answer.read_tokens, len(answer.tokens)
            pieces.append(piece)
            yield piece
        self.stop_reason = answer.stop_reason
        text = "".join(pieces)
        self.calls = self._calls_in(text)
        self._messages = [*kept, answer_message(text, self.calls)]

    def _calls_in(self, text: str) -> tuple[ToolCall, ...]:
        """An answer that was cut inside a call stays text."""
        try:
            return parse_tool_calls(text) if self._structure.tools else ()
        except ToolCallError:
            return ()

    def _encode(self, messages: Sequence[Message]) -> list[int]:
        today = self._day or date.today()
        return self._model.encode_dialog(messages, self._structure.tools, today)
