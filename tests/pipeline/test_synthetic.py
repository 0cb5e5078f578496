"""Random checkpoints go the whole way like any other."""

from pathlib import Path

import pytest

from llama_edge.bundle.manifest import Verdict
from llama_edge.checkpoints.synthetic import write_synthetic
from llama_edge.core.progress import SilentProgress
from llama_edge.pipeline.export import export_model
from tests.checkpoints.test_synthetic import SMALL
from tests.conftest import debug_request


@pytest.mark.parametrize("target", [pytest.param("android", marks=pytest.mark.slow), "onnx"])
def test_a_random_checkpoint_passes_the_gate(target: str, tmp_path: Path) -> None:
    model = tmp_path / "random"
    model.mkdir()
    write_synthetic(model, "small", SMALL, 0, SilentProgress())
    manifest = export_model(
        debug_request(model, target, tmp_path / target), SilentProgress()
    ).manifest
    assert manifest.verdict is Verdict.PASSED
    assert manifest.parity["passed"] is True
    # Three ends, as Llama 3 has them, at the end of this small vocabulary.
    assert manifest.text.eos_token_ids == (513, 520, 521)
