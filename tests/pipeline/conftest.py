from collections.abc import Mapping
from pathlib import Path

import pytest

from llama_edge.core.progress import SilentProgress
from llama_edge.core.types import Checkpoint
from llama_edge.export.base import LowerOptions
from llama_edge.export.bundle import Bundle
from llama_edge.pipeline.export import ExportRequest, export_model
from tests.checkpoint_writers import write_huggingface
from tests.conftest import DEBUG_CONFIG, MemoryWeights


@pytest.fixture(scope="session")
def debug_folder(debug_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The debug model as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("debug") / "tiny-llama"
    weights = MemoryWeights(DEBUG_CONFIG).tensors
    return write_huggingface(folder, DEBUG_CONFIG, weights, debug_checkpoint.text)


@pytest.fixture(scope="session")
def debug_bundles(
    debug_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Bundle]:
    """The debug model, exported for each target through the whole pipeline."""
    place = tmp_path_factory.mktemp("bundles")
    return {
        target: export_model(debug_request(debug_folder, target, place / target), SilentProgress())
        for target in ("android", "onnx")
    }


def debug_request(model: Path, target: str, out: Path, *, force: bool = False) -> ExportRequest:
    options = LowerOptions(max_context=512)
    return ExportRequest(model=str(model), target=target, out=out, options=options, force=force)
