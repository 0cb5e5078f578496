"""The real model, exported once for each target: what the README promises."""

import json
from pathlib import Path

import pytest

from llama_edge.backends.base import LowerOptions
from llama_edge.bundle.doctor import diagnose
from llama_edge.bundle.folder import Bundle, list_tensors
from llama_edge.core.progress import SilentProgress
from llama_edge.core.quantized import QuantizedCheckpoint
from llama_edge.debug.inspect import inspect
from llama_edge.generate.assistant import AnswerConfig
from llama_edge.generate.run import PromptRequest, Run
from llama_edge.pipeline.export import ExportRequest, export_model


def test_all_codes_are_the_same_and_named_as_in_hugging_face(
    android_bundle: Bundle, onnx_bundle: Bundle, smollm2_quantized: QuantizedCheckpoint
) -> None:
    given = list_tensors(smollm2_quantized.weights, SilentProgress())
    assert len(given) == 210 + 2
    assert inspect(android_bundle.root / "model.pte", SilentProgress()).tensors == given
    assert inspect(onnx_bundle.root, SilentProgress()).tensors == given


def test_every_linear_is_delegated(android_bundle: Bundle) -> None:
    placement = android_bundle.manifest.placement
    assert placement.linears == placement.linears_delegated == 211
    assert placement.weight_bytes == placement.weight_bytes_delegated


@pytest.mark.parametrize("target", ["android_bundle", "onnx_bundle"])
def test_parity_is_within_the_noise(target: str, request: pytest.FixtureRequest) -> None:
    bundle: Bundle = request.getfixturevalue(target)
    report = json.loads((bundle.root / "parity.json").read_text())
    found = report["parity"]["end_to_end"]
    assert found["artifact"]["positions"] >= 4 * (64 + 64)
    assert found["artifact"]["mean_kl"] <= 2 * found["noise_floor"] + 5e-6
    drift = abs(found["full_artifact_kl"] - found["full_reference_kl"])
    assert drift <= 0.1 * found["full_reference_kl"]
    languages = {prompt["language"] for prompt in report["fidelity"]["prompts"]}
    assert languages == {"en", "de", "fr", "it", "pt", "hi", "es", "th"}


@pytest.mark.parametrize("target", ["android_bundle", "onnx_bundle"])
def test_doctor_finds_nothing(target: str, request: pytest.FixtureRequest) -> None:
    bundle: Bundle = request.getfixturevalue(target)
    assert diagnose(bundle.root, None, SilentProgress()).findings == ()


@pytest.mark.parametrize("target", ["android_bundle", "onnx_bundle"])
def test_answers_through_the_chat_template(target: str, request: pytest.FixtureRequest) -> None:
    bundle: Bundle = request.getfixturevalue(target)
    asked = PromptRequest(
        prompt="What is the capital of France?", config=AnswerConfig(max_new_tokens=12)
    )
    assert "Paris" in "".join(Run(bundle.root, asked))


@pytest.mark.slow
def test_without_activation_rounding_parity_is_exact(tmp_path: Path) -> None:
    options = LowerOptions(accuracy_level=0)
    request = ExportRequest(
        model="smollm2-135m", target="onnx", out=tmp_path / "level-0", options=options
    )
    parity = export_model(request, SilentProgress()).manifest.parity
    assert parity["mean_kl"] <= 1e-6
    assert parity["top1_agreement"] == 1.0
