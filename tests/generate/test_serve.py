"""The line protocol over a fake session; the real one is driven by the apps' text path."""

import io
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from llama_edge.core.session import ClosesOnExit, FloatArray, check_tokens
from llama_edge.generate.serve import serve

VOCAB = 32


class CountingSession(ClosesOnExit):
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

    def reset(self) -> None:
        self.used = 0

    def close(self) -> None:
        self.closed = True


class CountingModel:
    def __init__(self) -> None:
        self.session = CountingSession()

    def open(self) -> CountingSession:
        return self.session


def talk(*requests: object) -> list[dict[str, Any]]:
    model = CountingModel()
    lines = [item if isinstance(item, str) else json.dumps(item) for item in requests]
    replies = io.StringIO()
    serve(model, io.StringIO("".join(f"{line}\n" for line in lines)), replies)
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
        (generate(tokens="abc"), "a list of token ids"),
        (generate(tokens=[True]), "a list of token ids"),
        (generate(tokens=[99]), "outside the vocabulary"),
        (generate(tokens=[1] * 17), "exceed the context"),
        (generate(max_new_tokens=0), "at least 1"),
        (generate(temperature="hot"), "a number is needed"),
        (generate(top_p=7), "top_p is 7"),
        (generate(seed=-1), "seed is -1"),
    ],
)
def test_a_wrong_request_is_answered_and_the_next_one_too(request_: object, says: str) -> None:
    first, second = talk(request_, {"op": "open"})
    assert says in first["error"]["message"]
    assert second == {"opened": {"max_context": 16}}


class _Client(io.StringIO):
    """Requests that wait for a reply before they go on."""

    def __init__(self, replies: io.StringIO) -> None:
        super().__init__()
        self._lines = self._script(replies)

    def _script(self, replies: io.StringIO) -> Iterator[str]:
        yield json.dumps(generate(ends=[], tokens=[0], max_new_tokens=15)) + "\n"
        yield json.dumps({"op": "cancel"}) + "\n"
        while "done" not in replies.getvalue():
            pass
        yield json.dumps(generate()) + "\n"

    def readline(self, size: int = -1, /) -> str:  # type: ignore[override]
        del size
        return next(self._lines, "")


def test_cancel_right_behind_the_request_is_heard() -> None:
    replies = io.StringIO()
    serve(CountingModel(), _Client(replies), replies)
    values = [json.loads(line) for line in replies.getvalue().splitlines()]
    done = [value["done"] for value in values if "done" in value]
    assert done == ["cancelled", "eos"]
