"""A prompt in, streamed text out, through the bundle's own tokenizer, template and runtime."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llama_edge.backends import get_exporter
from llama_edge.bundle.folder import open_bundle
from llama_edge.bundle.manifest import Verdict
from llama_edge.bundle.session import open_session
from llama_edge.bundle.signing import NO_KEY, Trust
from llama_edge.core.errors import UsageError
from llama_edge.runtimes import choose_runtime
from llama_edge.text.generate import (
    DEFAULT_MAX_NEW_TOKENS,
    GREEDY,
    Generation,
    SamplingConfig,
    StopReason,
)
from llama_edge.text.text_assets import read_text_assets
from llama_edge.text.tokenizer import Tokenizer, TokenStream


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRequest:
    """What to say to the model, and how it may answer."""

    prompt: str
    system: str | None = None
    #: continue the prompt as it is, without the chat template
    raw: bool = False
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
    sampling: SamplingConfig = GREEDY
    #: None takes the one that the gate uses
    runtime: str | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UsageError(f"max_new_tokens is {self.max_new_tokens}; it must be 1 or above")
        if self.raw and self.system is not None:
            raise UsageError("a system prompt needs the chat template: leave out --raw or --system")


class Answer:
    """Pieces of text as they come, whole characters only; the counts are known afterwards."""

    def __init__(self, folder: Path, request: PromptRequest, trust: Trust = NO_KEY) -> None:
        """Open the bundle and encode the prompt.

        Raises:
            ArtifactError: Not a bundle, or an unsafe one.
            CheckFailedError: A file is not what the manifest says, or not listed there; or the
                signature is not the one that `trust` demands.
            TokenizerError: No chat template, and `raw` is off.
            UsageError: The runtime is another backend's.
        """
        self._bundle = open_bundle(folder, trust)
        exporter = get_exporter(self._bundle.manifest.backend)
        self.failed_gate = self._bundle.manifest.verdict is Verdict.FAILED
        self._request = request
        self._artifact = exporter.open(folder).artifact
        self._runtime = choose_runtime(self._artifact.backend, request.runtime)
        self._text = read_text_assets(folder)
        self._tokenizer = Tokenizer(self._text)
        self._prompt = _encode(self._tokenizer, request)
        self.new_tokens = 0
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
        stream = TokenStream(self._tokenizer)
        with open_session(self._bundle, self._artifact, self._runtime) as session:
            generation = Generation(
                session,
                self._prompt,
                eos_token_ids=self._text.eos_token_ids,
                max_new_tokens=self._request.max_new_tokens,
                sampling=self._request.sampling,
            )
            for token in generation:
                self.new_tokens += 1
                yield stream.push(token)
        self.stop_reason = generation.stop_reason
        yield stream.flush()


def _encode(tokenizer: Tokenizer, request: PromptRequest) -> list[int]:
    if request.raw:
        return tokenizer.encode(request.prompt)
    messages = [{"role": "user", "content": request.prompt}]
    if request.system is not None:
        messages.insert(0, {"role": "system", "content": request.system})
    return tokenizer.encode_chat(messages)
