"""`save` and `restore`: what follows a restored state is, bit for bit, what follows the tokens."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llama_edge.backends import get_exporter
from llama_edge.backends.base import LowerOptions
from llama_edge.core.artifact import Artifact, KVCacheDtype
from llama_edge.core.cache_state import CacheState
from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.errors import SessionError
from llama_edge.core.progress import SilentProgress
from llama_edge.core.quantized import QuantizedCheckpoint
from llama_edge.core.session import Session
from llama_edge.models.reference import Reference
from llama_edge.models.sources import CachedSource, FullPrecisionSource
from llama_edge.runtimes import get_runtime
from llama_edge.runtimes.child import ChildRuntime
from llama_edge.runtimes.eager import EagerSession

BEGIN, QUESTION, OTHER = [3, 17, 90, 41, 7], [8, 30, 31], [50, 51, 52, 53, 54, 55, 56]
CONTEXT = 64
#: Backend, runtime, the artifact's cache, and what the runtime holds of it.
CASES = (
    ("executorch", "executorch", KVCacheDtype.FLOAT32, KVCacheDtype.FLOAT32),
    ("executorch", "executorch", KVCacheDtype.INT8, KVCacheDtype.INT8),
    ("onnx", "onnx", None, KVCacheDtype.FLOAT32),
    ("coreml", "coreml", None, KVCacheDtype.FLOAT32),
    ("coreml", "coreml-fp16", None, KVCacheDtype.FLOAT16),
)


def lowered(
    quantized: QuantizedCheckpoint, backend: str, kv_cache: KVCacheDtype | None, folder: Path
) -> Artifact:
    options = LowerOptions(max_context=CONTEXT, kv_cache=kv_cache)
    return get_exporter(backend).lower(quantized, folder, options, SilentProgress())


def answers(session: Session) -> list[np.ndarray]:
    return [session.prefill(QUESTION), session.decode(9), session.decode(11)]


def check(open_session: Callable[[], Session], held: KVCacheDtype) -> CacheState:
    """Save after the beginning; restore in the same session, used for something else, and anew."""
    with open_session() as cold:
        with pytest.raises(SessionError, match="holds no token; read a prompt"):
            cold.save()
        cold.prefill(BEGIN)
        state = cold.save()
        expected = answers(cold)
        cold.reset()
        cold.prefill(OTHER)
        cold.restore(state)
        assert all(map(np.array_equal, answers(cold), expected))
        cold.reset(len(BEGIN))
        assert cold.save().equals(state), "what was appended is not part of it"
    assert (state.kv_cache, state.tokens) == (held, len(BEGIN))
    assert state.size_bytes == sum(array.nbytes for array in state.arrays.values())
    with open_session() as warm:
        warm.restore(state)
        assert warm.save().equals(state)
        assert all(map(np.array_equal, answers(warm), expected))
        other = disturbed(state)
        assert not other.equals(state)
        warm.restore(other)
        assert not np.array_equal(answers(warm)[0], expected[0]), "one number matters"
    return state


def disturbed(state: CacheState) -> CacheState:
    """One number of the first layer's keys is another one."""
    name = next(iter(state.arrays))
    array = state.arrays[name].copy()
    array[0, 0, 0] += 3
    return replace(state, arrays={**state.arrays, name: array})


@pytest.mark.parametrize(("backend", "runtime", "kv_cache", "held"), CASES)
def test_a_written_artifact(
    backend: str,
    runtime: str,
    kv_cache: KVCacheDtype | None,
    held: KVCacheDtype,
    debug_quantized: QuantizedCheckpoint,
    tmp_path: Path,
) -> None:
    artifact = lowered(debug_quantized, backend, kv_cache, tmp_path)
    state = check(lambda: get_runtime(runtime).open(artifact), held)
    with get_runtime(runtime).open(artifact) as session:
        refuses(session, state)


def refuses(session: Session, state: CacheState) -> None:
    """What is of another cache."""
    others = [kind for kind in KVCacheDtype if kind is not state.kv_cache]
    with pytest.raises(SessionError, match=f"a {others[0]} cache, and the model has"):
        session.restore(replace(state, kv_cache=others[0]))
    with pytest.raises(SessionError, match=f"has 100 tokens, and the cache holds {CONTEXT}"):
        session.restore(replace(state, tokens=100))
    name, array = next(iter(state.arrays.items()))
    for wrong in (array[:-1], array[:, :-1], array.astype(np.float64), array[..., :-1]):
        with pytest.raises(SessionError, match=f"state's '{name}' is .*: it is of another model"):
            session.restore(replace(state, arrays={**state.arrays, name: wrong}))
    with pytest.raises(SessionError, match=r"state's 'more' is .*the cache has nothing"):
        session.restore(replace(state, arrays={**state.arrays, "more": array}))


@pytest.mark.executorch
@pytest.mark.parametrize("kv_cache", [KVCacheDtype.FLOAT32, KVCacheDtype.INT8])
def test_a_child_sends_and_takes_it(
    kv_cache: KVCacheDtype, debug_quantized: QuantizedCheckpoint, tmp_path: Path
) -> None:
    artifact = lowered(debug_quantized, "executorch", kv_cache, tmp_path)
    check(lambda: ChildRuntime("executorch").open(artifact), kv_cache)


def test_the_reference(debug_checkpoint: Checkpoint) -> None:
    config = debug_checkpoint.config

    def session() -> EagerSession:
        source = CachedSource(FullPrecisionSource(config, debug_checkpoint.weights))
        return EagerSession(Reference(config, source), CONTEXT)

    refuses(session(), check(session, KVCacheDtype.FLOAT32))


@pytest.mark.executorch
def test_a_program_without_names_says_so(
    debug_quantized: QuantizedCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As llama-edge wrote it before its caches had names."""
    from llama_edge.backends.executorch.program import PlanBuilder

    tensor = PlanBuilder.tensor
    monkeypatch.setattr(
        PlanBuilder, "tensor", lambda *given, **named: tensor(*given, **{**named, "name": None})
    )
    artifact = lowered(debug_quantized, "executorch", None, tmp_path)
    with get_runtime("executorch").open(artifact) as session:
        session.prefill(BEGIN)
        with pytest.raises(SessionError, match=r"has no cache of the name key\.0.*export the mod"):
            session.save()
