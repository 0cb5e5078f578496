"""A conversation with a bundle: each turn costs its own tokens while the cache fits the dialog."""

from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path

from llama_edge.bundle.signing import NO_KEY, Trust
from llama_edge.core.errors import UsageError
from llama_edge.core.session import ClosesOnExit
from llama_edge.generate.assistant import AnswerConfig, Assistant
from llama_edge.generate.bundle_model import BundleModel
from llama_edge.text.dialog import Message, trim_dialog
from llama_edge.text.generate import StopReason


class Chat(ClosesOnExit):
    """Messages so far, and a session that holds their keys and values.

    Use it as a context manager: the runtime is a child process.

    Args:
        folder: The bundle.
        system: A system prompt.
        config: How an answer may be; its tokens are kept free in the context.
        runtime: None takes the one that the gate uses.
        trust: Whose signature the bundle must have.

    Raises:
        ArtifactError: Not a bundle, or an unsafe one.
        CheckFailedError: A file is not what the manifest says, or not listed there; or the
            signature is not the one that `trust` demands.
        UsageError: The runtime is another backend's, or an answer's length does not fit.
    """

    def __init__(
        self,
        folder: Path,
        *,
        system: str | None,
        config: AnswerConfig,
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
        self._messages: list[Message] = []
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
        self._messages = [] if system is None else [{"role": "system", "content": system}]
        self._day = self._model.day_of(system)

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
        asked = [*self._messages, {"role": "user", "content": text}]
        limit = self.max_context - self._config.max_new_tokens
        kept = trim_dialog(asked, lambda messages: len(self._encode(messages)), limit)
        self.dropped = len(asked) - len(kept)
        prompt = self._encode(kept)
        answer = self._assistant.answer(prompt, self._config)
        self.dialog_tokens, self.new_tokens = len(prompt), 0
        pieces = list[str]()
        for piece in answer:
            self.prompt_tokens, self.new_tokens = answer.read_tokens, len(answer.tokens)
            pieces.append(piece)
            yield piece
        self.stop_reason = answer.stop_reason
        self._messages = [*kept, {"role": "assistant", "content": "".join(pieces)}]

    def _encode(self, messages: Sequence[Message]) -> list[int]:
        today = self._day or date.today()
        return self._model.tokenizer.encode_chat(messages, today=today)
