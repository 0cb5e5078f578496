"""What the interpreter holds in float32: counted, since a process's memory has too many owners."""

import gc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from llama_edge.backends.base import LowerOptions
from llama_edge.backends.coreml.exporter import CoreMLExporter
from llama_edge.core.artifact import Artifact
from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.progress import SilentProgress
from llama_edge.core.quantized import QuantizedCheckpoint
from llama_edge.formats.quantized_checkpoint import matrix_shape, quantized_names
from llama_edge.models.weight_names import LM_HEAD
from llama_edge.runtimes.coreml import interpreter, weights
from llama_edge.runtimes.coreml.session import CoreMLInterpreterRuntime
from tests.conftest import DEBUG_CONFIG

RUNTIME = CoreMLInterpreterRuntime()
TOKENS = [5, 9, 2, 7]
#: Elements that are made at a time where a weight is not kept: less than any of the debug model.
CHUNK = 1024
#: All of the debug model's matrices in float32; a tied head is none of its own.
ALL_BYTES = 4 * sum(
    prod(matrix_shape(DEBUG_CONFIG, name))
    for name in quantized_names(DEBUG_CONFIG)
    if name != LM_HEAD
)


@dataclass
class Live:
    """Bytes of the tensors that weights made and that nobody has let go of."""

    most: int = 0
    _arrays: list["weakref.ref[NDArray[Any]]"] = field(default_factory=list)

    def now(self) -> int:
        alive = [array for each in self._arrays if (array := each()) is not None]
        self._arrays = [weakref.ref(array) for array in alive]
        return sum(array.nbytes for array in alive)

    def watch(self, made: Tensor) -> Tensor:
        # A tensor's memory outlives the Python object; an array below it lives as long.
        array = made.numpy().copy()
        self._arrays.append(weakref.ref(array))
        self.most = max(self.most, self.now())
        return torch.from_numpy(array)


@pytest.fixture(scope="module")
def package(
    debug_quantized: QuantizedCheckpoint, tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    folder, options = tmp_path_factory.mktemp("coreml"), LowerOptions(max_context=64)
    return CoreMLExporter().lower(debug_quantized, folder, options, SilentProgress())


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> Iterator[Live]:
    """Every float32 tensor that a weight makes is counted; no garbage is collected."""
    watched = Live()
    rows: Callable[[weights.BlockwiseWeight, int, int], Tensor] = weights.BlockwiseWeight.rows
    monkeypatch.setattr(
        weights.BlockwiseWeight,
        "rows",
        lambda weight, start, stop: watched.watch(rows(weight, start, stop)),
    )
    monkeypatch.setattr(weights, "CHUNK_ELEMENTS", CHUNK)
    gc.disable()
    yield watched
    gc.enable()


def run(package: Artifact) -> list[NDArray[np.float32]]:
    with RUNTIME.open(package) as session:
        return [session.prefill_logits(TOKENS), session.decode(3), session.decode(4)]


def with_budget(size_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = interpreter.Interpreter.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "budget_bytes", size_bytes)


@pytest.mark.parametrize("budget", [0, ALL_BYTES // 2])
def test_what_is_alive_is_within_the_budget_and_a_chunk(
    budget: int, package: Artifact, live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = run(package)
    assert live.most == ALL_BYTES, "the debug model fits, so all of it is kept"
    live.most = 0
    with_budget(budget, monkeypatch)
    for found, expected in zip(run(package), plain, strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    limit = budget + CHUNK * weights.FLOAT32_BYTES
    assert 0 < live.most <= limit
    # A weight that is kept without asking is seen.
    monkeypatch.setattr(weights.MemoryBudget, "take", lambda *_: True)
    run(package)
    assert live.most == ALL_BYTES > limit


def test_a_closed_session_leaves_no_weight_behind(
    package: Artifact, live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        run(package)
        RUNTIME.trace(package, [TOKENS, [3]])
        assert (live.now(), live.most) == (0, ALL_BYTES)
    # A cycle of references, which only a collection finds, is seen: both sessions' are there.
    make = weights.WeightStore.__init__

    def in_a_cycle(store: Any, size_bytes: int) -> None:  # noqa: ANN401
        make(store, size_bytes)
        store.budget.store = store

    monkeypatch.setattr(weights.WeightStore, "__init__", in_a_cycle)
    run(package)
    run(package)
    assert (live.now(), live.most) == (2 * ALL_BYTES, 2 * ALL_BYTES)


def test_the_smallest_model_fits_into_the_default_budget(smollm2: Checkpoint) -> None:
    """Its gate makes each weight once; what the constant says of itself is counted here."""
    config = smollm2.config
    names = [name for name in quantized_names(config) if name != LM_HEAD]
    needed = 4 * sum(prod(matrix_shape(config, name)) for name in names)
    assert round(needed / 2**20) == 513
    assert needed < weights.BUDGET_BYTES == 640 << 20
