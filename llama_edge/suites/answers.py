"""Asking a bundle and full precision the prompts of a suite, and judging what they answer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from llama_edge.core.errors import UsageError
from llama_edge.core.progress import Progress
from llama_edge.core.session import Session
from llama_edge.core.text_assets import TextAssets
from llama_edge.gate.full_answers import common_tokens
from llama_edge.suites.scores import Judged, PromptResult
from llama_edge.suites.suite import Prompt, Suite
from llama_edge.suites.tools import offer, valid_calls
from llama_edge.text.generate import Constraint, Generation
from llama_edge.text.tokenizer import Tokenizer

Tokens = tuple[int, ...]
#: Full precision's answer to a prompt, given a draft of it.
AnswersInFull = Callable[[Tokens, Sequence[int]], Sequence[int]]
#: A new constraint for the answer to a prompt; None leaves it free.
Constrains = Callable[[Prompt], Constraint | None]


def _free(prompt: Prompt) -> None:
    del prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A prompt and its tokens."""

    prompt: Prompt
    tokens: Tokens


def encode_suite(suite: Suite, text: TextAssets, max_context: int) -> tuple[Question, ...]:
    """Every prompt as the model reads it.

    Raises:
        UsageError: One does not fit the context together with its answer.
        TokenizerError: The template fails on it, or takes no system message.
    """
    tokenizer = Tokenizer(text)
    questions = []
    for prompt in suite.prompts:
        tokens = tuple(_encode(tokenizer, prompt))
        needed = len(tokens) + suite.max_new_tokens
        if needed > max_context:
            raise UsageError(
                f"{suite.name}: {prompt.id} takes {needed} tokens with its answer, and the context "
                f"holds {max_context}; export with a larger --max-context"
            )
        questions.append(Question(prompt=prompt, tokens=tokens))
    return tuple(questions)


def _encode(tokenizer: Tokenizer, prompt: Prompt) -> list[int]:
    messages = [{"role": one.role, "content": one.content} for one in prompt.messages]
    if prompt.tools:
        messages[-1]["content"] = offer(prompt.tools, prompt.messages[-1].content)
    if not tokenizer.has_chat_template:
        return tokenizer.encode("\n\n".join(message["content"] for message in messages))
    return tokenizer.encode_chat(messages)


@dataclass(frozen=True, slots=True, kw_only=True)
class Examiner:
    """Asks one bundle, and knows how to ask full precision."""

    session: Session
    text: TextAssets
    max_new_tokens: int
    answer_in_full: AnswersInFull
    constrain: Constrains = _free

    def examine(
        self, questions: Sequence[Question], progress: Progress
    ) -> tuple[PromptResult, ...]:
        """Every answer of both, judged.

        Raises:
            SessionError: The runtime refuses an input, or its logits are not finite.
        """
        tokenizer = Tokenizer(self.text)
        progress.start("answer the suite's prompts", len(questions))
        results = []
        for question in questions:
            own = self._answer(question)
            full = self.answer_in_full(question.tokens, own)
            results.append(self._result(question.prompt, own, full, tokenizer, question.tokens))
            progress.advance()
        return tuple(results)

    def _answer(self, question: Question) -> list[int]:
        self.session.reset()
        return [
            *Generation(
                self.session,
                question.tokens,
                eos_token_ids=self.text.eos_token_ids,
                max_new_tokens=self.max_new_tokens,
                constraint=self.constrain(question.prompt),
            )
        ]

    def _result(
        self,
        prompt: Prompt,
        own: Sequence[int],
        full: Sequence[int],
        tokenizer: Tokenizer,
        asked: Tokens,
    ) -> PromptResult:
        is_cut = len(full) == self.max_new_tokens
        same = common_tokens(own, full)
        # Both have ended: so the end is common too.
        same += not is_cut and same == len(own) == len(full)
        return PromptResult(
            id=prompt.id,
            language=prompt.language,
            task=prompt.task,
            checks=len(prompt.checks),
            bundle=_judge(prompt, tokenizer.decode(own)),
            full=_judge(prompt, tokenizer.decode(full)),
            tokens=len(full) + (not is_cut),
            agreeing_tokens=self._agreeing(asked, full, is_cut=is_cut),
            common_tokens=same,
        )

    def _agreeing(self, asked: Tokens, full: Sequence[int], *, is_cut: bool) -> int:
        """How many of the answer's tokens, its end included, the bundle would choose as well.

        The cache holds at least the prompt, out of the bundle's own answer.
        """
        self.session.reset(len(asked) - 1)
        logits = self.session.prefill_logits((asked[-1], *full))
        chosen: list[int] = np.argmax(logits, axis=-1).tolist()
        same = sum(one == other for one, other in zip(chosen, full, strict=False))
        return same + (not is_cut and chosen[-1] in self.text.eos_token_ids)


def _judge(prompt: Prompt, answer: str) -> Judged:
    return Judged(
        text=answer,
        failed=tuple(check.kind for check in prompt.checks if not check.passes(answer, prompt)),
        valid_call=bool(valid_calls(answer, prompt.tools)) if prompt.tools else None,
    )
