"""A child process that reads what is not trusted: what it can, and what it cannot do."""

import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from llama_edge.confined import ConfinedError, Limits, Worker

LIMITS = Limits(memory_bytes=128 << 20, cpu_s=20, wall_s=60)
MODULE = "tests.confined.answers"

linux = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's means are Linux's")


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", str(root))
    monkeypatch.setenv("SECRET_TOKEN", "do not tell")


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker(MODULE, LIMITS)
    yield made
    made.close()


def test_values_come_back(worker: Worker) -> None:
    value = {"text": "ä\ud800\0", "list": [1, 2.5, None, True], "long": "x" * 3_000_000}
    assert worker.ask({"do": "echo", "with": value}) == value


def test_events_are_heard_in_order(worker: Worker) -> None:
    heard: list[int] = []
    assert worker.ask({"do": "count", "with": 3}, heard.append) == 3
    assert heard == [0, 1, 2]
    assert worker.ask({"do": "count", "with": 2}) == 2


def test_a_refusal_is_no_death(worker: Worker) -> None:
    with pytest.raises(ConfinedError, match=r"^a \?bad\? file$") as found:
        worker.ask({"do": "refuse", "with": "a \x1bbad\n file"})
    assert found.value.refused
    process = worker._process
    assert worker.ask({"do": "echo", "with": 1}) == 1
    assert worker._process is process


@pytest.mark.parametrize(
    ("deed", "value", "message"),
    [
        ("crash", None, "was ended by SIGSEGV"),
        ("exit", 7, "ended with exit code 7"),
        ("read", "/no/such/file", r"exit code 1 \(\w+Error: .*/no/such/file"),
    ],
)
def test_a_death_is_an_error_and_the_next_request_is_answered(
    worker: Worker, deed: str, value: object, message: str
) -> None:
    with pytest.raises(ConfinedError, match=message) as found:
        worker.ask({"do": deed, "with": value})
    assert not found.value.refused
    assert worker.ask({"do": "echo", "with": 1}) == 1


def test_the_opening_request_comes_first_in_each_child() -> None:
    worker = Worker(MODULE, LIMITS, opening={"do": "echo", "with": "opened"})
    assert worker.open() == "opened"
    with pytest.raises(ConfinedError):
        worker.ask({"do": "exit", "with": 1})
    assert worker.ask({"do": "echo", "with": 2}) == 2
    bad = Worker(MODULE, LIMITS, opening={"do": "refuse", "with": "no"})
    for _ in range(2):
        with pytest.raises(ConfinedError, match=r"^no$"):
            bad.ask({"do": "echo", "with": 2})
    worker.close()


@linux
def test_memory_is_limited(worker: Worker) -> None:
    with pytest.raises(ConfinedError, match="it takes more than 128 MiB of memory"):
        worker.ask({"do": "fill", "with": 256 << 20})
    assert worker.ask({"do": "fill", "with": 64 << 20}) == 64 << 20


def test_processor_time_is_limited_by_the_request() -> None:
    worker = Worker(MODULE, replace(LIMITS, cpu_s=1))
    for _ in range(2):
        with pytest.raises(ConfinedError, match="it takes more than 1 s of processor time"):
            worker.ask({"do": "loop"})
    worker.close()


def test_waiting_is_limited() -> None:
    worker = Worker(MODULE, replace(LIMITS, wall_s=1))
    with pytest.raises(ConfinedError, match="it takes more than 1 s"):
        worker.ask({"do": "wait"})
    worker.close()


def test_what_libraries_print_is_no_reply(worker: Worker) -> None:
    worker.ask({"do": "say", "with": "x" * 100_000})
    assert worker.ask({"do": "echo", "with": 1}) == 1


def test_threads_are_possible(worker: Worker) -> None:
    assert worker.ask({"do": "thread"}) == 3


def test_keys_of_the_user_are_not_passed_on(worker: Worker) -> None:
    assert "SECRET_TOKEN" in os.environ
    assert "SECRET_TOKEN" not in worker.ask({"do": "environment"})


@linux
@pytest.mark.parametrize("deed", ["fork", "run"])
def test_no_process_is_started(worker: Worker, deed: str) -> None:
    with pytest.raises(ConfinedError, match=r"PermissionError|not permitted"):
        worker.ask({"do": deed})


@linux
def test_the_network_is_out_of_reach(worker: Worker) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ConfinedError, match=r"PermissionError|not permitted"):
            worker.ask({"do": "connect", "with": port})


@linux
def test_files_are_neither_read_nor_written(worker: Worker, tmp_path: Path) -> None:
    """Where the kernel has Landlock; a descriptor that is passed on stays readable."""
    secret = tmp_path / "secret"
    secret.write_text("keep it")
    if not has_landlock():
        pytest.skip("this kernel has no Landlock")
    with pytest.raises(ConfinedError, match="Permission denied"):
        worker.ask({"do": "read", "with": str(secret)})
    with pytest.raises(ConfinedError, match="Permission denied"):
        worker.ask({"do": "write", "with": str(tmp_path / "new")})
    assert not (tmp_path / "new").exists()
    with secret.open("rb") as stream:
        reader = Worker(MODULE, LIMITS, descriptors=(stream.fileno(),))
        assert reader.ask({"do": "descriptor", "with": stream.fileno()}) == "keep it"
        reader.close()


@linux
def test_what_is_readable_is_read_and_not_written(tmp_path: Path) -> None:
    (tmp_path / "given").write_text("read it")
    worker = Worker(MODULE, LIMITS, readable=(tmp_path,))
    assert worker.ask({"do": "read", "with": str(tmp_path / "given")}) == "read it"
    if has_landlock():
        with pytest.raises(ConfinedError, match="Permission denied"):
            worker.ask({"do": "write", "with": str(tmp_path / "given")})
    worker.close()


@linux
def test_children_are_possible_where_they_are_needed() -> None:
    """And they have the limits too: no network, and no more memory."""
    worker = Worker(MODULE, LIMITS, children=True)
    assert worker.ask({"do": "fork"}) > 0
    with pytest.raises(ConfinedError, match=r"PermissionError|not permitted"):
        worker.ask({"do": "connect", "with": 80})
    worker.close()


def has_landlock() -> bool:
    lsm = Path("/sys/kernel/security/lsm")
    return not lsm.exists() or "landlock" in lsm.read_text()
