"""A prompt in, streamed text out, through the bundle's own tokenizer, template and runtime."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llama_edge.bundle.signing import NO_KEY, Trust
from llama_edge.core.errors import UsageError
from llama_edge.generate.assistant import DEFAULT_ANSWER, AnswerConfig, Assistant
from llama_edge.generate.bundle_model import BundleModel
from llama_edge.generate.structure import ANYTHING, Structure
from llama_edge.text.chat_template import REFERENCE_DATE
from llama_edge.text.generate import StopReason
from llama_edge.text.tool_calls import ToolCall, parse_tool_calls


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRequest:
    """What to say to the model, and how it may answer."""

    prompt: str
    system: str | None = None
    #: continue the prompt as it is, without the chat template
    raw: bool = False
    config: AnswerConfig = DEFAULT_ANSWER
    structure: Structure = ANYTHING
    #: None takes the one that the gate uses
    runtime: str | None = None

    def __post_init__(self) -> None:
        if self.raw and self.system is not None:
            raise UsageError("a system prompt needs the chat template: leave out --raw or --system")
        if self.raw and self.structure.tools:
            raise UsageError("tools need the chat template: leave out --raw or --tools")


class Run:
    """Pieces of text as they come, whole characters only; the counts are known afterwards."""

    def __init__(self, folder: Path, request: PromptRequest, trust: Trust = NO_KEY) -> None:
        """Open the bundle and encode the prompt.

        Raises:
            ArtifactError: Not a bundle, or an unsafe one.
            CheckFailedError: A file is not what the manifest says, or not listed there; or the
                signature is not the one that `trust` demands.
            TokenizerError: There is no chat template, and the request is not raw.
            UsageError: The runtime is another backend's, or a tool's schema cannot be kept.
        """
        self._model = BundleModel(folder, request.runtime, trust)
        self._prompt = _encode(self._model, request)
        self._config = request.config
        self._structure = request.structure
        self._constraint = request.structure.constraint(self._model)
        self._text = ""
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

    @property
    def tools_are_added(self) -> bool:
        """Whether the tools are in the prompt by our words, since the template leaves them out."""
        return self._structure.adds_tools(self._model)

    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The calls in the answer, once it has ended; none where it is text, or without tools.

        Raises:
            ToolCallError: It was cut inside a call.
        """
        return parse_tool_calls(self._text) if self._structure.tools else ()

    def __iter__(self) -> Iterator[str]:
        """Run the model in a child process.

        Raises:
            CheckFailedError: A file was changed after it had been checked.
            SessionError: The prompt does not fit the context.
            RuntimeCrashError: The runtime died or hung.
        """
        with Assistant(self._model) as assistant:
            answer = assistant.answer(self._prompt, self._config, self._constraint)
            for piece in answer:
                self.read_tokens, self.new_tokens = answer.read_tokens, len(answer.tokens)
                self._text += piece
                yield piece
        self.stop_reason = answer.stop_reason


def _encode(model: BundleModel, request: PromptRequest) -> list[int]:
    if request.raw:
        return model.tokenizer.encode(request.prompt)
    messages = [{"role": "user", "content": request.prompt}]
    if request.system is not None:
        messages.insert(0, {"role": "system", "content": request.system})
    day = model.day_of(request.system) or REFERENCE_DATE
    return model.encode_dialog(messages, request.structure.tools, day)
