"""`serve` as a program: its options, its warnings, and how it ends."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from openai import OpenAI

from llama_edge.bundle.folder import Bundle
from llama_edge.generate.bundle_model import BundleModel
from tests.cli.conftest import Program

pytestmark = pytest.mark.onnx

ROOT = Path(__file__).parents[2]


@contextmanager
def started(
    folder: Path, *options: str, **variables: str
) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """The process, its address, and what it has said so far."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-c", "from llama_edge.cli import main; main()"),
            *("serve", str(folder), "--port", "0", *options),
        ],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
    )
    assert process.stderr is not None
    said: list[str] = []
    try:
        for line in process.stderr:
            said.append(line)
            if "Ctrl-C ends" in line:
                break
        else:
            pytest.fail(f"it has ended: {said}")
        yield process, next(word for word in said[-1].split() if word.startswith("http"))[:-1], said
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def client_of(address: str, key: str = "any") -> OpenAI:
    return OpenAI(base_url=address, api_key=key, max_retries=0, timeout=60)


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_signal_ends_it_in_good_order(guard_bundle: Bundle, number: signal.Signals) -> None:
    """In the middle of an answer, which comes to its end."""
    with started(guard_bundle.root, "--model-name", "mine") as (process, address, said):
        assert said == [f"mine: {address}, a context of 1280 tokens; Ctrl-C ends\n"]
        with client_of(address) as client:
            stream = client.chat.completions.create(
                model="mine",
                messages=[{"role": "user", "content": "hi"}],
                stream=True,
                temperature=0,
                max_tokens=5,
            )
            first = next(stream)
            process.send_signal(number)
            assert first.choices[0].delta.role == "assistant"
            assert [chunk.choices[0].finish_reason for chunk in stream][-1] in ("stop", "length")
        assert process.wait(timeout=30) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_its_key_guard_and_warning(guard_bundle: Bundle) -> None:
    options = ("--guard", str(guard_bundle.root), "--host", "0.0.0.0", "--expose")
    with started(guard_bundle.root, *options, LLAMA_EDGE_API_KEY="s3cret") as (_, address, said):
        assert "warning: other machines reach 0.0.0.0, unencrypted, and may ask" in said[0]
        assert "whoever has the key" in said[0]
        name = guard_bundle.root.name
        with client_of(address, "s3cret") as client:
            assert [card.id for card in client.models.list()] == [name]
            done = client.chat.completions.create(
                model=name, messages=[{"role": "user", "content": "hi"}]
            )
            assert done.choices[0].finish_reason == "content_filter"


def test_a_port_that_is_taken(program: Program, guard_bundle: Bundle) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = program("serve", guard_bundle.root, "--port", port)
    assert result.code == 2
    assert f"127.0.0.1, port {port}: Address already in use; choose another --port" in result.err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--host", "0.0.0.0"), "add --expose if that is meant"),
        (("--host", "no.such.host.invalid", "--expose"), "is not known"),
        (("--host", "203.0.113.7", "--expose"), "Cannot assign requested address"),
        (("--port", "70000"), "between 0 and 65535"),
        (("--port", "0", "--queue", "0"), "it must have 1 or more"),
        (("--api-key", ""), "the API key is empty"),
        (("--allow-origin", "*"), "give scheme, host and port"),
        (("--categories", "S1"), "name it by --guard"),
        (("--threshold", "0.7"), "name it by --guard"),
        (("--stdio", "--port", "80"), "--port is for HTTP"),
        (("--stdio", "--api-key", "a"), "--api-key is for HTTP"),
        (("--stdio", "--guard", "a"), "--guard is for HTTP"),
    ],
)
def test_options_that_cannot_be(
    program: Program, guard_bundle: Bundle, options: tuple[str, ...], says: str
) -> None:
    result = program("serve", guard_bundle.root, *options)
    assert result.code == 2
    assert says in result.err


def test_a_guard_that_is_none(program: Program, served_bundle: Bundle) -> None:
    root = served_bundle.root
    result = program("serve", root, "--port", "0", "--guard", root)
    assert result.code == 3
    assert "take a bundle of a Llama Guard" in result.err


@pytest.mark.slow
def test_a_second_signal_does_not_wait(guard_bundle: Bundle) -> None:
    with started(guard_bundle.root) as (process, address, _):
        host, port = address.removeprefix("http://").removesuffix("/v1").split(":")
        with socket.create_connection((host, int(port))) as connection:
            head = (
                "POST /v1/chat/completions HTTP/1.1",
                "Host: localhost",
                "Content-Type: application/json",
                "Content-Length: 9",
            )
            connection.sendall("\r\n".join((*head, "", "")).encode())
            with client_of(address) as client:
                client.models.list()  # it has read the other request by now
            process.send_signal(signal.SIGINT)
            timer = threading.Timer(1, process.send_signal, (signal.SIGINT,))
            timer.start()
            assert process.wait(timeout=8) == 0, "less than the time of grace"
            timer.join()


def test_what_a_bundle_warns_of_is_said(
    program: Program, guard_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BundleModel, "failed_gate", True)
    monkeypatch.setattr(BundleModel, "_usable_state", told)
    result = program("serve", guard_bundle.root, "--host", "203.0.113.7", "--expose")
    assert result.code == 2
    assert "warning: this bundle failed its gate" in result.err
    assert "note: its state is old" in result.err
    assert "may ask: everybody; give --api-key" in result.err


def told(model: BundleModel) -> None:
    model.state_note = "its state is old"
