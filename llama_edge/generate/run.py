"""A prompt in, streamed text out, through the bundle's own tokenizer, template and runtime."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llama_edge.bundle.signing import NO_KEY, Trust
from llama_edge.core.errors import UsageError
from llama_edge.generate.assistant import DEFAULT_ANSWER, AnswerConfig, Assistant
from llama_edge.generate.bundle_model import BundleModel
from llama_edge.text.chat_template import REFERENCE_DATE
from llama_edge.text.generate import StopReason


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRequest:
    """What to say to the model, and how it may answer."""

    prompt: str
    system: str | None = None
    #: continue the prompt as it is, without the chat template
    raw: bool = False
    config: AnswerConfig = DEFAULT_ANSWER
    #: None takes the one that the gate uses
    runtime: str | None = None

    def __post_init__(self) -> None:
        if self.raw and self.system is not None:
            raise UsageError("a system prompt needs the chat template: leave out --raw or --system")


class Run:
    """Pieces of text as they come, whole characters only; the counts are known afterwards."""

    def __init__(self, folder: Path, request: PromptRequest, trust: Trust = NO_KEY) -> None:
        """Open the bundle and encode the prompt.

        Raises:
            ArtifactError: Not a bundle, or an unsafe one.
            CheckFailedError: A file is not what the manifest says, or not listed there; or the
                signature is not the one that `trust` demands.
            TokenizerError: There is no chat template, and the request is not raw.
            UsageError: The runtime is another backend's.
        """
        self._model = BundleModel(folder, request.runtime, trust)
        self._prompt = _encode(self._model, request)
        self._config = request.config
        self.failed_gate = self._model.failed_gate
        #: why the bundle's prompt state is not used, if it has one
        self.state_note = self._model.state_note
        self.new_tokens = 0
        #: those of the prompt that the model had to read
        self.read_tokens = 0
        self.stop_reason: StopReason | None = None

    @property
    def prompt_tokens(self) -> int:
        """How many tokens the model reads first."""
        return len(self._prompt)

    def __iter__(self) -> Iterator[str]:
        """Run the model in a child process.

        Raises:
            CheckFailedError: A file was changed after it had been checked.
            SessionError: The prompt does not fit the context.
            RuntimeCrashError: The runtime died or hung.
        """
        with Assistant(self._model) as assistant:
            answer = assistant.answer(self._prompt, self._config)
            for piece in answer:
                self.read_tokens, self.new_tokens = answer.read_tokens, len(answer.tokens)
                yield piece
        self.stop_reason = answer.stop_reason


def _encode(model: BundleModel, request: PromptRequest) -> list[int]:
    tokenizer = model.tokenizer
    if request.raw:
        return tokenizer.encode(request.prompt)
    messages = [{"role": "user", "content": request.prompt}]
    if request.system is not None:
        messages.insert(0, {"role": "system", "content": request.system})
    day = model.day_of(request.system) or REFERENCE_DATE
    return tokenizer.encode_chat(messages, today=day)
