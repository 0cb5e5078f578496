"""A server with a guard: what it finds unsafe does not come out."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import openai
import pytest
from openai import OpenAI

from llama_edge.bundle.folder import Bundle
from llama_edge.core.errors import GuardError, SessionError, UsageError
from llama_edge.core.session import ClosesOnExit
from llama_edge.generate.bundle_model import BundleModel
from llama_edge.generate.guard import Guard, GuardVerdict
from llama_edge.serve.answers import Answers
from llama_edge.text.guard_prompt import Side, conversation, side_of
from tests.serve.conftest import NAME, Running, running

pytestmark = pytest.mark.onnx

ASKED: dict[str, Any] = {
    "model": NAME,
    "messages": [{"role": "system", "content": "in"}, {"role": "user", "content": "the"}],
    "temperature": 0,
    "max_tokens": 6,
}


class Judge(ClosesOnExit):
    """A guard that finds unsafe what a test says."""

    def __init__(self) -> None:
        self.unsafe: Callable[[Side], bool] = lambda side: False
        self.error: Exception | None = None
        self.seen: list[list[dict[str, Any]]] = []

    def check(self, messages: Sequence[Any]) -> GuardVerdict:
        self.seen.append(conversation(messages))
        if self.error is not None:
            raise self.error
        side = side_of(messages)
        unsafe = self.unsafe(side)
        return GuardVerdict(
            safe=not unsafe,
            codes=("S1",) if unsafe else (),
            unsafe_probability=0.5,
            side=side,
            dropped=0,
        )

    def name_of(self, code: str) -> str:
        return f"Category {code[1:]}"

    def close(self) -> None: ...


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge()


@pytest.fixture(scope="module")
def guarded(model: BundleModel, judge: Judge) -> Iterator[Running]:
    opens: Any = lambda: judge  # noqa: E731
    with Answers(model, opens) as answers, running(model, answers) as found:
        yield found


@pytest.fixture
def client(guarded: Running, judge: Judge) -> Iterator[OpenAI]:
    judge.unsafe, judge.error, judge.seen = lambda side: False, None, []
    with guarded.client() as found:
        yield found


def reply_to(client: OpenAI, stream: bool, **options: object) -> tuple[str, str | None, str, int]:
    """Text, refusal, finish_reason and how many chunks have text."""
    create: Any = client.chat.completions.create
    reply = create(**{**ASKED, **options}, stream=stream)
    if not stream:
        (choice,) = reply.choices
        return choice.message.content or "", choice.message.refusal, choice.finish_reason, 1
    choices = [chunk.choices[0] for chunk in reply]
    texts = [choice.delta.content for choice in choices if choice.delta.content]
    refusals = [choice.delta.refusal for choice in choices if choice.delta.refusal]
    return "".join(texts), refusals[0] if refusals else None, choices[-1].finish_reason, len(texts)


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_safe_comes_out(
    client: OpenAI, judge: Judge, server: Running, stream: bool
) -> None:
    with server.client() as plain:
        expected = reply_to(plain, stream)
    assert reply_to(client, stream) == expected
    said, answered = judge.seen
    assert said == [{"role": "user", "content": "the"}]
    assert answered == [*said, {"role": "assistant", "content": expected[0]}]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("side", "what"), [(Side.USER, "question"), (Side.AGENT, "answer")])
def test_what_is_unsafe_does_not(
    client: OpenAI, judge: Judge, side: Side, what: str, stream: bool
) -> None:
    judge.unsafe = lambda found: found is side
    text, refusal, finish, _ = reply_to(client, stream, logprobs=True)
    assert text == ""
    assert refusal == f"the guard finds the {what} unsafe: S1 Category 1"
    assert finish == "content_filter"
    assert len(judge.seen) == (1 if side is Side.USER else 2)


def test_an_answer_that_is_withheld_says_what_it_took(client: OpenAI, judge: Judge) -> None:
    create: Any = client.chat.completions.create
    usages = []
    for side in (Side.USER, Side.AGENT):
        judge.unsafe = side.__eq__
        done = create(**ASKED)
        assert done.choices[0].logprobs is None
        usages.append(done.usage.completion_tokens)
    assert usages == [0, 6]


def test_messages_of_one_role_are_one_turn(client: OpenAI, judge: Judge) -> None:
    roles = ["user", "system", "user", "assistant", "user"]
    messages = [{"role": role, "content": f"{i}"} for i, role in enumerate(roles)]
    reply_to(client, False, messages=messages)
    assert [(each["role"], each["content"]) for each in judge.seen[0]] == [
        ("user", "0\n\n2"),
        ("assistant", "3"),
        ("user", "4"),
    ]


@pytest.mark.parametrize(
    ("param", "options"),
    [
        ("tools", {"tools": [{"type": "function", "function": {"name": "f"}}]}),
        (
            "messages[1]",
            {"messages": [*ASKED["messages"][1:],
                          {"role": "tool", "content": "a", "tool_call_id": "1"}]},
        ),
        ("messages", {"messages": [{"role": "assistant", "content": "a"}]}),
        ("messages", {"messages": [{"role": "system", "content": "a"}]}),
    ],
)  # fmt: skip
def test_what_a_guard_cannot_follow(client: OpenAI, param: str, options: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        reply_to(client, False, **options)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (SessionError("too long"), 400),
        (UsageError("no conversation"), 400),
        (GuardError("no verdict"), 500),
    ],
)
def test_a_guard_that_fails_lets_nothing_through(
    client: OpenAI, judge: Judge, error: Exception, status: int
) -> None:
    judge.error = error
    for stream in (False, True):
        with pytest.raises(openai.APIStatusError, match=str(error)) as caught:
            reply_to(client, stream)
        assert caught.value.status_code == status


def test_a_guard_that_fails_at_the_end(client: OpenAI, judge: Judge) -> None:
    def unsafe(side: Side) -> bool:
        if side is Side.AGENT:
            raise GuardError("no verdict")
        return False

    judge.unsafe = unsafe
    create: Any = client.chat.completions.create
    texts = []
    with pytest.raises(openai.APIError, match="no verdict"):
        texts += [chunk.choices[0].delta.content or "" for chunk in create(**ASKED, stream=True)]
    assert "".join(texts) == ""


def test_a_real_guard(model: BundleModel, guard_bundle: Bundle) -> None:
    """The small one, which finds everything unsafe."""
    with (
        Answers(model, lambda: Guard(BundleModel(guard_bundle.root))) as answers,
        running(model, answers) as server,
        server.client() as client,
    ):
        text, refusal, finish, _ = reply_to(client, False)
    assert (text, finish) == ("", "content_filter")
    assert refusal is not None
    assert "S1 Violent Crimes" in refusal
