"""What Llama Guard answers: `safe`, or `unsafe` and on the next line the categories.

The apps parse by the same rules; the shared fixtures hold all of them to one verdict.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from llama_edge.core.errors import GuardError

SAFE: Final = "safe"
UNSAFE: Final = "unsafe"
_BLANKS: Final = " \t\r\n"
#: Line breaks that may stand before the verdict: the published model writes two.
_MOST_BREAKS: Final = 2


def parse_guard_answer(answer: str) -> tuple[str, ...] | None:
    """The categories of an unsafe answer, which may be none; None: it says safe.

    Raises:
        GuardError: It is no verdict.
    """
    lines = [line.strip(_BLANKS) for line in answer.strip(_BLANKS).split("\n")]
    if lines == [SAFE]:
        return None
    if lines[0] != UNSAFE or len(lines) > 2:
        raise GuardError(
            f"the guard's answer {answer[:60]!r} is none: safe, or unsafe and a line of categories"
        )
    codes = [code.strip(_BLANKS) for code in lines[1].split(",")] if len(lines) > 1 else []
    return tuple(code for code in codes if code)


class AnswerGrammar:
    """A `Constraint` by which every answer is a verdict on the given categories.

    Args:
        tokens: Texts of the tokens that may be chosen; those that are in no answer do no harm.
        codes: Of the categories.
        ends: End tokens.
        vocab_size: V, the logits' length.
        verdicts: What may be said.
    """

    def __init__(
        self,
        tokens: Mapping[int, str],
        codes: Sequence[str],
        *,
        ends: Sequence[int],
        vocab_size: int,
        verdicts: Sequence[str] = (SAFE, UNSAFE),
    ) -> None:
        self._tokens = tokens
        self._codes = tuple(codes)
        self._ends = tuple(ends)
        self._vocab_size = vocab_size
        self._verdicts = tuple(verdicts)
        #: the answer so far
        self.text = ""
        texts = set(tokens.values())

        @cache
        def writable(rest: str) -> bool:
            return not rest or any(rest.startswith(t) and writable(rest[len(t) :]) for t in texts)

        self._writable = writable

    @property
    def decided(self) -> bool:
        """Whether the verdict has begun."""
        return bool(self.text.strip("\n"))

    def allowed(self) -> NDArray[np.bool_]:
        """Shape (V,): tokens after which a whole answer can still come; ends after a whole one."""
        mask = np.zeros(self._vocab_size, np.bool_)
        mask[[token for token, text in self._tokens.items() if self.accepts(text)]] = True
        if "" in self._endings(self.text):
            mask[list(self._ends)] = True
        return mask

    def in_time(self, token: int, left: int) -> int:
        """Any: an answer has a few tokens."""
        del left
        return token

    def push(self, token: int) -> None:
        """Take the token that was chosen."""
        self.text += self._tokens[token]

    def accepts(self, more: str) -> bool:
        """Whether an answer may begin with the text so far and this."""
        return bool(more) and any(map(self._writable, self._endings(self.text + more)))

    def _endings(self, text: str) -> Iterator[str]:
        """What makes `text` a whole answer, without categories beyond the one that is begun."""
        body = text.lstrip("\n")
        if len(text) - len(body) > _MOST_BREAKS:
            return
        if SAFE in self._verdicts and SAFE.startswith(body):
            yield SAFE[len(body) :]
        if UNSAFE not in self._verdicts:
            return
        head = f"{UNSAFE}\n"
        if head.startswith(body):
            yield from (head[len(body) :] + code for code in self._codes)
        elif body.startswith(head):
            *done, last = body[len(head) :].split(",")
            if len(set(done)) == len(done) and set(done) <= set(self._codes):
                left = (code for code in self._codes if code not in done)
                yield from (code[len(last) :] for code in left if code.startswith(last))

    def can_write(self, answer: str) -> bool:
        """Whether the tokens can spell it."""
        return self._writable(answer)

    def first_shares(self, logits: NDArray[np.float32]) -> dict[str, float]:
        """Probability of each verdict: of the tokens that begin it, among all V.

        Args:
            logits: Shape (V,), of the model, where the verdict begins.
        """
        weights = np.exp(logits.astype(np.float64) - float(np.max(logits)))
        weights /= weights.sum()
        return {
            verdict: float(
                sum(
                    weights[token]
                    for token, text in self._tokens.items()
                    if f"{verdict}\n".startswith(text.lstrip("\n") or " ")
                )
            )
            for verdict in self._verdicts
        }


def possible_answers(codes: Sequence[str]) -> list[str]:
    """Texts of which every token of an answer is a part."""
    breaks = "\n" * _MOST_BREAKS
    pairs = [f"{first},{second}" for first in codes for second in codes]
    return [f"{breaks}{SAFE}", *(f"{breaks}{UNSAFE}\n{code}" for code in codes), *pairs]
