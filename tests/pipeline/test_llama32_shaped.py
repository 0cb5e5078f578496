"""Meta's real tokenizer and template on a random Llama of 3.2's shape, the whole way."""

from pathlib import Path

import pytest

from llama_edge.backends.base import LowerOptions
from llama_edge.bundle.manifest import Verdict
from llama_edge.core.progress import SilentProgress
from llama_edge.pipeline.export import ExportRequest, export_model


@pytest.mark.slow
@pytest.mark.parametrize("target", ["android", "onnx"])
def test_llama_3_2_s_text_goes_the_whole_way(
    target: str, llama32_shaped: Path, tmp_path: Path
) -> None:
    request = ExportRequest(
        model=str(llama32_shaped),
        target=target,
        recipe="w4a8-rtn",
        out=tmp_path / "bundle",
        options=LowerOptions(max_context=512),
    )
    manifest = export_model(request, SilentProgress()).manifest
    assert manifest.verdict is Verdict.PASSED
    assert manifest.parity["passed"] is True
    assert manifest.model.config.vocab_size == 128256
    scaling = manifest.model.config.rope_scaling
    assert scaling is not None
    assert scaling.factor == 32.0
    # <|end_of_text|>, <|eom_id|> and <|eot_id|>: an app that knows one of them never stops.
    assert manifest.text.eos_token_ids == (128001, 128008, 128009)
