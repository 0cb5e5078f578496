"""From a request to pieces of an answer, in the one thread that has the model."""

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from http import HTTPStatus

from llama_edge.core.errors import RuntimeCrashError, TokenizerError
from llama_edge.core.session import ClosesOnExit
from llama_edge.generate.assistant import Answer, AnswerConfig, Assistant
from llama_edge.generate.bundle_model import BundleModel
from llama_edge.serve.errors import ApiError
from llama_edge.serve.logprobs import LogprobReader
from llama_edge.serve.replies import Finish, PromptDetails, TokenLogprob, Usage
from llama_edge.serve.requests import ChatCompletionRequest
from llama_edge.text.generate import SamplingConfig, StopReason

_FINISH: dict[StopReason, Finish] = {
    StopReason.EOS: "stop",
    StopReason.STOP_SEQUENCE: "stop",
    StopReason.MAX_NEW_TOKENS: "length",
    StopReason.CONTEXT_FULL: "length",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """More of an answer."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The last item of every answer."""

    finish: Finish
    usage: Usage


class Answers(ClosesOnExit):
    """Answers of a bundle, one after another.

    Use it as a context manager: the runtime is a child process. Where that dies, the next answer
    starts another one.
    """

    def __init__(self, model: BundleModel) -> None:
        self._model = model
        self._logprobs = LogprobReader(model.tokenizer)
        self._assistant: Assistant | None = Assistant(model)

    def answer(self, request: ChatCompletionRequest) -> Iterator[Piece | Ended]:
        """The pieces as they come, one at least, and how it ended.

        Raises:
            ApiError: The dialog does not fit the template or the context.
            RuntimeCrashError: The runtime died or hung.
            LlamaEdgeError: It cannot be started again.
        """
        prompt = self._encode(request)
        config = self._config(request, self._model.max_context - len(prompt) + 1)
        if self._assistant is None:
            self._assistant = Assistant(self._model)
        answer = self._assistant.answer(prompt, config)
        try:
            yield from self._pieces(answer, request)
        except RuntimeCrashError:
            self.close()
            raise
        assert answer.stop_reason is not None, "an answer that has ended knows why"
        yield Ended(finish=_FINISH[answer.stop_reason], usage=_usage(answer))

    def close(self) -> None:
        """End the child process."""
        if self._assistant is not None:
            self._assistant.close()
            self._assistant = None

    def _encode(self, request: ChatCompletionRequest) -> list[int]:
        try:
            prompt = self._model.tokenizer.encode_chat(request.dialog, today=date.today())
        except TokenizerError as error:
            raise ApiError(f"messages: {error}", param="messages", code="invalid_value") from error
        limit = self._model.max_context
        if len(prompt) > limit:
            raise ApiError(
                f"the messages have {len(prompt)} tokens, and the context of this model has room "
                f"for {limit}; shorten them",
                param="messages",
                code="context_length_exceeded",
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


def _usage(answer: Answer) -> Usage:
    return Usage(
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=len(answer.tokens),
        total_tokens=answer.prompt_tokens + len(answer.tokens),
        prompt_tokens_details=PromptDetails(
            cached_tokens=answer.prompt_tokens - answer.read_tokens
        ),
    )


def internal(error: Exception) -> ApiError:
    """What is wrong with the server, not with the request."""
    return ApiError(str(error), status=HTTPStatus.INTERNAL_SERVER_ERROR)
