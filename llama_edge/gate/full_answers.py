"""Greedy answers of the full-precision network, helped by a draft of the artifact's."""

from collections.abc import Sequence

import torch
from torch import Tensor

from llama_edge.core.text_assets import TextAssets
from llama_edge.gate.teacher import with_source
from llama_edge.models.reference import KVCache, Reference
from llama_edge.models.sources import CachedSource
from llama_edge.models.weight_names import EMBEDDING, LM_HEAD


class _InMemory(CachedSource):
    """Of a tied model, one table for both ends."""

    def __init__(self, model: Reference) -> None:
        super().__init__(model.source)
        self._tied = model.config.tie_word_embeddings

    def matrix(self, name: str) -> Tensor:
        return super().matrix(EMBEDDING if self._tied and name == LM_HEAD else name)


class FullAnswers:
    """The network with all of its weights in memory.

    Args:
        model: Full precision.
        text: Says which tokens end an answer.
        max_new_tokens: An answer has no more.
    """

    def __init__(self, model: Reference, text: TextAssets, max_new_tokens: int) -> None:
        self._model = with_source(model, _InMemory(model))
        self._ends = frozenset(text.eos_token_ids)
        self._limit = max_new_tokens

    @torch.no_grad()
    def answer(self, prompt: Sequence[int], draft: Sequence[int]) -> list[int]:
        """Its answer; where it begins as `draft` does, one pass says so for all of these tokens."""
        cache = KVCache()
        chosen = self._choices([*prompt, *draft], cache, len(draft) + 1)
        tokens: list[int] = []
        for index, token in enumerate(chosen):
            if not self._goes_on(tokens, token):
                return tokens
            if index == len(draft) or token != draft[index]:
                break
        cache.cut(len(prompt) + len(tokens) - 1)
        while self._goes_on(tokens, token := self._choices(tokens[-1:], cache, 1)[0]):
            del token
        return tokens

    def _goes_on(self, tokens: list[int], token: int) -> bool:
        """Append it, unless it ends the answer or there are enough."""
        if token in self._ends or len(tokens) == self._limit:
            return False
        tokens.append(token)
        return True

    def _choices(self, tokens: Sequence[int], cache: KVCache, last: int) -> list[int]:
        """The most probable token after each of the `last` ones."""
        hidden = self._model.hidden(self._model.embed(torch.tensor(list(tokens))), cache)
        chosen: list[int] = self._model.head(hidden[-last:]).argmax(-1).tolist()
        return chosen
