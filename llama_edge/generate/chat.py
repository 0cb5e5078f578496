"""A conversation with a bundle: each turn costs its own tokens while the cache fits the dialog."""

from collections.abc import Iterator, Sequence
from datetime import date
from itertools import takewhile
from pathlib import Path
from types import TracebackType
from typing import Self

from llama_edge.backends import get_exporter
from llama_edge.bundle.folder import open_bundle
from llama_edge.bundle.manifest import Verdict
from llama_edge.bundle.session import open_session
from llama_edge.bundle.signing import NO_KEY, Trust
from llama_edge.core.errors import UsageError
from llama_edge.core.session import Session
from llama_edge.runtimes import choose_runtime
from llama_edge.text.dialog import Message, trim_dialog
from llama_edge.text.generate import Generation, SamplingConfig, StopReason
from llama_edge.text.text_assets import read_text_assets
from llama_edge.text.tokenizer import Tokenizer, TokenStream


class Chat:
    """Messages so far, and a session that holds their keys and values.

    Use it as a context manager: the runtime is a child process.

    Args:
        folder: The bundle.
        system: A system prompt.
        max_new_tokens: Of one answer; so many tokens of the context are kept free for it.
        sampling: How tokens are chosen.
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
        max_new_tokens: int,
        sampling: SamplingConfig,
        runtime: str | None = None,
        trust: Trust = NO_KEY,
    ) -> None:
        bundle = open_bundle(folder, trust)
        artifact = get_exporter(bundle.manifest.backend).open(folder).artifact
        if not 0 < max_new_tokens < artifact.max_context:
            raise UsageError(
                f"max_new_tokens is {max_new_tokens}; it must be at least 1 and below the "
                f"context's {artifact.max_context} tokens"
            )
        self.failed_gate = bundle.manifest.verdict is Verdict.FAILED
        self._text = read_text_assets(folder)
        self._tokenizer = Tokenizer(self._text)
        self._limit = artifact.max_context - max_new_tokens
        self._max_new_tokens = max_new_tokens
        self._sampling = sampling
        self._messages: list[Message] = []
        self.begin(system)
        #: the tokens whose keys and values are in the cache
        self._held: list[int] = []
        self._session = open_session(bundle, artifact, choose_runtime(artifact.backend, runtime))
        #: messages that the last turn left out, since they did not fit
        self.dropped = 0
        #: tokens of the last turn: those of the dialog before the answer, those of them that had to
        #: be read, and those of the answer
        self.dialog_tokens = self.prompt_tokens = self.new_tokens = 0
        self.stop_reason: StopReason | None = None

    @property
    def max_context(self) -> int:
        """Tokens that the dialog may have with the answer."""
        return self._session.max_context

    def begin(self, system: str | None = None) -> None:
        """Forget the dialog, and begin another one.

        What the cache holds stays, as far as the next dialog has the same tokens.

        Args:
            system: Its system prompt.
        """
        self._messages = [] if system is None else [{"role": "system", "content": system}]

    @property
    def messages(self) -> tuple[Message, ...]:
        """The dialog, oldest first."""
        return tuple(self._messages)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the child process."""
        self._session.close()

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
        kept = trim_dialog(asked, lambda messages: len(self._encode(messages)), self._limit)
        self.dropped = len(asked) - len(kept)
        prompt = self._encode(kept)
        generation = self._start(self._session, prompt)
        stream, pieces = TokenStream(self._tokenizer), list[str]()
        # Until the first token comes, nobody knows what the cache holds.
        self._held, self.new_tokens = [], 0
        read = prompt
        for token in generation:
            # A token is read when the one after it comes.
            self._held += read
            read = [token]
            self.new_tokens += 1
            pieces.append(stream.push(token))
            yield pieces[-1]
        pieces.append(stream.flush())
        yield pieces[-1]
        self.stop_reason = generation.stop_reason
        if self.stop_reason is StopReason.EOS:
            self._held += read
        self._messages = [*kept, {"role": "assistant", "content": "".join(pieces)}]

    def _encode(self, messages: Sequence[Message]) -> list[int]:
        return self._tokenizer.encode_chat(messages, today=date.today())

    def _start(self, session: Session, prompt: Sequence[int]) -> Generation:
        """A generation that reads what follows the first token that is another one in the cache."""
        same = (ours == theirs for ours, theirs in zip(prompt, self._held, strict=False))
        # One token at least is read: the answer's first comes out of it.
        held = min(sum(takewhile(bool, same)), len(prompt) - 1)
        session.reset(held)
        self.dialog_tokens, self.prompt_tokens = len(prompt), len(prompt) - held
        return Generation(
            session,
            prompt[held:],
            used=held,
            eos_token_ids=self._text.eos_token_ids,
            max_new_tokens=self._max_new_tokens,
            sampling=self._sampling,
        )
