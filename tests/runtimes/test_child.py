"""A native runtime's crash, hang or refusal is an error in the parent, and no process stays."""

import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llama_edge.core.artifact import ActivationQuantization, Artifact
from llama_edge.core.errors import (
    MissingComponentError,
    RuntimeCrashError,
    SessionError,
)
from llama_edge.runtimes.child import PASSED_ON, ChildRuntime, ChildSession, ChildTimeouts
from tests.confined.test_worker import has_landlock
from tests.conftest import DEBUG_CONFIG

SHORT = ChildTimeouts(open_s=60.0, call_s=1.0, trace_s=60.0)


@pytest.fixture(autouse=True)
def fakes_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    known = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), known]))


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return Artifact(
        backend="fake",
        root=tmp_path,
        files=("model.fake",),
        config=DEBUG_CONFIG,
        activation=ActivationQuantization.NONE,
        max_context=16,
        max_prefill=16,
    )


def fake(name: str = "good", timeouts: ChildTimeouts = SHORT) -> ChildRuntime:
    return ChildRuntime(name, factory="fake_runtimes:make", timeouts=timeouts)


def open_child(artifact: Artifact, name: str = "good") -> ChildSession:
    session = fake(name).open(artifact)
    assert isinstance(session, ChildSession)
    return session


def is_gone(pid: int) -> bool:
    """Neither running nor a zombie: a zombie of ours still has an entry in /proc."""
    return not Path(f"/proc/{pid}").exists()


def test_a_child_has_memory_in_large_pages_unless_the_user_says_otherwise(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tunables() -> list[bytes]:
        with open_child(artifact) as session:
            environment = Path(f"/proc/{session.pid}/environ").read_bytes()
        return [line for line in environment.split(b"\0") if line.startswith(b"GLIBC_TUNABLES=")]

    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    assert tunables() == [b"GLIBC_TUNABLES=glibc.malloc.hugetlb=1"]
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")
    assert tunables() == [b"GLIBC_TUNABLES=glibc.malloc.hugetlb=0"]


def test_a_child_gets_no_token_and_no_key_of_the_users(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "SSH_AUTH_SOCK", "OMP_API_KEY", "LC_SECRET")
    for name in secrets:
        monkeypatch.setenv(name, "hf_secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    with open_child(artifact) as session:
        environment = Path(f"/proc/{session.pid}/environ").read_bytes()
    found = dict(line.split(b"=", 1) for line in environment.split(b"\0") if line)
    assert {name.decode() for name in found} <= PASSED_ON
    assert b"hf_secret" not in environment
    assert found[b"OMP_NUM_THREADS"] == b"3"
    assert found[b"ORT_DISABLE_TELEMETRY"] == b"1"


def own_children() -> set[str]:
    """Process ids, zombies included."""
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def test_a_child_would_be_seen(artifact: Artifact) -> None:
    before = own_children()
    with open_child(artifact) as session:
        assert own_children() - before == {str(session.pid)}


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's means are Linux's")
def test_a_model_gets_at_nothing_but_its_own_files(artifact: Artifact, tmp_path: Path) -> None:
    (tmp_path / "model.fake").write_text("x")
    with pytest.raises(SessionError, match="it was possible"):
        fake(f"opens-{tmp_path / 'model.fake'}").open(artifact)
    for name in ("connects", "starts", *(["opens-/etc/passwd"] if has_landlock() else [])):
        with pytest.raises(SessionError, match=r"denied: (Operation not permitted|Permission)"):
            fake(name).open(artifact)
    with pytest.raises(RuntimeCrashError, match="MemoryError"):
        fake("fills").open(artifact)


def test_another_artifact_gets_another_child(artifact: Artifact, tmp_path: Path) -> None:
    """The first one's child has given up every folder but its own."""
    calls = [(5, 6)]
    runtime = fake()
    pids = []
    for look in (False, False, True, False):
        if look:
            runtime.trace_operators(artifact, calls, [0])
        else:
            runtime.trace(artifact, calls)
        assert runtime._idle is not None
        pids.append(runtime._idle.pid)
    other = replace(artifact, root=tmp_path / "other")
    (tmp_path / "other").mkdir()
    runtime.trace(other, calls)
    assert runtime._idle is not None
    pids.append(runtime._idle.pid)
    runtime.close()
    assert pids[0] == pids[1]
    assert len(set(pids)) == 4
    assert all(is_gone(pid) for pid in pids)


def test_values_pass_unchanged(artifact: Artifact) -> None:
    with open_child(artifact) as session:
        assert session.max_context == 16
        first = session.prefill_logits([5, 6, 7])
        assert first.dtype == np.float32
        assert first.shape == (3, 11)
        assert first[:, 0].tolist() == [0.0, 1.0, 2.0]
        assert session.decode(8)[0] == 3.0
        session.reset()
        assert session.prefill([5])[1] == 1 / 16
        pid = session.pid
    assert is_gone(pid)


def test_trace_and_version(artifact: Artifact) -> None:
    runtime = fake()
    assert runtime.version() == "good 1.2.3"
    trace = runtime.trace(artifact, [(5, 6), (7,)])
    assert trace.tokens == (5, 6, 7)
    assert trace.calls == (2, 1)
    assert [array.shape for array in trace.hidden] == [(3, 4)] * 3
    assert [float(array[0, 0]) for array in trace.attention] == [0.0, 1.0]
    assert trace.logits.shape == (2, 11)


def test_operators_values_come_back_under_their_names(artifact: Artifact) -> None:
    trace = fake().trace_operators(artifact, [(5, 6), (7,)], [4, 9])
    assert (trace.tokens, trace.calls) == ((5, 6, 7), (2, 1))
    assert {layer: [*values] for layer, values in trace.blocks.items()} == {
        4: ["hidden", "q_proj"],
        9: ["hidden", "q_proj"],
    }
    assert trace.blocks[9]["q_proj"].shape == (3, 6)
    assert float(trace.blocks[9]["q_proj"][0, 0]) == -9.0
    assert trace.head["norm"].tolist() == [[0.5] * 4] * 2


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (1, "decode was killed by SIGSEGV"),
        (2, "did not answer within 1 s"),
        (3, "tensor shape is wrong"),
        (4, "ZeroDivisionError: a bug in the runtime's wrapper"),
    ],
)
def test_crash_and_hang(artifact: Artifact, order: int, message: str) -> None:
    session = open_child(artifact)
    session.prefill([5])
    with pytest.raises(RuntimeCrashError, match=message) as caught:
        session.decode(order)
    assert len(str(caught.value)) < 5000
    assert is_gone(session.pid)
    with pytest.raises(SessionError, match="closed"):
        session.decode(5)
    session.close()


def test_a_refusal_leaves_the_session_usable(artifact: Artifact) -> None:
    with open_child(artifact) as session:
        with pytest.raises(SessionError, match="token 99 is outside the vocabulary of 11"):
            session.prefill([99])
        assert session.decode(5)[0] == 0.0


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("segfaults-at-load", RuntimeCrashError, "open was killed by SIGSEGV; it printed nothing"),
        ("refuses", SessionError, "error 0x1"),
        ("absent", MissingComponentError, "not installed"),
    ],
)
def test_load_failures(artifact: Artifact, name: str, kind: type[Exception], message: str) -> None:
    before = own_children()
    with pytest.raises(kind, match=message):
        fake(name).open(artifact)
    assert own_children() == before


def test_a_factory_that_cannot_be_imported_is_reported(artifact: Artifact) -> None:
    runtime = ChildRuntime("good", factory="no_such_module:make", timeouts=SHORT)
    with pytest.raises(RuntimeCrashError, match="No module named 'no_such_module'"):
        runtime.open(artifact)


def test_interrupt_kills_the_child(artifact: Artifact) -> None:
    session = fake(timeouts=ChildTimeouts(call_s=60.0)).open(artifact)
    assert isinstance(session, ChildSession)
    main = threading.get_ident()
    timer = threading.Timer(0.5, signal.pthread_kill, (main, signal.SIGINT))
    timer.start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt), session:
        session.decode(2)
    assert time.monotonic() - started < 30
    assert is_gone(session.pid)


def test_tests_share_a_child_that_nobody_uses_and_that_works(
    debug_onnx: Mapping[int, Artifact],
) -> None:
    """See `tests.warm_children`: closed is closed, and whoever failed is not lent again."""

    def opened() -> ChildSession:
        session = ChildRuntime("onnx").open(debug_onnx[4])
        assert isinstance(session, ChildSession)
        return session

    with opened() as first, opened() as second:
        assert first.pid != second.pid
        expected = first.prefill([5, 6])
    with pytest.raises(SessionError, match="closed"):
        first.prefill([5])
    first.close()
    with opened() as third, opened() as fourth:
        assert {third.pid, fourth.pid} == {first.pid, second.pid}
        np.testing.assert_array_equal(third.prefill([5, 6]), expected)
        with pytest.raises(SessionError, match="outside the vocabulary"):
            third.prefill([10**6])
    assert is_gone(third.pid)
    assert not is_gone(fourth.pid)


def test_the_real_registry_is_the_default(artifact: Artifact) -> None:
    with pytest.raises(Exception, match="runtime 'nothing' is unknown"):
        ChildRuntime("nothing").open(artifact)
