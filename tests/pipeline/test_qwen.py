"""Qwen2.5 and Qwen3 through every target: a bias at QKV, and a norm of each head.

Sizes are tiny and weights random; what is compared with is transformers.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
import torch
import transformers

from llama_edge.backends import get_exporter
from llama_edge.backends.base import LowerOptions
from llama_edge.bundle.folder import Bundle
from llama_edge.checkpoints import load_checkpoint, load_config
from llama_edge.core.artifact import KVCacheDtype
from llama_edge.core.model_config import ModelConfig
from llama_edge.core.progress import SilentProgress
from llama_edge.models.reference import Reference
from llama_edge.models.sources import FullPrecisionSource
from llama_edge.models.weights import float_shapes
from llama_edge.pipeline.export import ExportRequest, export_model
from llama_edge.quantize import W4A8_HADAMARD
from llama_edge.quantize.rotate import rotate
from tests.checkpoint_writers import write_huggingface
from tests.conftest import DEBUG_CONFIG, MemoryWeights, debug_text

FAMILIES: Final = ("qwen2", "qwen3")
#: Of QKV, as Qwen2.5 has them: some of a key's are hundreds.
LARGE_BIAS: Final = 40.0


def config_of(family: str) -> ModelConfig:
    return replace(DEBUG_CONFIG, family=family, rope_scaling=None, rope_theta=1e6)


def weights_of(config: ModelConfig) -> MemoryWeights:
    """Biases around zero, with a large one; every head norm of its own."""
    weights = MemoryWeights(config)
    generator = torch.Generator().manual_seed(1)
    for name, tensor in weights.tensors.items():
        if name.endswith(".bias"):
            weights.tensors[name] = torch.randn(tensor.shape, generator=generator)
            weights.tensors[name][3] = LARGE_BIAS
        elif name.endswith(("q_norm.weight", "k_norm.weight")):
            weights.tensors[name] = 1 + torch.rand(tensor.shape, generator=generator)
    return weights


@pytest.fixture(scope="session", params=FAMILIES)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    config = config_of(request.param)
    return write_huggingface(folder, config, weights_of(config).tensors, debug_text())


def tokens() -> torch.Tensor:
    return torch.randint(0, 256, (60,), generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def test_the_reference_computes_what_transformers_does(source: Path) -> None:
    checkpoint = load_checkpoint(str(source))
    model = Reference(checkpoint.config, FullPrecisionSource(checkpoint.config, checkpoint.weights))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    wanted = theirs(tokens()[None]).logits[0]
    torch.testing.assert_close(model.logits(tokens()), wanted, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_rotations_change_nothing(source: Path) -> None:
    checkpoint = load_checkpoint(str(source))
    rotated = rotate(checkpoint, W4A8_HADAMARD)
    models = [
        Reference(each.config, FullPrecisionSource(each.config, each.weights))
        for each in (checkpoint, rotated)
    ]
    plain, turned = (model.logits(tokens()) for model in models)
    torch.testing.assert_close(turned, plain, rtol=1e-3, atol=2e-3)


def exported(
    source: Path, out: Path, target: str, recipe: str, kv_cache: KVCacheDtype | None = None
) -> Bundle:
    lowering = LowerOptions(kv_cache=kv_cache)
    request = ExportRequest(
        model=str(source), target=target, out=out, recipe=recipe, options=lowering
    )
    return export_model(request, SilentProgress())


@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("android", {"recipe": "w4a8-rtn"}),
        ("android", {"recipe": "w4a8-rtn", "kv_cache": KVCacheDtype.INT8}),
        ("onnx", {"recipe": "w4a8-rtn"}),
        ("ios", {"recipe": "w4-hadamard"}),
        ("onnx", {"recipe": "w4a8-hadamard"}),
    ],
    ids=["android", "android, int8 cache", "onnx", "ios", "onnx, rotated"],
)
def test_every_target_passes_its_gate(
    source: Path, tmp_path: Path, target: str, options: dict[str, Any]
) -> None:
    bundle = exported(source, tmp_path / "bundle", target, **options)
    family = json.loads((bundle.root / "manifest.json").read_text())["model"]["family"]
    assert family == bundle.manifest.model.config.family == load_config(str(source)).family
    exporter = get_exporter(bundle.manifest.backend)
    weights = exporter.open(exporter.open(bundle.root).artifact.path).weights()
    checkpoint = load_checkpoint(str(source))
    for name in float_shapes(checkpoint.config):
        if "norm" not in name and "rotation" not in name and not options["recipe"].endswith("mard"):
            assert torch.equal(weights.vector(name), checkpoint.weights.read(name)), name
