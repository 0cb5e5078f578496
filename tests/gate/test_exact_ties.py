"""Models whose activations lie on the lattice of the int8 embedding: ties are no faults.

Every norm of a freshly initialised Llama is one, so that what the first block rounds are embedding
codes times a number, and many of them are half-way between two.
"""

from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest
import torch
import transformers

from llama_edge.backends import get_exporter
from llama_edge.backends.base import LowerOptions
from llama_edge.core.artifact import ActivationQuantization, Artifact
from llama_edge.core.packing import QuantizedTensor
from llama_edge.core.progress import SilentProgress
from llama_edge.core.quantized import QuantizedWeights
from llama_edge.core.session import BlockTrace
from llama_edge.gate.blocks import BlocksReport, check_blocks
from llama_edge.gate.prompts import gate_prompts
from llama_edge.gate.tolerances import Tolerances
from llama_edge.models.reference import Reference
from llama_edge.models.sources import CachedSource, DequantizedSource
from llama_edge.pipeline.export import ExportRequest, export_model
from llama_edge.runtimes.child import ChildRuntime
from llama_edge.text.text_assets import write_text_assets
from llama_edge.text.tokenizer import Tokenizer
from tests.conftest import debug_text
from tests.gate.faulty_models import ChangedWeights, calls_of

FIRST: Final = "model.layers.0.self_attn"


def fresh(folder: Path, seed: int, norm: float = 1.0) -> Path:
    """As transformers initialises it, every norm a constant."""
    transformers.set_seed(seed)
    config = transformers.LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=256,
        max_position_embeddings=512,
    )
    model = transformers.LlamaForCausalLM(config)
    for name, weight in model.named_parameters():
        if "norm" in name:
            torch.nn.init.constant_(weight, norm)
    model.save_pretrained(folder)
    write_text_assets(folder, debug_text())
    return folder


def exported(model: Path, target: str, recipe: str) -> Path:
    request = ExportRequest(
        model=str(model),
        target=target,
        recipe=recipe,
        out=model.parent / f"{target}-{recipe}",
        options=LowerOptions(max_context=512),
    )
    return export_model(request, SilentProgress()).root


@pytest.mark.executorch
@pytest.mark.parametrize(
    ("seed", "norm", "recipe"),
    [(0, 1.0, "w4a8-rtn"), (1, 1.0, "w4a8-gptq"), (2, 0.5, "w4a8-rtn")],
)
def test_a_fresh_model_passes(tmp_path: Path, seed: int, norm: float, recipe: str) -> None:
    exported(fresh(tmp_path / "model", seed, norm), "android", recipe)


@pytest.mark.onnx
def test_a_fresh_model_passes_in_onnx_runtime(tmp_path: Path) -> None:
    exported(fresh(tmp_path / "model", 3), "onnx", "w4a8-rtn")


class Traced:
    """A written artifact, and what it computes on the gate's prompts."""

    def __init__(self, root: Path) -> None:
        written = get_exporter("executorch").open(root)
        self.artifact: Artifact = written.artifact
        self.weights: QuantizedWeights = written.weights()
        prompts = gate_prompts(Tokenizer(debug_text()), self.artifact.max_context)
        with ChildRuntime("executorch") as runtime:
            self.traces: list[BlockTrace] = [
                runtime.trace(self.artifact, calls_of(prompt.tokens, prompt.continuation[:8]))
                for prompt in prompts
            ]

    def judged(self, weights: QuantizedWeights, **config: float) -> BlocksReport:
        """Compared with a reference that has these weights: the artifact has the fault then."""
        source = CachedSource(DequantizedSource(weights))
        reference = Reference(
            replace(self.artifact.config, **config),  # type: ignore[arg-type]
            source,
            ActivationQuantization.INT8_PER_TOKEN,
        )
        return check_blocks(reference, self.traces, Tolerances(), SilentProgress())


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Traced:
    model = fresh(tmp_path_factory.mktemp("fresh") / "model", 4)
    return Traced(exported(model, "android", "w4a8-rtn"))


@pytest.mark.executorch
def test_ties_are_taken_back(traced: Traced) -> None:
    report = traced.judged(traced.weights)
    assert report.passed
    first = next(block for block in report.blocks if block.name == "layers.0.attention")
    assert first.flips > 20
    assert first.prefill.raw_max > 1e-3
    assert first.severity < 0.1


def one_code(value: QuantizedTensor) -> QuantizedTensor:
    codes = value.codes.clone()
    codes[3, 5] += -1 if codes[3, 5] > 0 else 1
    return replace(value, codes=codes)


def one_scale(value: QuantizedTensor) -> QuantizedTensor:
    """The last bit of one scale of bfloat16."""
    bits = value.scales.view(torch.int16).clone()
    bits[7, 0] += 1
    return replace(value, scales=bits.view(torch.bfloat16))


def rolled(value: QuantizedTensor) -> QuantizedTensor:
    return value.rows(torch.arange(value.shape[0]).roll(1))


FAULTS: Final = {
    f"{part}, {change.__name__}": (f"{FIRST}.{part}.weight", change)
    for part in ("q_proj", "k_proj", "v_proj")
    for change in (one_code, one_scale, rolled)
}


@pytest.mark.executorch
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_among_ties_is_found(traced: Traced, fault: str) -> None:
    name, change = FAULTS[fault]
    report = traced.judged(ChangedWeights(traced.weights, name, change))
    assert [block.name for block in report.wrong] == ["layers.0.attention"], [
        (block.name, block.severity) for block in report.blocks
    ]


@pytest.mark.executorch
def test_another_eps_among_ties_is_found(traced: Traced) -> None:
    wrong = {block.name for block in traced.judged(traced.weights, rms_norm_eps=1e-5).wrong}
    assert "layers.0.attention" in wrong
