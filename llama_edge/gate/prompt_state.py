"""Whether a prompt state is what the model makes of the prompt: restored, and read anew.

After the restored rows the runtime must compute what it computes after rows that it has just made:
bit for bit, where it makes the same rows twice. A state that was made on another machine, whose
kernels add in another order, may differ as much as the same prompt does when it is read token by
token, and its logits as much as the gate lets an artifact's differ from its reference's. How far a
prompt that is read in two calls is from one that is read in one is told next to that: it is the
runtime's own doing, as in every dialog of two turns.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Final

import numpy as np

from llama_edge.bundle.prompt_state import PromptState
from llama_edge.core.artifact import ActivationQuantization
from llama_edge.core.cache_state import CacheState
from llama_edge.core.progress import Progress
from llama_edge.core.session import FloatArray, Session
from llama_edge.gate.findings import Finding, report_json
from llama_edge.gate.metrics import compare
from llama_edge.gate.prompt_texts import GATE_TEXTS
from llama_edge.gate.tolerances import Tolerances
from llama_edge.text.tokenizer import Tokenizer

#: How many texts go on from the state, and how far.
_TEXTS: Final = 3
_READ: Final = 16
_DECODED: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class StateLimits:
    """What is right."""

    #: mean KL, nats, between logits of the same tokens; None: nobody knows this runtime's noise
    mean_kl: float | None
    #: of a row of the cache, relative; besides twice the distance between two ways to read
    row_error: float

    @classmethod
    def of(
        cls,
        activation: ActivationQuantization,
        noise_floor_kl: float | None,
        tolerances: Tolerances,
    ) -> "StateLimits":
        """The gate's own.

        Args:
            activation: What the artifact's linears do to their input.
            noise_floor_kl: As the gate measured it; None: unknown.
            tolerances: The gate's.
        """
        if activation is ActivationQuantization.NONE:
            return cls(mean_kl=tolerances.weight_only_mean_kl, row_error=tolerances.block)
        limit = None
        if noise_floor_kl is not None:
            limit = tolerances.noise_floor_factor * noise_floor_kl
            limit += tolerances.noise_floor_absolute
        return cls(mean_kl=limit, row_error=tolerances.block)


@dataclass(frozen=True, slots=True, kw_only=True)
class StateReport:
    """What a check of one state measured."""

    tokens: int
    size_bytes: int
    runtime: str
    #: why it was not run here; everything below is then None
    not_run: str | None = None
    #: whether the runtime makes the same rows twice
    deterministic: bool | None = None
    #: whether the state has the rows that were made here, bit for bit
    same_rows: bool | None = None
    #: whether logits after it are those after a prompt that was read here, bit for bit
    same_logits: bool | None = None
    #: the largest relative error of a row, and what it may be; None where rows are the same
    row_error: float | None = None
    row_error_limit: float | None = None
    #: mean KL, nats, from a prompt that was read in the same calls, and what it may be
    mean_kl: float | None = None
    mean_kl_limit: float | None = None
    #: mean KL from a prompt that was read in one call; not judged
    one_call_mean_kl: float | None = None
    findings: tuple[Finding, ...] = ()

    @classmethod
    def without_run(cls, state: PromptState, reason: str) -> "StateReport":
        """Of a state that cannot be checked here."""
        return cls(
            tokens=len(state.tokens),
            size_bytes=state.cache.size_bytes,
            runtime=_runtime(state),
            not_run=reason,
        )

    @property
    def passed(self) -> bool:
        """No finding at all."""
        return not self.findings

    def to_json(self) -> dict[str, Any]:
        """Plain values, rounded."""
        return report_json(self)


@dataclass(frozen=True, slots=True)
class _Continuation:
    read: tuple[int, ...]
    decoded: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Cold:
    """What comes of a prompt that is read here."""

    #: (T, V) by continuation
    logits: list[FloatArray]
    #: the same with beginning and continuation in one call
    one_call: list[FloatArray]
    states: list[CacheState]
    #: of another way to read the beginning; None where the rows are those of the state
    token_by_token: CacheState | None


def check_state(
    state: PromptState,
    open_session: Callable[[], Session],
    tokenizer: Tokenizer,
    limits: StateLimits,
    progress: Progress,
) -> StateReport:
    """Read the beginning and go on, in one session; restore it and go on, in another one.

    Args:
        state: Not yet believed.
        open_session: Loads the artifact with the state's runtime.
        tokenizer: Makes tokens of what goes on.
        limits: What is right.
        progress: Told of each stage.

    Raises:
        CheckFailedError: Logits hold NaN or infinity, or the runtime died.
        SessionError: The runtime refuses the artifact or the state.
    """
    room = state.origin.max_context - len(state.tokens)
    continuations = _continuations(tokenizer, room)
    progress.start("prompt state: read the prompt anew", len(continuations))
    with open_session() as session:
        cold = _read(state, session, continuations, progress)
    progress.start("prompt state: restore it", len(continuations))
    warm = []
    with open_session() as session:
        for continuation in continuations:
            session.restore(state.cache)
            warm.append(_go_on(session, continuation))
            progress.advance()
    return _judge(state, cold, warm, limits)


def _continuations(tokenizer: Tokenizer, room: int) -> list[_Continuation]:
    """Requests and answers of the gate's own texts, as far as there is room."""
    made = []
    for text in GATE_TEXTS[:_TEXTS]:
        request, answer = (
            tuple(tokenizer.encode(words, add_bos=False))
            for words in (" ".join(text.request), text.answer)
        )
        read = request[: min(_READ, max(1, room // 2))]
        made.append(_Continuation(read, answer[: min(_DECODED, room - len(read))]))
    return made


def _read(
    state: PromptState,
    session: Session,
    continuations: Sequence[_Continuation],
    progress: Progress,
) -> _Cold:
    logits, one_call, states = [], [], []
    for continuation in continuations:
        session.reset()
        session.prefill(state.tokens)
        states.append(session.save())
        logits.append(_go_on(session, continuation))
        session.reset()
        together = session.prefill([*state.tokens, *continuation.read])
        one_call.append(_decoded(session, together, continuation))
        progress.advance()
    token_by_token = None
    if not states[0].equals(state.cache):
        session.reset()
        for token in state.tokens:
            session.decode(token)
        token_by_token = session.save()
    return _Cold(logits, one_call, states, token_by_token)


def _go_on(session: Session, continuation: _Continuation) -> FloatArray:
    return _decoded(session, session.prefill(continuation.read), continuation)


def _decoded(session: Session, first: FloatArray, continuation: _Continuation) -> FloatArray:
    """Logits (T, V) after what was read, and after each token that is decoded."""
    return np.stack([first, *(session.decode(token) for token in continuation.decoded)])


def _judge(
    state: PromptState, cold: _Cold, warm: Sequence[FloatArray], limits: StateLimits
) -> StateReport:
    fresh = cold.states[0]
    deterministic = all(fresh.equals(other) for other in cold.states)
    same_rows = fresh.equals(state.cache)
    same_logits = all(map(np.array_equal, cold.logits, warm))
    row_error = row_limit = None
    if cold.token_by_token is not None:
        row_error = _worst_row(fresh, state.cache)
        row_limit = limits.row_error + 2 * _worst_row(fresh, cold.token_by_token)
    mean_kl, one_call = (_mean_kl(reference, warm) for reference in (cold.logits, cold.one_call))
    report = StateReport(
        tokens=len(state.tokens),
        size_bytes=state.cache.size_bytes,
        runtime=_runtime(state),
        deterministic=deterministic,
        same_rows=same_rows,
        same_logits=same_logits,
        row_error=row_error,
        row_error_limit=row_limit,
        mean_kl=mean_kl,
        one_call_mean_kl=one_call,
        mean_kl_limit=limits.mean_kl,
    )
    return replace(report, findings=tuple(_findings(report)))


def _runtime(state: PromptState) -> str:
    return f"{state.origin.runtime} ({state.origin.runtime_version})"


def _worst_row(reference: CacheState, other: CacheState) -> float:
    """The largest relative error of a token's key or value of one head."""
    worst = 0.0
    for (_, wanted), (_, found) in zip(reference.rows(), other.rows(), strict=True):
        norm = np.linalg.norm(wanted, axis=-1)
        error = np.linalg.norm(found.astype(np.float64) - wanted, axis=-1)
        worst = max(worst, float((error / np.maximum(norm, np.finfo(np.float32).tiny)).max()))
    return worst


def _mean_kl(reference: Sequence[FloatArray], found: Sequence[FloatArray]) -> float:
    """Over all positions; the tokens themselves are of no account."""
    values = [
        compare(wanted, got, [0] * len(wanted)).kl
        for wanted, got in zip(reference, found, strict=True)
    ]
    return float(np.mean(list(chain.from_iterable(values))))


def _findings(report: StateReport) -> Iterator[Finding]:
    if report.deterministic and report.same_rows and not report.same_logits:
        message = (
            f"the same rows give other logits when they are restored: mean KL {report.mean_kl:.3g} "
            "nats; they must be the same bit for bit"
        )
        yield _finding("logits", message)
    if _is_above(report.row_error, report.row_error_limit):
        message = (
            f"a row of the cache has a relative error of {report.row_error:.3g} to what the model "
            f"makes of the prompt; at most {report.row_error_limit:.3g}"
        )
        yield _finding("rows", message)
    if _is_above(report.mean_kl, report.mean_kl_limit):
        message = (
            f"mean KL to a prompt that was read in the same calls is {report.mean_kl:.3g} nats; at "
            f"most {report.mean_kl_limit:.3g}"
        )
        yield _finding("logits", message)


def _is_above(found: float | None, limit: float | None) -> bool:
    return found is not None and limit is not None and found > limit


def _finding(where: str, message: str) -> Finding:
    return Finding(check="prompt_state", code="state.values", where=where, message=message)
