"""A guard before and after an answer: nothing is given out that it has not found safe."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llama_edge.core.errors import SessionError, UsageError
from llama_edge.generate.guarded_chat import Judges, refused
from llama_edge.serve.errors import invalid, unsupported
from llama_edge.serve.grammars import context_exceeded
from llama_edge.serve.pieces import Ended, Item, Piece
from llama_edge.serve.requests import AssistantMessage, ChatCompletionRequest, ToolMessage

Message = Mapping[str, Any]


def require_guardable(request: ChatCompletionRequest) -> None:
    """Whether a guard can follow the dialog: it knows neither calls nor results.

    Raises:
        ApiError: It cannot.
    """
    param = "tools" if request.tools else ""
    for place, message in enumerate(request.messages):
        calls = isinstance(message, AssistantMessage) and message.tool_calls
        if calls or isinstance(message, ToolMessage):
            param = param or f"messages[{place}]"
    if param:
        raise unsupported(
            param, "this server has a guard, which knows no tools: leave them out, or --guard"
        )


def refusal_of(guard: Judges, messages: Sequence[Message]) -> str | None:
    """Why the last message is not passed on; None: it is safe.

    Raises:
        ApiError: The messages are no conversation, or do not fit the guard's context.
        GuardError: The guard gives no verdict.
        RuntimeCrashError: Its runtime died or hung.
    """
    try:
        refusal = refused(guard, _in_turns(messages))
    except UsageError as error:
        raise invalid("messages", f"messages: {error}") from error
    except SessionError as error:
        raise context_exceeded(f"for the guard, {error}") from error
    return None if refusal is None else str(refusal)


def withheld(items: Iterator[Item], guard: Judges, messages: Sequence[Message]) -> Iterator[Item]:
    """The items after they are whole and found safe; empty pieces until then.

    Args:
        items: Of an answer of text.
        guard: Asked at the end.
        messages: Of the request.

    Raises:
        LlamaEdgeError: As `refusal_of`.
    """
    held = list[Item]()
    for item in items:
        held.append(item)
        yield Piece()
    text = "".join(item.text for item in held if isinstance(item, Piece))
    said = {"role": "assistant", "content": text}
    refusal = refusal_of(guard, [*messages, said]) if text else None
    if refusal is None:
        yield from held
        return
    yield Piece(refusal=refusal)
    for item in held:
        if isinstance(item, Ended):
            yield Ended(finish="content_filter", usage=item.usage)


def _in_turns(messages: Sequence[Message]) -> list[Message]:
    """Without system messages, and with one message for several of the same role."""
    found = list[dict[str, Any]]()
    for message in messages:
        if message["role"] == "system":
            continue
        if found and found[-1]["role"] == message["role"]:
            found[-1]["content"] += f"\n\n{message['content']}"
        else:
            found.append(dict(message))
    return list(found)
