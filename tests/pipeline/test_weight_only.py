"""A recipe without activation quantization, the whole way: only there can an artifact be exact."""

from dataclasses import replace
from pathlib import Path

import pytest

from llama_edge.backends.base import LowerOptions
from llama_edge.bundle.examine import examine
from llama_edge.bundle.folder import Bundle
from llama_edge.bundle.manifest import Verdict
from llama_edge.core.errors import UsageError
from llama_edge.core.progress import SilentProgress
from llama_edge.gate.tolerances import Tolerances
from llama_edge.pipeline.export import export_model
from tests.conftest import debug_request

pytestmark = pytest.mark.onnx


@pytest.fixture(scope="module")
def bundle(debug_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("weight-only") / "bundle"
    request = replace(debug_request(debug_folder, "onnx", out), recipe="w4-hadamard")
    return export_model(request, SilentProgress())


def test_the_rotated_artifact_is_exact_end_to_end(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert manifest.verdict is Verdict.PASSED
    assert examine(bundle.root, None, SilentProgress()).findings == ()
    assert manifest.artifact.activation_quantization == "none"
    assert manifest.recipe.activation_bits is None
    assert manifest.model.config.down_proj_rotation is not None
    assert 0 <= manifest.parity["mean_kl"] < Tolerances().weight_only_mean_kl == 1e-6


@pytest.mark.parametrize(
    ("target", "accuracy_level", "message"),
    [
        ("android", None, "w4-hadamard leaves activations in floating point.*--target ios or onnx"),
        ("onnx", 4, "--accuracy-level 4 rounds activations to int8"),
    ],
)
def test_what_contradicts_the_recipe_is_refused_before_any_work(
    target: str,
    accuracy_level: int | None,
    message: str,
    debug_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def work(*_: object) -> None:
        raise AssertionError("the model was quantized")

    monkeypatch.setattr("llama_edge.pipeline.export.quantize_with_cache", work)
    request = replace(
        debug_request(debug_folder, target, tmp_path / "bundle"),
        recipe="w4-hadamard",
        options=LowerOptions(accuracy_level=accuracy_level),
    )
    with pytest.raises(UsageError, match=message) as caught:
        export_model(request, SilentProgress())
    assert caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []
