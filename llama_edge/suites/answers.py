"""Asking a bundle and full precision the prompts of a suite, and judging what they answer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from llama_edge.core.errors import TokenizerError, UsageError
from llama_edge.core.progress import Progress
from llama_edge.core.session import Session
from llama_edge.core.text_assets import TextAssets
from llama_edge.suites.scores import Judged, PromptResult
from llama_edge.suites.suite import Prompt, Suite
from llama_edge.suites.tools import valid_calls
from llama_edge.text.generate import Constraint, Generation
from llama_edge.text.grammar import ToolCalls, constraint_for
from llama_edge.text.prompt_prefix import common_length
from llama_edge.text.tokenizer import Tokenizer
from llama_edge.text.tool_calls import CallFormat
from llama_edge.text.tool_form import ToolForm, ToolsIn
from llama_edge.text.tools import ToolChoice

Tokens = tuple[int, ...]
#: Full precision's answer to a prompt, given a draft of it.
AnswersInFull = Callable[[Tokens, Sequence[int]], Sequence[int]]

#: Of a call that a grammar keeps valid; one that is longer is cut, and not valid.
MAX_CALL_TOKENS: Final = 256
#: For a model without a chat template.
_PLAIN: Final = ToolForm(
    format=CallFormat.JSON, in_prompt=ToolsIn.USER, result_role="user", max_calls=1
)


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
    messages: list[dict[str, Any]] = [
        {"role": one.role, "content": one.content} for one in prompt.messages
    ]
    shown = None
    if prompt.tools:
        tools = [tool.definition for tool in prompt.tools]
        messages, shown = _tool_form(tokenizer).dialog(messages, tools)
    if not tokenizer.has_chat_template:
        return tokenizer.encode("\n\n".join(message["content"] for message in messages))
    return tokenizer.encode_chat(messages, tools=shown)


def _tool_form(tokenizer: Tokenizer) -> ToolForm:
    return tokenizer.tool_form if tokenizer.has_chat_template else _PLAIN


@dataclass(frozen=True, slots=True, kw_only=True)
class Examiner:
    """Asks one bundle, and knows how to ask full precision."""

    session: Session
    text: TextAssets
    #: V, the length of the session's logits
    vocab_size: int
    max_new_tokens: int
    answer_in_full: AnswersInFull
    max_call_tokens: int = MAX_CALL_TOKENS

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
            own = self._answer(question, self.max_new_tokens)
            full = self.answer_in_full(question.tokens, own)
            result = self._result(question.prompt, own, full, tokenizer, question.tokens)
            if question.prompt.tools:
                result = replace(result, constrained=self._constrained(question, tokenizer))
            results.append(result)
            progress.advance()
        return tuple(results)

    def _constrained(self, question: Question, tokenizer: Tokenizer) -> Judged | None:
        """The answer as a call that a grammar keeps valid; None if the grammar cannot be kept."""
        form = _tool_form(tokenizer)
        grammar = ToolCalls(
            tools=[tool.definition for tool in question.prompt.tools],
            format=form.format,
            choice=ToolChoice.REQUIRED,
            max_calls=form.max_calls,
        )
        try:
            follow = constraint_for(grammar, tokenizer, self.text.eos_token_ids, self.vocab_size)
        except TokenizerError:  # the bytes of its tokens are not known
            return None
        answer = self._answer(question, self.max_call_tokens, follow)
        return _judge(question.prompt, tokenizer.decode(answer))

    def _answer(
        self, question: Question, max_new_tokens: int, constraint: Constraint | None = None
    ) -> list[int]:
        self.session.reset()
        return [
            *Generation(
                self.session,
                question.tokens,
                eos_token_ids=self.text.eos_token_ids,
                max_new_tokens=max_new_tokens,
                constraint=constraint,
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
        same = common_length(own, full)
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
