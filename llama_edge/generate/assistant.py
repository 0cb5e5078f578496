"""Answers of one bundle, one after another in one session."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llama_edge.core.errors import UsageError
from llama_edge.core.session import ClosesOnExit, FloatArray
from llama_edge.generate.bundle_model import BundleModel
from llama_edge.text.generate import (
    DEFAULT_MAX_NEW_TOKENS,
    GREEDY,
    Constraint,
    Generation,
    SamplingConfig,
    StopReason,
)
from llama_edge.text.kept_cache import KeptCache
from llama_edge.text.stop_filter import StopFilter
from llama_edge.text.tokenizer import TokenStream


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerConfig:
    """How a model may answer.

    Raises:
        UsageError: A value is out of range.
    """

    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
    sampling: SamplingConfig = GREEDY
    #: the answer ends before the first of these; none of it is given out
    stops: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UsageError(f"max_new_tokens is {self.max_new_tokens}; it must be 1 or above")
        StopFilter(self.stops)


DEFAULT_ANSWER = AnswerConfig()


class Answer:
    """Pieces of text as they come, whole characters only; iterate once.

    An answer that is not read to its end takes nothing with it: the next one may begin.
    """

    def __init__(
        self,
        model: BundleModel,
        cache: KeptCache,
        prompt: Sequence[int],
        config: AnswerConfig,
        constraint: Constraint | None,
    ) -> None:
        self._cache = cache
        self._generation = Generation(
            cache,
            prompt,
            eos_token_ids=model.text.eos_token_ids,
            max_new_tokens=config.max_new_tokens,
            sampling=config.sampling,
            constraint=constraint,
        )
        self._stream = TokenStream(model.tokenizer)
        self._stops = StopFilter(config.stops)
        self.prompt_tokens = len(prompt)
        #: the new tokens so far, without the end token
        self.tokens: list[int] = []
        #: None until it has ended
        self.stop_reason: StopReason | None = None

    @property
    def read_tokens(self) -> int:
        """How many of the prompt's tokens had to be read, once the first piece is there."""
        return self._cache.read_tokens

    @property
    def logits(self) -> FloatArray:
        """Logits (V,) out of which the last token came, before sampling and constraint."""
        return self._generation.logits

    def __iter__(self) -> Iterator[str]:
        """One piece for each token, which may be empty, and what is left at the end.

        Raises:
            SessionError: The prompt does not fit the context.
            RuntimeCrashError: The runtime died or hung.
        """
        for token in self._generation:
            self.tokens.append(token)
            yield self._stops.push(self._stream.push(token))
            if self._stops.stopped:
                self.stop_reason = StopReason.STOP_SEQUENCE
                return
        last = self._stops.push(self._stream.flush())
        self.stop_reason = self._generation.stop_reason
        if self._stops.stopped:
            self.stop_reason = StopReason.STOP_SEQUENCE
        yield last + self._stops.flush()


class Assistant(ClosesOnExit):
    """A bundle's session; each prompt is read from the first token that the cache does not hold.

    Use it as a context manager: the runtime is a child process.
    """

    def __init__(self, model: BundleModel) -> None:
        self.model = model
        self._session = model.open()
        self._cache = KeptCache(self._session, model.beginning)

    def answer(
        self,
        prompt: Sequence[int],
        config: AnswerConfig = DEFAULT_ANSWER,
        constraint: Constraint | None = None,
    ) -> Answer:
        """What follows a prompt.

        Args:
            prompt: Its tokens.
            config: How the answer may be.
            constraint: Which tokens it may have; made for this answer.
        """
        return Answer(self.model, self._cache, prompt, config, constraint)

    def close(self) -> None:
        """End the child process."""
        self._session.close()
