"""An answer's calls of tools, as a response has them: piece by piece, and whole."""

import secrets
from collections.abc import Iterable, Iterator

from llama_edge.core.errors import ToolCallError
from llama_edge.serve.pieces import Piece
from llama_edge.serve.replies import (
    FunctionCall,
    FunctionDelta,
    TokenLogprob,
    ToolCallDelta,
    ToolCallReply,
)
from llama_edge.text.tool_stream import CallDelta, Delta, TextDelta, ToolCallStream


class CallReader:
    """Takes the pieces of an answer that may be calls, and gives out text or calls."""

    def __init__(self) -> None:
        self._stream = ToolCallStream()
        self._held: list[TokenLogprob] = []
        self._whole = ""
        self._given = False
        #: whether there are calls in it
        self.called = False

    def push(self, piece: Piece) -> Piece:
        """What is known after this one; log-probabilities are those of text."""
        self._held += piece.logprobs
        self._whole += piece.text
        return self._piece(self._stream.push(piece.text))

    def flush(self, *, cut: bool) -> Piece:
        """What is left at the end.

        Args:
            cut: The answer did not end by itself: a call may be unfinished, and stays so.

        Raises:
            ToolCallError: It ended by itself, as something that is no call.
        """
        try:
            return self._piece(self._stream.flush())
        except ToolCallError:
            if not cut:
                raise
            return self._piece([] if self._given else [TextDelta(self._whole)])

    def _piece(self, deltas: Iterable[Delta]) -> Piece:
        text, calls = "", list[ToolCallDelta]()
        for delta in deltas:
            self._given = True
            match delta:
                case TextDelta(text=more):
                    text += more
                case CallDelta():
                    calls.append(_shown(delta))
        self.called = self.called or bool(calls)
        logprobs, self._held = (self._held, []) if text else ([], self._held)
        return Piece(text=text, logprobs=tuple(logprobs), calls=tuple(calls))


def _shown(delta: CallDelta) -> ToolCallDelta:
    if delta.name is None:
        function = FunctionDelta(arguments=delta.arguments)
        return ToolCallDelta(index=delta.index, function=function)
    return ToolCallDelta(
        index=delta.index,
        id=f"call_{secrets.token_hex(12)}",
        type="function",
        function=FunctionDelta(name=delta.name, arguments=delta.arguments),
    )


def whole_calls(deltas: Iterable[ToolCallDelta]) -> tuple[ToolCallReply, ...]:
    """The calls that deltas make."""
    return tuple(_joined(deltas))


def _joined(deltas: Iterable[ToolCallDelta]) -> Iterator[ToolCallReply]:
    calls = dict[int, list[ToolCallDelta]]()
    for delta in deltas:
        calls.setdefault(delta.index, []).append(delta)
    for parts in calls.values():
        first = parts[0]
        assert isinstance(first.id, str), "the first delta of a call has its id"
        assert isinstance(first.function.name, str), "and its name"
        arguments = "".join(
            part.function.arguments for part in parts if isinstance(part.function.arguments, str)
        )
        function = FunctionCall(name=first.function.name, arguments=arguments)
        yield ToolCallReply(id=first.id, function=function)
