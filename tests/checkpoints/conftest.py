"""The tiny model as a Hugging Face folder, written anew for a test to damage."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from llama_edge.core.checkpoint import Checkpoint
from tests.checkpoint_writers import write_huggingface


@pytest.fixture(scope="session")
def debug_weights(debug_checkpoint: Checkpoint) -> dict[str, Tensor]:
    weights = debug_checkpoint.weights
    return {name: weights.read(name).to(torch.bfloat16) for name in weights}


@pytest.fixture
def hf_folder(
    debug_checkpoint: Checkpoint, debug_weights: dict[str, Tensor], tmp_path: Path
) -> Path:
    return write_huggingface(
        tmp_path / "hf", debug_checkpoint.config, debug_weights, debug_checkpoint.text
    )
