"""Many clients of one model: slow ones, ones that vanish, and the end of the server."""

import json
import select
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from llama_edge.bundle.folder import Bundle
from llama_edge.core.errors import RuntimeCrashError, SessionError
from llama_edge.core.progress import SilentProgress
from llama_edge.generate.bundle_model import BundleModel
from llama_edge.generate.warm import WarmRequest, warm_bundle
from llama_edge.serve import server as server_module
from llama_edge.serve.answers import Answers
from llama_edge.serve.pieces import Ended, Item, Piece
from llama_edge.serve.requests import ChatCompletionRequest
from llama_edge.serve.server import ServerConfig
from tests.serve.conftest import (
    CONFIG,
    NAME,
    NO_USAGE,
    Running,
    Scripted,
    asking,
    exchange,
    posted,
    read_response,
    running,
)

pytestmark = pytest.mark.onnx

CLIENTS = 200


@pytest.fixture
def script() -> Scripted:
    return Scripted()


@pytest.fixture
def one(model: BundleModel, script: Scripted) -> Iterator[Running]:
    with running(model, script) as found:
        yield found


def health(server: Running) -> dict[str, object]:
    with server.connect() as connection:
        _, _, body = exchange(connection, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    value: dict[str, object] = json.loads(body)
    return value


def until(condition: Callable[[], bool]) -> None:
    """Other threads get there; the limit is for the case that they never do."""
    limit = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < limit, "it does not happen"
        time.sleep(0.005)


def goes_on_until_it_ends(script: Scripted) -> None:
    """A model says its next token whoever listens; how many come until a loss is seen is open."""

    def ended() -> bool:
        script.go_on.release()
        return script.ended.is_set()

    until(ended)


def answer_of(server: Running, text: str) -> str:
    with server.connect() as connection:
        status, _, body = exchange(connection, posted(asking(text)))
    assert status == 200, body
    content: str = json.loads(body)["choices"][0]["message"]["content"]
    return content


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_vanishes_in_the_middle_frees_its_turn(
    one: Running, script: Scripted, stream: bool
) -> None:
    with one.connect() as connection:
        connection.sendall(posted(asking("slow", stream=stream)))
        assert script.began.wait(20)
        script.go_on.release(2)
        if stream:
            assert connection.recv(10)
    goes_on_until_it_ends(script)
    assert answer_of(one, "next") == "next"
    assert health(one) == {"status": "ok", "running": False, "waiting": 0}


def test_clients_that_vanish_in_the_queue_are_never_answered(
    one: Running, script: Scripted
) -> None:
    with one.connect() as first:
        first.sendall(posted(asking("slow")))
        assert script.began.wait(20)
        gone = [one.connect() for _ in range(5)]
        for connection in gone:
            connection.sendall(posted(asking("gone")))
        until(lambda: health(one)["waiting"] == 5)
        for connection in gone:
            connection.close()
        until(lambda: health(one)["waiting"] == 0)
    goes_on_until_it_ends(script)
    assert answer_of(one, "next") == "next"
    assert script.asked == ["slow", "next"]


def test_a_full_queue_says_when_to_come_back(model: BundleModel, script: Scripted) -> None:
    with running(model, script, ServerConfig(model_name=NAME, port=0, max_waiting=2)) as server:
        slow, *waiting = [server.connect() for _ in range(3)]
        slow.sendall(posted(asking("slow")))
        assert script.began.wait(20)
        for connection in waiting:
            connection.sendall(posted(asking("abc")))
        until(lambda: health(server)["waiting"] == 2)
        with server.connect() as late:
            status, headers, body = exchange(late, posted(asking("late")))
            assert status == 429
            assert 1 <= int(headers["retry-after"]) <= 60
            error = json.loads(body)["error"]
            assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
            with pytest.raises(openai.RateLimitError), server.client() as client:
                client.chat.completions.create(
                    model=NAME, messages=[{"role": "user", "content": "late"}]
                )
            slow.close()
            goes_on_until_it_ends(script)
            for connection in waiting:
                with connection, connection.makefile("rb") as stream:
                    assert read_response(stream)[0] == 200
            assert exchange(late, posted(asking("late")))[0] == 200
        assert "late" in script.asked


def test_a_client_that_does_not_read_holds_nobody_up(model: BundleModel) -> None:
    class Long(Scripted):
        def answer(self, request: ChatCompletionRequest) -> Iterator[Item]:
            if request.dialog[-1]["content"] != "long":
                yield from super().answer(request)
                return
            for _ in range(500):  # more than all buffers between them hold
                yield Piece(text="x" * 20_000)
            yield Ended(finish="stop", usage=NO_USAGE)

    with running(model, Long()) as server, server.connect() as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 18)
        lazy.sendall(posted(asking("long", stream=True), "Connection: close"))
        select.select([lazy], [], [])
        assert answer_of(server, "next") == "next"
        data = b"".join(iter(lambda: lazy.recv(1 << 20), b""))
        assert data.count(b"x" * 20_000) == 500, "and it has lost nothing"
        assert b"data: [DONE]" in data


def test_two_hundred_clients_lose_nothing_but_their_own_turn(model: BundleModel) -> None:
    """Every fifth vanishes at once, every fifth in the middle, every fifth reads slowly."""
    with Answers(model) as answers, running(model, answers, CONFIG) as server:
        body = asking("the", temperature=0, max_tokens=4)
        with server.connect() as connection:
            expected = json.loads(exchange(connection, posted(body))[2])["choices"]
        begin = threading.Barrier(CLIENTS)

        def ask(number: int) -> object:
            begin.wait()
            with server.connect() as connection:
                match number % 5:
                    case 0:
                        connection.sendall(posted(body))
                        return None
                    case 1:
                        data = posted(asking("on", max_tokens=400, stream=True))
                        connection.sendall(data)
                        connection.recv(200)
                        return None
                    case 2:
                        connection.settimeout(60)
                        data = posted(asking("the", temperature=0, max_tokens=4, stream=True),
                                      "Connection: close")  # fmt: skip
                        for place in range(0, len(data), 50):
                            connection.sendall(data[place : place + 50])
                        got = b"".join(iter(lambda: connection.recv(40), b""))
                        assert got.count(b"[DONE]") == 1
                        return "streamed"
                    case _:
                        connection.settimeout(60)
                        return json.loads(exchange(connection, posted(body))[2])["choices"]

        with ThreadPoolExecutor(CLIENTS) as pool:
            found = list(pool.map(ask, range(CLIENTS)))
        assert found[2::5] == ["streamed"] * (CLIENTS // 5)
        assert found[3::5] == found[4::5] == [expected] * (CLIENTS // 5)
        until(lambda: health(server) == {"status": "ok", "running": False, "waiting": 0})
        assert server.told == []


def test_openais_client_cancels_and_is_served_again(server: Running) -> None:
    with server.client() as client:
        stream = client.chat.completions.create(
            model=NAME, messages=[{"role": "user", "content": "the"}], stream=True, temperature=2
        )
        next(iter(stream))
        stream.close()
        done = client.chat.completions.create(
            model=NAME, messages=[{"role": "user", "content": "the"}], max_tokens=3
        )
    assert done.usage is not None
    assert done.usage.completion_tokens <= 3


class Broken(Scripted):
    """Says "ab" and then has an error of the runtime's."""

    def answer(self, request: ChatCompletionRequest) -> Iterator[Item]:
        if request.dialog[-1]["content"] == "late":
            yield from (Piece(text="a"), Piece(text="b"))
        if request.dialog[-1]["content"] == "bug":
            raise ZeroDivisionError("a bug")
        raise SessionError("the highest logit is nan")


def test_an_error_of_the_server(model: BundleModel, caplog: pytest.LogCaptureFixture) -> None:
    with running(model, Broken()) as server:
        with server.connect() as connection:
            for stream in (False, True):
                status, _, body = exchange(connection, posted(asking("soon", stream=stream)))
                assert status == 500
                assert json.loads(body)["error"] == {
                    "message": "the highest logit is nan",
                    "type": "server_error",
                    "param": None,
                    "code": None,
                }
        with server.client() as client:
            chunks = client.chat.completions.create(
                model=NAME, messages=[{"role": "user", "content": "late"}], stream=True
            )
            got: list[str] = []
            with pytest.raises(openai.APIError, match="logit is nan"):
                got.extend(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert [str(error) for error in server.told] == ["the highest logit is nan"] * 3
        with server.connect() as connection:
            status, _, body = exchange(connection, posted(asking("bug")))
            assert status == 500
            assert "ZeroDivisionError" in json.loads(body)["error"]["message"]


def test_a_runtime_that_died_is_started_again(
    model: BundleModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    real = BundleModel.open

    def recorded(self: BundleModel) -> object:
        opened.append(real(self))
        return opened[-1]

    monkeypatch.setattr(BundleModel, "open", recorded)
    with Answers(model) as answers, running(model, answers) as server:
        body = posted(asking("the", max_tokens=2))
        with server.connect() as connection:
            assert exchange(connection, body)[0] == 200

        def died(tokens: object) -> object:
            raise RuntimeCrashError("it died")

        monkeypatch.setattr(opened[0], "prefill", died)
        with server.connect() as connection:
            status, _, reply = exchange(connection, body)
            assert (status, json.loads(reply)["error"]["message"]) == (500, "it died")
            assert exchange(connection, body)[0] == 200
        assert len(opened) == 2


def test_the_end_waits_for_what_runs_and_sends_the_others_away(
    model: BundleModel, script: Scripted
) -> None:
    with running(model, script) as server, server.connect() as slow, server.connect() as other:
        slow.sendall(posted(asking("slow", stream=True)))
        assert script.began.wait(20)
        other.sendall(posted(asking("other")))
        until(lambda: health(server)["waiting"] == 1)
        server.server.should_exit = True
        with other.makefile("rb") as stream:
            status, _, body = read_response(stream)
        assert (status, json.loads(body)["error"]["code"]) == (503, "stopping")
        script.go_on.release(2)
        with slow.makefile("rb") as stream:
            assert b" 200 " in stream.readline()
            assert not script.ended.is_set(), "it goes on"
        slow.close()
        goes_on_until_it_ends(script)
    assert script.asked == ["slow"]


def test_the_end_does_not_wait_for_ever(
    model: BundleModel,
    script: Scripted,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As in a prefill that takes minutes."""
    monkeypatch.setattr(server_module, "GRACE_S", 1)
    with running(model, script) as server, server.connect() as slow:
        slow.sendall(posted(asking("slow")))
        assert script.began.wait(20)
        server.server.should_exit = True
        with slow.makefile("rb") as stream:
            status, _, body = read_response(stream)
        assert (status, json.loads(body)["error"]["code"]) == (503, "stopping")
    assert not script.ended.is_set()
    assert caplog.text == ""
    script.go_on.release()
    assert script.ended.wait(20)


def test_a_stored_system_prompt_is_not_read_again(served_bundle: Bundle, tmp_path: Path) -> None:
    system = "Answer in one sentence."
    folder = Path(shutil.copytree(served_bundle.root, tmp_path / "warm"))
    stored = warm_bundle(folder, WarmRequest(system=system), SilentProgress())
    model = BundleModel(folder)
    with (
        Answers(model) as answers,
        running(model, answers) as server,
        server.client() as client,
    ):
        done = client.chat.completions.create(
            model=NAME,
            messages=[{"role": "system", "content": system}, {"role": "user", "content": "the"}],
            max_tokens=1,
        )
    assert done.usage is not None
    assert done.usage.prompt_tokens_details is not None
    assert done.usage.prompt_tokens_details.cached_tokens == stored.tokens > 0
