"""From a request to pieces of an answer, in the one thread that has the model."""

import secrets
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from typing import Final

from llama_edge.core.errors import TokenizerError, UsageError
from llama_edge.core.session import ClosesOnExit
from llama_edge.generate.assistant import Answer, AnswerConfig, Assistant
from llama_edge.generate.bundle_model import BundleModel
from llama_edge.generate.guard import Guard
from llama_edge.serve.calls import CallReader
from llama_edge.serve.errors import invalid
from llama_edge.serve.grammars import (
    calls_tools,
    constraint_of,
    context_exceeded,
    form_errors,
    tools_of,
)
from llama_edge.serve.guarding import refusal_of, require_guardable, withheld
from llama_edge.serve.kept import Kept
from llama_edge.serve.logprobs import LogprobReader
from llama_edge.serve.pieces import Ended, Item, Piece
from llama_edge.serve.replies import Finish, PromptDetails, TokenLogprob, Usage
from llama_edge.serve.requests import ChatCompletionRequest, ChosenTool
from llama_edge.text.dialog import Message
from llama_edge.text.generate import SamplingConfig, StopReason

_FINISH: Final[dict[StopReason, Finish]] = {
    StopReason.EOS: "stop",
    StopReason.STOP_SEQUENCE: "stop",
    StopReason.MAX_NEW_TOKENS: "length",
    StopReason.CONTEXT_FULL: "length",
}


class Answers(ClosesOnExit):
    """Answers of a bundle, one after another.

    Use it as a context manager: the runtime is a child process. Where that dies, the next answer
    starts another one.

    Args:
        model: What answers.
        guard: Opens what checks questions and answers, if anything does.

    Raises:
        LlamaEdgeError: One of them cannot be opened.
    """

    def __init__(self, model: BundleModel, guard: Callable[[], Guard] | None = None) -> None:
        self._model = model
        self._logprobs = LogprobReader(model.tokenizer)
        self._assistant = Kept(lambda: Assistant(model))
        self._guard = None if guard is None else Kept(guard)

    def answer(self, request: ChatCompletionRequest) -> Iterator[Item]:
        """The pieces as they come, one at least, and how it ended.

        Raises:
            ApiError: The dialog does not fit the template or the context, or the answer cannot
                have the form that is asked for.
            RuntimeCrashError: The runtime died or hung.
            LlamaEdgeError: It cannot be started again.
        """
        messages = request.dialog
        if self._guard is None:
            yield from self._unguarded(request, self._encode(request, messages))
            return
        require_guardable(request)
        with self._guard.use() as guard:
            prompt = self._encode(request, messages)
            refusal = refusal_of(guard, messages)
            if refusal is None:
                yield from withheld(self._unguarded(request, prompt), guard, messages)
            else:
                yield Piece(refusal=refusal)
                yield Ended(finish="content_filter", usage=_usage(len(prompt), 0, 0))

    def close(self) -> None:
        """End the child processes."""
        self._assistant.close()
        if self._guard is not None:
            self._guard.close()

    def _unguarded(self, request: ChatCompletionRequest, prompt: Sequence[int]) -> Iterator[Item]:
        config = self._config(request, self._model.max_context - len(prompt) + 1)
        constraint = constraint_of(request, self._model)
        with self._assistant.use() as assistant, form_errors(request):
            answer = assistant.answer(prompt, config, constraint)
            if calls_tools(request):
                yield from self._calls(answer, request)
            else:
                yield from self._pieces(answer, request)
                yield _ended(answer)

    def _encode(self, request: ChatCompletionRequest, messages: Sequence[Message]) -> list[int]:
        try:
            prompt = self._model.encode_dialog(messages, tools_of(request), date.today())
        except (TokenizerError, UsageError) as error:
            raise invalid("messages", f"messages: {error}") from error
        limit = self._model.max_context
        if len(prompt) > limit:
            raise context_exceeded(
                f"the messages have {len(prompt)} tokens, and the context of this model has room "
                f"for {limit}; shorten them"
            )
        return prompt

    def _config(self, request: ChatCompletionRequest, room: int) -> AnswerConfig:
        """What the request leaves out is the model's own default, then OpenAI's."""
        defaults = self._model.text.generation_defaults
        temperature, top_p, top_k = (
            defaults.get(name, other) if asked is None else asked
            for asked, name, other in (
                (request.temperature, "temperature", 1.0),
                (request.top_p, "top_p", 1.0),
                (request.top_k, "top_k", 0),
            )
        )
        seed = secrets.randbits(63) if request.seed is None else request.seed % (1 << 64)
        sampling = SamplingConfig(
            # With a top_p of 0, OpenAI's models take the most probable token.
            temperature=0.0 if top_p == 0 else float(temperature),
            top_p=float(top_p) or 1.0,
            top_k=int(top_k),
            seed=seed,
        )
        return AnswerConfig(
            max_new_tokens=min(request.limit or room, room),
            sampling=sampling,
            stops=request.stops,
        )

    def _pieces(self, answer: Answer, request: ChatCompletionRequest) -> Iterator[Piece]:
        """The text, and with it the log-probabilities of the tokens that it is made of.

        A token of which nothing is given out, since it belongs to a stop sequence, has none.
        """
        read = 0
        held: list[TokenLogprob] = []
        for text in answer:
            if request.logprobs and len(answer.tokens) > read:
                read = len(answer.tokens)
                top = request.top_logprobs or 0
                held.append(self._logprobs.read(answer.tokens[-1], answer.logits, top))
            yield Piece(text=text, logprobs=tuple(held) if text else ())
            held = [] if text else held
        if held and answer.stop_reason is not StopReason.STOP_SEQUENCE:
            yield Piece(text="", logprobs=tuple(held))

    def _calls(self, answer: Answer, request: ChatCompletionRequest) -> Iterator[Item]:
        """An answer that may be calls of tools."""
        reader = CallReader()
        for piece in self._pieces(answer, request):
            yield reader.push(piece)
        yield reader.flush(cut=answer.stop_reason is not StopReason.EOS)
        # As OpenAI has it: an answer that had to be a call of one tool has stopped.
        chosen = isinstance(request.tool_choice, ChosenTool)
        is_call = reader.called and answer.stop_reason is StopReason.EOS and not chosen
        yield _ended(answer, "tool_calls" if is_call else None)


def _ended(answer: Answer, finish: Finish | None = None) -> Ended:
    assert answer.stop_reason is not None, "an answer that has ended knows why"
    cached = answer.prompt_tokens - answer.read_tokens
    usage = _usage(answer.prompt_tokens, len(answer.tokens), cached)
    return Ended(finish=finish or _FINISH[answer.stop_reason], usage=usage)


def _usage(prompt_tokens: int, new_tokens: int, cached_tokens: int) -> Usage:
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=new_tokens,
        total_tokens=prompt_tokens + new_tokens,
        prompt_tokens_details=PromptDetails(cached_tokens=cached_tokens),
    )
