"""What an answer is made of, before it is written as a response."""

from dataclasses import dataclass

from llama_edge.serve.replies import Finish, TokenLogprob, ToolCallDelta, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """More of an answer."""

    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    calls: tuple[ToolCallDelta, ...] = ()
    #: why there is no answer; all other fields are empty then
    refusal: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The last item of every answer."""

    finish: Finish
    usage: Usage


Item = Piece | Ended
