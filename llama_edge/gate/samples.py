"""A few short greedy answers of an artifact and of full precision, for a person to read.

They prove nothing, and no gate looks at them: one flipped token changes all that follows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

import torch
from torch import Tensor

from llama_edge.core.progress import Progress
from llama_edge.core.session import Session
from llama_edge.core.text_assets import TextAssets
from llama_edge.gate.teacher import with_source
from llama_edge.models.reference import KVCache, Reference
from llama_edge.models.sources import CachedSource
from llama_edge.models.weight_names import EMBEDDING, LM_HEAD
from llama_edge.models.weights import weight_shapes
from llama_edge.text.generate import Generation
from llama_edge.text.tokenizer import Tokenizer

#: Language (BCP 47) and question.
SAMPLE_QUESTIONS: Final = (
    ("en", "What is the capital of France?"),
    ("es", "¿Cuántos días tiene una semana?"),
)
#: Each costs SmolLM2's full precision 90 ms of one core: with 16, answers are 6 % of an export.
MAX_NEW_TOKENS: Final = 16
#: Full precision answers token by token only where its weights fit in this much memory in float32:
#: 135M and 360M models do; Llama 3.2 1B would take 5 GB and as many seconds a token as it is read.
MAX_FULL_BYTES: Final = 2 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One question and its answers."""

    language: str
    question: str
    artifact: str
    #: None: that model was not available, or is too large to answer
    full: str | None
    #: tokens that both answers begin with
    same_tokens: int
    artifact_tokens: int


class _InMemory(CachedSource):
    """Of a tied model, one table for both ends."""

    def __init__(self, model: Reference) -> None:
        super().__init__(model.source)
        self._tied = model.config.tie_word_embeddings

    def matrix(self, name: str) -> Tensor:
        return super().matrix(EMBEDDING if self._tied and name == LM_HEAD else name)


class _FullPrecision:
    """The full-precision network's greedy answers, all of its weights in memory."""

    def __init__(self, model: Reference, text: TextAssets) -> None:
        self._model = with_source(model, _InMemory(model))
        self._ends = frozenset(text.eos_token_ids)

    @torch.no_grad()
    def answer(self, prompt: Sequence[int], draft: Sequence[int]) -> list[int]:
        """Its answer; where it begins as `draft` does, one pass says so for all of these tokens."""
        cache = KVCache()
        chosen = self._choices([*prompt, *draft], cache, len(draft) + 1)
        tokens: list[int] = []
        for place, token in enumerate(chosen):
            if not self._goes_on(tokens, token):
                return tokens
            if place == len(draft) or token != draft[place]:
                break
        _forget(cache, len(prompt) + len(tokens) - 1)
        while self._goes_on(tokens, token := self._choices(tokens[-1:], cache, 1)[0]):
            del token
        return tokens

    def _goes_on(self, tokens: list[int], token: int) -> bool:
        """Append it, unless it ends the answer or there are enough."""
        if token in self._ends or len(tokens) == MAX_NEW_TOKENS:
            return False
        tokens.append(token)
        return True

    def _choices(self, tokens: Sequence[int], cache: KVCache, last: int) -> list[int]:
        """The most probable token after each of the `last` ones."""
        hidden = self._model.hidden(self._model.embed(torch.tensor(list(tokens))), cache)
        chosen: list[int] = self._model.head(hidden[-last:]).argmax(-1).tolist()
        return chosen


def _forget(cache: KVCache, length: int) -> None:
    """Keep the first `length` tokens."""
    for store in (cache.keys, cache.values):
        store[:] = [rows[:, :length] for rows in store]


def write_samples(
    session: Session, full: Reference | None, text: TextAssets, progress: Progress
) -> tuple[Sample, ...]:
    """Ask both the same; `full` is left out where it is None or too large."""
    tokenizer = Tokenizer(text)
    precise = None if full is None or not _fits(full) else _FullPrecision(full, text)
    samples = []
    for language, question in SAMPLE_QUESTIONS:
        prompt = _encode(tokenizer, question)
        if len(prompt) + MAX_NEW_TOKENS <= session.max_context:
            found = _answer(session, prompt, text)
            wanted = None if precise is None else precise.answer(prompt, found)
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


def _fits(model: Reference) -> bool:
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
