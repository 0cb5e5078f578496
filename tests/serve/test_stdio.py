"""The line protocol over a fake session; the real one is driven by the apps' text path."""

import io
import json
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from llama_edge.core.session import ClosesOnExit, FloatArray, check_tokens
from llama_edge.serve.stdio import MAX_WAITING, serve
from tests.stateless import Stateless

VOCAB = 32


class CountingSession(Stateless, ClosesOnExit):
    """The next token is the last one plus one."""

    max_context = 16

    def __init__(self) -> None:
        self.used = 0
        self.closed = False

    def prefill(self, tokens: Sequence[int]) -> FloatArray:
        check_tokens(tokens, used=self.used, max_context=self.max_context, vocab_size=VOCAB)
        self.used += len(tokens)
        logits: FloatArray = np.eye(VOCAB, dtype=np.float32)[(tokens[-1] + 1) % VOCAB]
        return logits

    def prefill_logits(self, tokens: Sequence[int]) -> FloatArray:
        raise NotImplementedError

    def decode(self, token: int) -> FloatArray:
        return self.prefill([token])

    def reset(self, keep: int = 0) -> None:
        self.used = 0

    def close(self) -> None:
        self.closed = True


class CountingModel:
    def __init__(self) -> None:
        self.session = CountingSession()

    def open(self) -> CountingSession:
        return self.session


def line(request: object) -> bytes:
    match request:
        case bytes():
            return request + b"\n"
        case str():
            return request.encode() + b"\n"
        case _:
            return json.dumps(request).encode() + b"\n"


def talk(*requests: object) -> list[dict[str, Any]]:
    model = CountingModel()
    replies = io.StringIO()
    serve(model, io.BytesIO(b"".join(line(item) for item in requests)), replies)
    assert model.session.closed
    return [json.loads(line) for line in replies.getvalue().splitlines()]


def generate(**fields: Any) -> dict[str, Any]:  # noqa: ANN401
    return {"op": "generate", "tokens": [3], "ends": [7], "max_new_tokens": 8, **fields}


def test_tokens_stream_until_an_end_token() -> None:
    assert talk({"op": "open"}, generate(), {"op": "reset"}) == [
        {"opened": {"max_context": 16}},
        {"token": 4},
        {"token": 5},
        {"token": 6},
        {"done": "eos"},
        {"reset": True},
    ]


def test_each_generation_begins_anew() -> None:
    replies = talk(generate(max_new_tokens=1), generate(max_new_tokens=1))
    assert replies == [{"token": 4}, {"done": "max_new_tokens"}] * 2
    long = talk(generate(tokens=[8] * 10, max_new_tokens=99))
    assert long[-1] == {"done": "context_full"}


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ("not json", "not readable as JSON"),
        ("[1]", "a JSON object is needed"),
        ({"op": "fly"}, "op is 'fly'"),
        ({}, "op is 'None'"),
        ({"op": ["open"]}, "open, generate, cancel, reset, close are the operations"),
        (b'{"op": "open\xff"}', "not UTF-8"),
        ('{"op": "open", "op": "reset"}', "'op' is there twice"),
        (f'{{"op": "open", "seed": {"9" * 400}}}', "a number of 400 digits"),
        ({"op": "open", "seed": 3}, "unknown field `seed`"),
        ({"op": "generate", "ends": []}, "missing required field `tokens`"),
        (generate(tokens="abc"), "Expected `array`, got `str` - at `$.tokens`"),
        (generate(tokens=[True]), "Expected `int`, got `bool` - at `$.tokens[0]`"),
        (generate(tokens=[10**39]), "outside the vocabulary"),
        (generate(ends=[-1]), "Expected `int` >= 0 - at `$.ends[0]`"),
        (generate(tokens=[99]), "outside the vocabulary"),
        (generate(tokens=[1] * 17), "exceed the context"),
        (generate(max_new_tokens=0), ">= 1 - at `$.max_new_tokens`"),
        (generate(temperature="hot"), "Expected `float`, got `str` - at `$.temperature`"),
        (generate(temperature=-0.1), "temperature is -0.1"),
        (b'{"op": "generate", "tokens": [1], "ends": [], "temperature": NaN}', "finite"),
        (generate(top_k=-1), "top_k is -1"),
        (generate(top_p=7), "top_p is 7"),
        (generate(seed=-1), "seed is -1"),
    ],
)
def test_a_wrong_request_is_answered_and_the_next_one_too(request_: object, says: str) -> None:
    first, second = talk(request_, {"op": "open"})
    assert says in first["error"]["message"]
    assert second == {"opened": {"max_context": 16}}


def test_a_line_that_is_too_long_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llama_edge.serve.stdio.MAX_LINE_BYTES", 100)
    fits = json.dumps({"op": "open"}).encode().ljust(99)
    first, *others = talk(b"[" + b"1," * 1000 + b"1]", fits, {"op": "reset"})
    assert first["error"]["message"] == (
        "the request is a line of 2004 bytes; at most 100 are read"
    )
    assert others == [{"opened": {"max_context": 16}}, {"reset": True}]


class _Endless(io.RawIOBase):
    """A line that never ends; how much of it was read."""

    size = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:  # noqa: ANN401
        count = min(len(buffer), 400_000_000 - self.size)
        buffer[:count] = b"1" * count
        self.size += count
        return count


def test_memory_does_not_grow_with_a_line() -> None:
    tracemalloc.start()
    try:
        serve(CountingModel(), io.BufferedReader(_Endless()), io.StringIO())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 40_000_000


def test_no_more_requests_wait_than_said() -> None:
    many = [generate(max_new_tokens=1)] * (3 * MAX_WAITING)
    assert talk(*many) == [{"token": 4}, {"done": "max_new_tokens"}] * (3 * MAX_WAITING)

    class Counted(io.BytesIO):
        lines = 0

        def readline(self, size: int | None = -1, /) -> bytes:
            self.lines += 1
            return super().readline(size)

    stream = Counted(b"".join(line(item) for item in many))
    seen: list[int] = []

    class Slow(io.StringIO):
        def write(self, text: str, /) -> int:
            if not seen:
                time.sleep(0.3)
                seen.append(stream.lines)
            return super().write(text)

    serve(CountingModel(), stream, Slow())
    assert seen[0] <= MAX_WAITING + 2


@pytest.mark.parametrize("temperature", [1e-310, 5e-324, 1e-30])
def test_the_smallest_temperature_takes_the_most_probable_token(temperature: float) -> None:
    assert talk(generate(temperature=temperature)) == talk(generate())
    assert talk(generate(temperature=1e308))[-1]["done"]


class _Client(io.BytesIO):
    """Requests that wait for a reply before they go on."""

    def __init__(self, replies: io.StringIO) -> None:
        super().__init__()
        self._lines = self._script(replies)

    def _script(self, replies: io.StringIO) -> Iterator[bytes]:
        yield line(generate(ends=[], tokens=[0], max_new_tokens=15))
        yield line({"op": "cancel"})
        while "done" not in replies.getvalue():
            pass
        yield line(generate())

    def readline(self, size: int | None = -1, /) -> bytes:
        del size
        return next(self._lines, b"")


def test_cancel_right_behind_the_request_is_heard() -> None:
    replies = io.StringIO()
    serve(CountingModel(), _Client(replies), replies)
    values = [json.loads(line) for line in replies.getvalue().splitlines()]
    done = [value["done"] for value in values if "done" in value]
    assert done == ["cancelled", "eos"]


def test_cancel_is_for_what_came_before_it() -> None:
    class Together(CountingModel):
        """All requests are read before the first is answered."""

        def open(self) -> CountingSession:
            self.session.prefill = self._late  # type: ignore[method-assign]
            return self.session

        def _late(self, tokens: Sequence[int]) -> FloatArray:
            if len(tokens) == 1 and tokens[0] == 3:
                time.sleep(0.2)
            return CountingSession.prefill(self.session, tokens)

    requests = [generate(), generate(), {"op": "cancel"}, generate()]
    replies = io.StringIO()
    serve(Together(), io.BytesIO(b"".join(line(item) for item in requests)), replies)
    values = [json.loads(item) for item in replies.getvalue().splitlines()]
    done = [value["done"] for value in values if "done" in value]
    assert done == ["cancelled", "cancelled", "eos"]


def test_logits_that_are_no_numbers_are_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "eye", lambda size, dtype: np.full((size, size), np.nan, dtype))
    first, second = talk(generate(), {"op": "open"})
    assert "highest logit is nan" in first["error"]["message"]
    assert second == {"opened": {"max_context": 16}}
