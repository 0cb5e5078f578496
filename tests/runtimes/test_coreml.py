from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from llama_edge.core.errors import SessionError
from llama_edge.core.model import CachedSource, DequantizedSource, KVCache, Llama
from llama_edge.core.progress import SilentProgress
from llama_edge.core.session import FloatArray
from llama_edge.core.types import ActivationQuantization, Artifact, QuantizedCheckpoint
from llama_edge.export.base import LowerOptions
from llama_edge.export.coreml.exporter import CoreMLExporter
from llama_edge.runtimes.coreml.interpreter import Precision
from llama_edge.runtimes.coreml.session import CoreMLInterpreterRuntime

TOKENS = [(7 * position * position + 3 * position) % 256 for position in range(100)]
PREFILL = 70


@pytest.fixture(scope="module")
def package(
    debug_quantized: QuantizedCheckpoint, tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    """The debug model, through the exporter."""
    options = LowerOptions(max_context=128)
    folder = tmp_path_factory.mktemp("coreml")
    return CoreMLExporter().lower(debug_quantized, folder, options, SilentProgress())


def run(
    artifact: Artifact, tokens: Sequence[int], prefill: int, precision: Precision = Precision.EXACT
) -> FloatArray:
    """Logits after every token: one prefill, then token by token."""
    with CoreMLInterpreterRuntime(precision).open(artifact) as session:
        rows = [session.prefill_logits(tokens[:prefill])]
        rows += [session.decode(token)[None] for token in tokens[prefill:]]
    return np.concatenate(rows)


def reference(checkpoint: QuantizedCheckpoint) -> Llama:
    source = CachedSource(DequantizedSource(checkpoint.weights))
    return Llama(checkpoint.config, source, ActivationQuantization.NONE)


@pytest.mark.parametrize("prefill", [1, PREFILL, len(TOKENS)])
def test_prefill_and_decode_give_the_references_logits(
    package: Artifact, debug_quantized: QuantizedCheckpoint, prefill: int
) -> None:
    logits = reference(debug_quantized).logits(torch.tensor(TOKENS)).numpy()
    np.testing.assert_allclose(run(package, TOKENS, prefill), logits, atol=2e-5)
