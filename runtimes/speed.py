"""How fast a session answers, timed in the process that runs it: no pipe is between."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from llama_edge.core.errors import UsageError
from llama_edge.core.session import Runtime, Session
from llama_edge.runtimes.machine import EnergyCounter

#: Ids of the prompt; which tokens they are changes no time, and small ids are in every vocabulary.
_FIRST_TOKEN: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedPlan:
    """One reading: a prompt of so many tokens, then so many single ones."""

    prompt_tokens: int
    new_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedReading:
    """What one reading took."""

    #: from the prompt's ids to the first new one, the choice of it included
    first_token_s: float
    #: all single steps together, the first new token not among them
    decode_s: float
    #: of the single steps; None without a counter
    decode_joules: float | None


def time_session(session: Session, plan: SpeedPlan, vocab_size: int) -> SpeedReading:
    """Start a new sequence, read the prompt, continue greedily past any end of turn."""
    counter = EnergyCounter.find()
    prompt = [(_FIRST_TOKEN + index) % vocab_size for index in range(plan.prompt_tokens)]
    session.reset()
    start = time.perf_counter()
    token = int(session.prefill(prompt).argmax())
    first = time.perf_counter()
    before = counter.read() if counter else ()
    for _ in range(plan.new_tokens):
        token = int(session.decode(token).argmax())
    end = time.perf_counter()
    return SpeedReading(
        first_token_s=first - start,
        decode_s=end - first,
        decode_joules=counter.joules_since(before) if counter else None,
    )


def _executorch(threads: int) -> Runtime:
    from llama_edge.runtimes.executorch import ExecuTorchRuntime

    return ExecuTorchRuntime(threads)


def _onnx(threads: int) -> Runtime:
    from llama_edge.runtimes.onnx import OnnxRuntime

    return OnnxRuntime(threads)


#: Runtimes whose time is a time: the vendor's own kernels on this processor, with so many threads.
TIMED_RUNTIMES: Final[Mapping[str, Callable[[int], Runtime]]] = {
    "executorch": _executorch,
    "onnx": _onnx,
}
#: For `ChildRuntime(factory=...)`.
TIMED_FACTORY: Final = "llama_edge.runtimes.speed:make_timed_runtime"


def timed_name(backend: str, threads: int) -> str:
    """What `make_timed_runtime` is called with.

    Raises:
        UsageError: The backend's artifacts run in an emulation here.
    """
    if backend not in TIMED_RUNTIMES:
        raise UsageError(
            f"a {backend} artifact runs on this machine in an interpreter of ours, whose time says "
            f"nothing about a device: no speed figure; bench takes {' and '.join(TIMED_RUNTIMES)}"
        )
    return f"{backend}:{threads}"


def make_timed_runtime(name: str) -> Runtime:
    """The runtime `timed_name` names; called in the child."""
    backend, _, threads = name.partition(":")
    return TIMED_RUNTIMES[backend](int(threads))
