"""A server in a thread of the tests, over the debug model."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import BinaryIO

import pytest
from openai import OpenAI

from llama_edge.bundle.folder import Bundle
from llama_edge.core.errors import LlamaEdgeError
from llama_edge.generate.bundle_model import BundleModel
from llama_edge.serve.answers import Answers
from llama_edge.serve.app import AnswersRequests
from llama_edge.serve.pieces import Ended, Item, Piece
from llama_edge.serve.replies import PromptDetails, Usage
from llama_edge.serve.requests import ChatCompletionRequest
from llama_edge.serve.server import BundleServer, ServerConfig, address_of, bind
from tests.conftest import SERVED_CONTEXT

NAME = "debug"
KEY = "not-checked"
CONTEXT = SERVED_CONTEXT
CONFIG = ServerConfig(model_name=NAME, port=0, max_waiting=400)


@dataclass
class Running:
    """A server that answers."""

    url: str
    port: int
    server: BundleServer
    told: list[LlamaEdgeError] = field(default_factory=list)

    def client(self, *, retries: int = 0, timeout: float = 30) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=retries, timeout=timeout)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)


@contextmanager
def running(
    model: BundleModel, answers: AnswersRequests, config: ServerConfig = CONFIG
) -> Iterator[Running]:
    told: list[LlamaEdgeError] = []
    with closing(bind(config.host, config.port)) as listener:
        server = BundleServer(model, answers, config, told.append)
        url, port = address_of(listener), listener.getsockname()[1]
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield Running(url, port, server, told)
        finally:
            server.should_exit = True
            thread.join(timeout=30)
            assert not thread.is_alive(), "the server does not end"


@pytest.fixture(scope="module")
def model(served_bundle: Bundle) -> BundleModel:
    return BundleModel(served_bundle.root)


@pytest.fixture(scope="module")
def server(model: BundleModel) -> Iterator[Running]:
    with Answers(model) as answers, running(model, answers) as found:
        yield found


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[OpenAI]:
    with server.client() as found:
        yield found


class Scripted:
    """Answers that tests write as they go: "ab" is two pieces, and each waits until it is let go.

    What the last message says decides: "slow" waits, anything else answers itself at once.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.began = threading.Event()
        self.go_on = threading.Semaphore(0)
        self.ended = threading.Event()

    def answer(self, request: ChatCompletionRequest) -> Iterator[Item]:
        text = str(request.dialog[-1]["content"])
        self.asked.append(text)
        try:
            if text == "slow":
                self.began.set()
                while True:
                    assert self.go_on.acquire(timeout=20)
                    yield Piece(text="x")
            for letter in text:
                yield Piece(text=letter)
            yield Ended(finish="stop", usage=NO_USAGE)
        finally:
            self.ended.set()


NO_USAGE = Usage(
    prompt_tokens=1,
    completion_tokens=1,
    total_tokens=2,
    prompt_tokens_details=PromptDetails(cached_tokens=0),
)


def exchange(connection: socket.socket, data: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send bytes, and read one response with a length."""
    connection.sendall(data)
    with connection.makefile("rb") as stream:
        return read_response(stream)


def read_response(stream: BinaryIO) -> tuple[int, dict[str, str], bytes]:
    status = int(stream.readline().split()[1])
    headers = {}
    while (line := stream.readline().strip()) != b"":
        name, _, value = line.decode().partition(":")
        headers[name.lower()] = value.strip()
    return status, headers, stream.read(int(headers.get("content-length", "0")))


def posted(body: bytes, *lines: str, path: str = "/v1/chat/completions") -> bytes:
    """A request; lines replace the usual ones where they name the same header."""
    usual = {
        "host": "Host: localhost",
        "content-type": "Content-Type: application/json",
        "content-length": f"Content-Length: {len(body)}",
    }
    given = {line.partition(":")[0].lower(): line for line in lines}
    head = (
        f"POST {path} HTTP/1.1",
        *(line for line in {**usual, **given}.values() if line[-1] != ":"),
    )
    return "\r\n".join((*head, "", "")).encode() + body


def asking(text: str, **fields: object) -> bytes:
    messages = [{"role": "user", "content": text}]
    return json.dumps({"model": NAME, "messages": messages, **fields}).encode()
