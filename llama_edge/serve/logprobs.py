"""Log-probabilities of an answer's tokens, as the model gave them: before sampling."""

from functools import lru_cache

import numpy as np

from llama_edge.core.session import FloatArray
from llama_edge.serve.replies import TokenChoice, TokenLogprob
from llama_edge.text.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"


class LogprobReader:
    """What a response says of tokens.

    Args:
        tokenizer: For their texts.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._text = lru_cache(maxsize=4096)(
            lambda token: tokenizer.decode([token], skip_special_tokens=False)
        )

    def read(self, token: int, logits: FloatArray, top: int) -> TokenLogprob:
        """One token of the answer.

        Args:
            token: Its id.
            logits: (V,), out of which it was chosen.
            top: How many of the most probable ones are wanted.
        """
        values = logits.astype(np.float64)
        values -= values.max()
        values -= np.log(np.exp(values).sum())
        best = np.argsort(-values, kind="stable")[:top]
        chosen = self._choice(token, float(values[token]))
        return TokenLogprob(
            token=chosen.token,
            logprob=chosen.logprob,
            bytes=chosen.bytes,
            top_logprobs=tuple(self._choice(int(each), float(values[each])) for each in best),
        )

    def _choice(self, token: int, logprob: float) -> TokenChoice:
        text = self._text(token)
        whole = None if _REPLACEMENT in text else tuple(text.encode())
        # OpenAI's own number for what is as good as impossible; JSON has no infinity.
        return TokenChoice(token=text, logprob=max(logprob, -9999.0), bytes=whole)
