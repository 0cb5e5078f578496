"""A chat that gives nothing out before its guard has agreed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import pytest

from llama_edge.bundle.folder import Bundle
from llama_edge.core.errors import GuardError
from llama_edge.generate.assistant import AnswerConfig
from llama_edge.generate.guard import Guard, GuardVerdict
from llama_edge.generate.guarded_chat import GuardedChat
from llama_edge.text.guard_prompt import Side, side_of

pytestmark = pytest.mark.onnx


class Judge:
    """A guard that finds unsafe what a test says."""

    def __init__(self) -> None:
        self.unsafe: Callable[[Side], bool] = lambda side: False
        self.seen: list[list[Any]] = []

    def check(self, messages: Sequence[Any]) -> GuardVerdict:
        self.seen.append(list(messages))
        side = side_of(messages)
        unsafe = self.unsafe(side)
        return GuardVerdict(
            safe=not unsafe,
            codes=("S1", "S9") if unsafe else (),
            unsafe_probability=0.5,
            side=side,
            dropped=0,
        )

    def name_of(self, code: str) -> str:
        return f"Category {code[1:]}"


@pytest.fixture
def judge() -> Judge:
    return Judge()


@pytest.fixture
def chat(debug_bundles: Mapping[str, Bundle], judge: Judge) -> Iterator[GuardedChat]:
    with GuardedChat(
        debug_bundles["onnx"].root,
        guard=cast(Guard, judge),
        system="an in",
        config=AnswerConfig(max_new_tokens=8),
    ) as opened:
        yield opened


def roles(chat: GuardedChat) -> list[str]:
    return [message["role"] for message in chat.messages]


def test_a_safe_turn_comes_whole(chat: GuardedChat, judge: Judge) -> None:
    *before, answer = chat.stream("the")
    assert before
    assert not any(before), "nothing of it is shown while it is not checked"
    assert answer == chat.messages[-1]["content"]
    assert chat.refusal is None
    assert [len(messages) for messages in judge.seen] == [2, 3]
    assert roles(chat) == ["system", "user", "assistant"]
    chat.send("on")
    assert [len(messages) for messages in judge.seen] == [2, 3, 4, 5], "with what was said before"


def test_an_unsafe_question_is_not_answered(chat: GuardedChat, judge: Judge) -> None:
    chat.send("the")
    judge.unsafe = lambda side: side is Side.USER
    assert list(chat.stream("on")) == []
    assert roles(chat) == ["system", "user", "assistant"]
    assert chat.messages[1]["content"] == "the"
    assert str(chat.refusal) == (
        "the guard finds the question unsafe: S1 Category 1, S9 Category 9"
    )
    judge.unsafe = lambda side: False
    assert chat.send("on")
    assert chat.refusal is None
    assert len(chat.messages) == 5


def test_an_unsafe_answer_is_withheld(chat: GuardedChat, judge: Judge) -> None:
    judge.unsafe = lambda side: side is Side.AGENT
    assert chat.send("the") == ""
    assert "finds the answer unsafe" in str(chat.refusal)
    assert roles(chat) == ["system"]


@pytest.mark.parametrize("failing", Side)
def test_where_the_guard_fails_nothing_passes(
    chat: GuardedChat, judge: Judge, failing: Side
) -> None:
    def fail(side: Side) -> bool:
        if side is failing:
            raise GuardError("no verdict")
        return False

    judge.unsafe = fail
    pieces: list[str] = []
    with pytest.raises(GuardError):
        pieces.extend(chat.stream("the"))
    assert not any(pieces)
    assert roles(chat) == ["system"]
    judge.unsafe = lambda side: False
    assert chat.send("on")


def test_a_turn_that_is_given_up_leaves_the_dialog(chat: GuardedChat) -> None:
    stream = chat.stream("the")
    assert next(stream) == ""
    del stream
    assert roles(chat) == ["system"]
    assert chat.send("on")
