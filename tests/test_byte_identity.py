"""What is written for the debug model has the bytes that were recorded."""

import json
from pathlib import Path

import pytest

from llama_edge.core.checkpoint import Checkpoint
from tests.byte_identity import hashes

#: Made by `python -m tests.byte_identity` with the debug model's folder; see there.
RECORDED = Path(__file__).with_suffix(".json")


@pytest.mark.executorch
@pytest.mark.onnx
@pytest.mark.coreml
def test_no_byte_of_the_debug_model_has_changed(debug_checkpoint: Checkpoint) -> None:
    """A difference that is meant is recorded again, and explained in the commit."""
    wanted = json.loads(RECORDED.read_text(encoding="utf-8"))
    assert hashes(debug_checkpoint, ["w4a8-rtn"]) == wanted
    assert len(wanted) > 25
