"""The exact shapes of Llama 3.2 and Llama Guard 3 with Meta's tokenizer go the whole way.

One layer of each; all layers, and every shape for every target, are `benchmarks/scale.py`'s.
"""

from dataclasses import replace
from pathlib import Path

import pytest

from llama_edge.backends.base import LowerOptions
from llama_edge.bundle.manifest import Verdict
from llama_edge.checkpoints.synthetic import write_synthetic
from llama_edge.core.model_shapes import get_shape
from llama_edge.core.progress import SilentProgress
from llama_edge.gate.prompts import PromptPlan
from llama_edge.pipeline.export import ExportRequest, export_model
from tests.checkpoint_writers import llama3_text

#: As in `benchmarks/scale.py`: the verdict of the gate's own prompts costs minutes here.
PROMPTS = PromptPlan(gate=1, fidelity=1, max_prompt_tokens=16, decode_steps=8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "target"),
    [("llama-3.2-1b", "android"), ("llama-3.2-3b", "onnx"), ("llama-guard-3-1b", "ios")],
)
def test_a_layer_of_the_real_shape_goes_the_whole_way(
    name: str, target: str, tmp_path: Path
) -> None:
    config = replace(get_shape(name).config, num_hidden_layers=1)
    model = tmp_path / "model"
    model.mkdir()
    write_synthetic(model, name, config, 0, SilentProgress(), llama3_text())
    request = ExportRequest(
        model=str(model),
        target=target,
        recipe="w4a8-rtn",
        out=tmp_path / "bundle",
        options=LowerOptions(max_context=512),
        prompts=PROMPTS,
    )
    manifest = export_model(request, SilentProgress()).manifest
    assert manifest.verdict is Verdict.PASSED
    found = manifest.model.config
    assert found == config
    assert (found.vocab_size, found.rope_scaling is None) == (128256, False)
    # One table for embedding and head where the published model has one, else two.
    tables = {tensor.codes_sha256 for tensor in manifest.tensors if tensor.shape[0] == 128256}
    assert len(tables) == (1 if found.tie_word_embeddings else 2)
    assert manifest.text.eos_token_ids == (128001, 128008, 128009)
    assert manifest.text.chat_template is not None
