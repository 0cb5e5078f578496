"""One tiny `.pte`, lowered once."""

from pathlib import Path

import pytest

from llama_edge.backends.base import LowerOptions
from llama_edge.backends.executorch.exporter import ExecuTorchExporter
from llama_edge.core.artifact import Artifact
from llama_edge.core.progress import SilentProgress
from llama_edge.core.quantized import QuantizedCheckpoint


def lower(checkpoint: QuantizedCheckpoint, folder: Path, max_context: int = 256) -> Artifact:
    folder.mkdir(exist_ok=True)
    options = LowerOptions(max_context=max_context)
    exporter = ExecuTorchExporter()
    return exporter.lower(checkpoint, folder, options, SilentProgress())


@pytest.fixture(scope="session")
def debug_pte(
    debug_quantized: QuantizedCheckpoint, tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    return lower(debug_quantized, tmp_path_factory.mktemp("debug-pte"))
