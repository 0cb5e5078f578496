"""`reset(keep)`: what follows the kept tokens is as if the others had never been read."""

from pathlib import Path

import numpy as np
import pytest

from llama_edge.backends import get_exporter
from llama_edge.backends.base import LowerOptions
from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.errors import SessionError
from llama_edge.core.progress import SilentProgress
from llama_edge.core.quantized import QuantizedCheckpoint
from llama_edge.core.session import Session
from llama_edge.models.reference import Reference
from llama_edge.models.sources import CachedSource, FullPrecisionSource
from llama_edge.runtimes import get_runtime
from llama_edge.runtimes.eager import EagerSession

BEGIN, FIRST, SECOND = [3, 17, 90, 41, 7], [8, 30, 31, 32, 33, 34], [50, 51]


def check(kept: Session, fresh: Session) -> None:
    """Two sequences with the same beginning, and the second of them alone."""
    kept.prefill(BEGIN)
    first = kept.prefill(FIRST)
    kept.decode(9)
    kept.reset(len(BEGIN))
    found = [kept.prefill(SECOND), kept.decode(9)]
    fresh.prefill(BEGIN)
    expected = [fresh.prefill(SECOND), fresh.decode(9)]
    for ours, theirs in zip(found, expected, strict=True):
        assert np.array_equal(ours, theirs)
    assert not np.allclose(first, found[0], atol=1e-3), "another sequence has other logits"
    with pytest.raises(SessionError, match="100 tokens are to be kept, and the cache holds 8"):
        kept.reset(100)
    with pytest.raises(SessionError, match="-1 tokens"):
        kept.reset(-1)
    kept.reset()
    kept.prefill(BEGIN)
    assert np.array_equal(kept.prefill(SECOND), expected[0])


@pytest.mark.parametrize("backend", ["executorch", "onnx", "coreml"])
def test_a_written_artifact(
    backend: str, debug_quantized: QuantizedCheckpoint, tmp_path: Path
) -> None:
    options = LowerOptions(max_context=64)
    artifact = get_exporter(backend).lower(debug_quantized, tmp_path, options, SilentProgress())
    runtime = get_runtime(backend)
    with runtime.open(artifact) as kept, runtime.open(artifact) as fresh:
        check(kept, fresh)


def test_the_reference(debug_checkpoint: Checkpoint) -> None:
    config = debug_checkpoint.config

    def session() -> EagerSession:
        source = CachedSource(FullPrecisionSource(config, debug_checkpoint.weights))
        return EagerSession(Reference(config, source), 64)

    check(session(), session())
