"""A few short greedy answers of an artifact and of full precision, for a person to read.

They prove nothing, and no gate looks at them: one flipped token changes all that follows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

import torch

from llama_edge.core.generate import Generation
from llama_edge.core.model import CachedSource, KVCache, Llama
from llama_edge.core.progress import Progress
from llama_edge.core.session import ClosesOnExit, FloatArray, Session
from llama_edge.core.tokenizer import Tokenizer
from llama_edge.core.types import TextAssets
from llama_edge.core.weight_names import weight_shapes
from llama_edge.verify.teacher import with_source

#: Language (BCP 47) and question.
SAMPLE_QUESTIONS: Final = (
    ("en", "What is the capital of France?"),
    ("en", "Write one sentence about the sea."),
    ("es", "¿Cuántos días tiene una semana?"),
)
MAX_NEW_TOKENS: Final = 24
#: Full precision answers token by token only where its weights fit in this much memory in float32:
#: 135M and 360M models do; Llama 3.2 1B would take 5 GB and as many seconds a token as it is read.
MAX_FULL_BYTES: Final = 2 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One question and its answers."""

    language: str
    question: str
    artifact: str
    #: None: that model was not at hand, or is too large to answer
    full: str | None
    #: tokens that both answers begin with
    same_tokens: int
    artifact_tokens: int


class _Eager(ClosesOnExit):
    """The full-precision network as a session, all of its weights in memory."""

    def __init__(self, model: Llama, max_context: int) -> None:
        self._model = with_source(model, CachedSource(model.source))
        self.max_context = max_context
        self.reset()

    @torch.no_grad()
    def prefill_logits(self, tokens: Sequence[int]) -> FloatArray:
        logits: FloatArray = self._model.logits(torch.tensor(list(tokens)), self._cache).numpy()
        return logits

    @torch.no_grad()
    def prefill(self, tokens: Sequence[int]) -> FloatArray:
        hidden = self._model.hidden(self._model.embed(torch.tensor(list(tokens))), self._cache)
        last: FloatArray = self._model.head(hidden[-1:])[0].numpy()
        return last

    def decode(self, token: int) -> FloatArray:
        return self.prefill([token])

    def reset(self) -> None:
        self._cache = KVCache()

    def close(self) -> None:
        self.reset()


def write_samples(
    session: Session, full: Llama | None, text: TextAssets, progress: Progress
) -> tuple[Sample, ...]:
    """Ask both the same; `full` is left out where it is None or too large."""
    tokenizer = Tokenizer(text)
    precise = None if full is None or not _fits(full) else _Eager(full, session.max_context)
    samples = []
    for language, question in SAMPLE_QUESTIONS:
        prompt = _encode(tokenizer, question)
        if len(prompt) + MAX_NEW_TOKENS <= session.max_context:
            found = _answer(session, prompt, text)
            wanted = None if precise is None else _answer(precise, prompt, text)
            samples.append(
                Sample(
                    language=language,
                    question=question,
                    artifact=tokenizer.decode(found),
                    full=None if wanted is None else tokenizer.decode(wanted),
                    same_tokens=_common(found, wanted or []),
                    artifact_tokens=len(found),
                )
            )
        progress.advance()
    return tuple(samples)


def _fits(model: Llama) -> bool:
    numbers = sum(prod(shape) for shape in weight_shapes(model.config).values())
    return 4 * numbers <= MAX_FULL_BYTES


def _encode(tokenizer: Tokenizer, question: str) -> list[int]:
    if not tokenizer.has_chat_template:
        return tokenizer.encode(question)
    return tokenizer.encode_chat([{"role": "user", "content": question}])


def _answer(session: Session, prompt: Sequence[int], text: TextAssets) -> list[int]:
    session.reset()
    return [
        *Generation(
            session,
            prompt,
            eos_token_ids=text.eos_token_ids,
            max_new_tokens=MAX_NEW_TOKENS,
        )
    ]


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens both begin with."""
    same = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        same += 1
    return same
