"""What comes over the socket, byte by byte: sizes, types, broken bodies, clients that dawdle."""

import json
import socket
from collections.abc import Iterator

import pytest

from llama_edge.generate.bundle_model import BundleModel
from llama_edge.serve import app as app_module
from llama_edge.serve import server as server_module
from llama_edge.serve.requests import MAX_BODY_BYTES
from tests.serve.conftest import Running, Scripted, asking, exchange, posted, read_response, running

pytestmark = pytest.mark.onnx


@pytest.fixture(scope="module")
def scripted(model: BundleModel) -> Iterator[Running]:
    with running(model, Scripted()) as found:
        yield found


@pytest.fixture
def connection(scripted: Running) -> Iterator[socket.socket]:
    with scripted.connect() as found:
        yield found


def refused(connection: socket.socket, data: bytes) -> tuple[int, dict[str, str]]:
    """The status and the error of a request, in OpenAI's shape."""
    status, headers, body = exchange(connection, data)
    assert headers["content-type"] == "application/json"
    error = json.loads(body)
    assert error.keys() == {"error"}
    assert error["error"].keys() == {"message", "type", "param", "code"}
    return status, error["error"]


def test_a_connection_is_kept(connection: socket.socket) -> None:
    for text in ("one", "two"):
        status, _, body = exchange(connection, posted(asking(text)))
        assert status == 200
        assert json.loads(body)["choices"][0]["message"]["content"] == text


def test_a_stream_as_it_is_written(connection: socket.socket) -> None:
    connection.sendall(posted(asking("ab", stream=True), "Connection: close"))
    data = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = data.partition(b"\r\n\r\n")
    assert b"content-type: text/event-stream; charset=utf-8" in head
    assert b"cache-control: no-cache" in head
    lines = [line for line in body.split(b"\r\n") if line.startswith(b"data: ")]
    assert lines[-1] == b"data: [DONE]\n\n"
    assert all(line.endswith(b"\n\n") and line.count(b"\n") == 2 for line in lines)
    deltas = [json.loads(line[6:])["choices"][0] for line in lines[:-1]]
    assert deltas[0] == {
        "index": 0,
        "delta": {"role": "assistant", "content": "", "refusal": None},
        "logprobs": None,
        "finish_reason": None,
    }
    assert [choice["delta"] for choice in deltas[1:-1]] == [{"content": "a"}, {"content": "b"}]
    assert (deltas[-1]["delta"], deltas[-1]["finish_reason"]) == ({}, "stop")


def test_a_chunked_body(connection: socket.socket) -> None:
    body = asking("ab")
    parts = b"".join(b"%x\r\n%b\r\n" % (1, body[i : i + 1]) for i in range(len(body)))
    head = posted(b"", "Transfer-Encoding: chunked", "Content-Length:")
    status, _, _ = exchange(connection, head + parts + b"0\r\n\r\n")
    assert status == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"[]",
        b'"text"',
        b"null",
        b"\xff\xfe",
        asking("a")[:-1],
        asking("a")[:-1] + b"\xe4}",
        asking("a")[:-1] + b', "model": "debug"}',
        asking("a")[:-1] + b', "seed": NaN}',
        asking("a")[:-1] + b', "seed": ' + b"9" * 5000 + b"}",
        asking("a")[:-1] + b', "user": "\\ud800"}',
        asking("a")[:-1] + b', "prediction": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        asking("a")[:-1] + b', "prediction": ' + b'{"a":' * 65 + b"1" + b"}" * 65 + b"}",
    ],
    ids=range(14),
)
def test_a_body_that_is_no_request(connection: socket.socket, body: bytes) -> None:
    status, error = refused(connection, posted(body))
    assert status == 400
    assert error["type"] == "invalid_request_error"
    assert error["code"] == "invalid_json"
    assert exchange(connection, posted(asking("next")))[0] == 200


def test_a_body_of_the_limit_and_one_beyond(connection: socket.socket) -> None:
    body = asking("a")
    body += b" " * (MAX_BODY_BYTES - len(body))
    assert exchange(connection, posted(body))[0] == 200
    status, error = refused(connection, posted(body + b" "))
    assert status == 413
    assert str(MAX_BODY_BYTES) in error["message"]
    assert exchange(connection, posted(asking("next")))[0] == 200


def test_a_body_that_only_says_it_is_large_is_not_waited_for(connection: socket.socket) -> None:
    assert refused(connection, posted(b"", f"Content-Length: {10**15}"))[0] == 413


def test_a_chunked_body_beyond_the_limit(
    connection: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_module, "MAX_BODY_BYTES", 64)
    head = posted(b"", "Transfer-Encoding: chunked", "Content-Length:")
    parts = b"41\r\n" + b" " * 65 + b"\r\n"
    assert refused(connection, head + parts + b"0\r\n\r\n")[0] == 413
    monkeypatch.setattr(app_module, "MAX_PASSED_OVER_BYTES", 128)
    assert refused(connection, head + parts * 2)[0] == 413
    assert connection.recv(1) == b"", "the end is not waited for"


@pytest.mark.parametrize(
    "line", ["Content-Type: text/plain", "Content-Type:", "Content-Encoding: gzip"]
)
def test_a_body_of_another_type(connection: socket.socket, line: str) -> None:
    """A web page may send plain text without asking first, and nothing else."""
    status, error = refused(connection, posted(asking("a"), line))
    assert status == 415
    assert "application/json" in error["message"]


def test_a_type_with_a_charset(connection: socket.socket) -> None:
    line = "Content-Type: application/json; charset=utf-8"
    assert exchange(connection, posted(asking("a"), line))[0] == 200


@pytest.mark.parametrize(
    "line", ["Content-Length: -1", "Content-Length: 1e3", "Content-Length: " + "9" * 40]
)
def test_a_length_that_is_none(scripted: Running, line: str) -> None:
    with scripted.connect() as connection:
        assert exchange(connection, posted(b"{}", line))[0] == 400


def test_two_lengths_are_refused(connection: socket.socket) -> None:
    data = posted(b"{}", "Content-Length: 2\r\nContent-Length: 3")
    assert exchange(connection, data)[0] == 400


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("GET /v1/nothing", 404),
        ("GET /v1/models/other", 404),
        ("GET /v1/chat/completions", 405),
        ("DELETE /v1/models", 405),
        ("OPTIONS /v1/chat/completions", 405),
        ("GET /../../etc/passwd", 404),
    ],
)
def test_other_paths_and_methods(connection: socket.socket, line: str, status: int) -> None:
    assert refused(connection, f"{line} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())[0] == status


@pytest.mark.parametrize(
    "data", [b"\x16\x03\x01\x02\x00\x01\x00", b"hello", b"GET / HTTP/x", b"\0" * 99]
)
def test_what_is_no_http(scripted: Running, data: bytes) -> None:
    with scripted.connect() as connection:
        connection.sendall(data + b"\r\n\r\n")
        assert b" 400 " in connection.recv(4096).splitlines()[0]


def test_a_head_without_end(scripted: Running) -> None:
    with scripted.connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000)
        assert b" 400 " in connection.recv(4096).splitlines()[0]


def test_a_head_that_does_not_come(model: BundleModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slowloris: a header each now and then would hold a connection for ever."""
    monkeypatch.setattr(server_module, "HEADERS_S", 0.2)
    with running(model, Scripted()) as server:
        for begun in (b"", b"GET / HT", b"GET / HTTP/1.1\r\nX: y\r\n"):
            with server.connect() as connection:
                connection.sendall(begun)
                assert connection.recv(1) == b""
        with server.connect() as connection:  # nor a second one, after a good one
            assert exchange(connection, posted(asking("a")))[0] == 200
            connection.sendall(b"GET / HT")
            assert connection.recv(1) == b""


def test_a_body_that_does_not_come(
    connection: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_module, "BODY_S", 0.2)
    status, error = refused(connection, posted(b"{", "Content-Length: 100"))
    assert status == 408
    assert "0.2 s" in error["message"]


def test_a_body_whose_sender_leaves(scripted: Running) -> None:
    with scripted.connect() as connection:
        connection.sendall(posted(b"{", "Content-Length: 100"))
    with scripted.connect() as connection:
        assert exchange(connection, posted(asking("a")))[0] == 200


def test_requests_that_follow_each_other_unasked(connection: socket.socket) -> None:
    """Pipelining: each has its answer, in order."""
    connection.sendall(b"".join(posted(asking(text)) for text in ("a", "b", "c")))
    with connection.makefile("rb") as stream:
        texts = [
            json.loads(read_response(stream)[2])["choices"][0]["message"]["content"]
            for _ in range(3)
        ]
    assert texts == ["a", "b", "c"]


def test_health(connection: socket.socket) -> None:
    _, _, body = exchange(connection, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert json.loads(body) == {"status": "ok", "running": False, "waiting": 0}
