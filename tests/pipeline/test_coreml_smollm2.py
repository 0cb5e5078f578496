"""The real model for iOS: what the README promises of the written package, through our runtime."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from llama_edge.backends import get_exporter
from llama_edge.bundle.folder import Bundle, list_tensors
from llama_edge.core.progress import SilentProgress
from llama_edge.core.quantized import QuantizedCheckpoint
from llama_edge.core.session import FloatArray, Session
from llama_edge.debug.inspect import inspect
from llama_edge.evaluate.evaluate import evaluate
from llama_edge.evaluate.report import EvalRequest
from llama_edge.gate.end_to_end import artifact_logits
from llama_edge.gate.prompt_texts import GATE_TEXTS
from llama_edge.gate.prompts import DECODE_STEPS, MIN_PROMPT_TOKENS, Prompt, gate_prompts
from llama_edge.models.reference import Reference
from llama_edge.models.sources import CachedSource, DequantizedSource
from llama_edge.pipeline.export import ExportRequest, export_model
from llama_edge.runtimes import get_runtime
from llama_edge.text.tokenizer import Tokenizer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ios_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """SmolLM2 for iOS, through the whole pipeline; takes minutes."""
    out = tmp_path_factory.mktemp("smollm2") / "ios"
    request = ExportRequest(model="smollm2-135m", target="ios", recipe="w4a8-rtn", out=out)
    return export_model(request, SilentProgress())


def logits(session: Session, prompt: Prompt, vocab_size: int) -> FloatArray:
    with session:
        return artifact_logits(session, prompt, vocab_size)


@torch.no_grad()
def test_exact_logits_are_the_references(
    ios_bundle: Bundle, smollm2_quantized: QuantizedCheckpoint
) -> None:
    artifact = get_exporter("coreml").open(ios_bundle.root).artifact
    prompt = gate_prompts(Tokenizer(smollm2_quantized.text), artifact.max_context)[0]
    assert len(prompt.tokens) >= MIN_PROMPT_TOKENS
    assert len(prompt.continuation) == DECODE_STEPS == 64
    config = smollm2_quantized.config
    source = CachedSource(DequantizedSource(smollm2_quantized.weights))
    expected = Reference(config, source).logits(torch.tensor(prompt.sequence)).numpy()
    found = logits(get_runtime("coreml").open(artifact), prompt, config.vocab_size)
    assert np.abs(found - expected).max() <= 1e-3
    np.testing.assert_array_equal(found.argmax(-1), expected.argmax(-1))
    # The check can fail: the same numbers, each rounded to float16, are further away.
    rounded = logits(get_runtime("coreml-fp16").open(artifact), prompt, config.vocab_size)
    assert np.abs(rounded - expected).max() > 1e-3


def test_rounding_to_float16_loses_no_quality(ios_bundle: Bundle, tmp_path: Path) -> None:
    text = tmp_path / "answers.txt"
    text.write_text("\n".join(one.answer for one in GATE_TEXTS), encoding="utf-8")
    request = EvalRequest(subjects=(str(ios_bundle.root),), texts=(text,), window=64, max_windows=4)
    reports = [
        evaluate(replace(request, runtime=runtime), SilentProgress())
        for runtime in ("coreml", "coreml-fp16")
    ]
    exact, half = (report.subjects[0].results[0].metrics["mean_kl"].value for report in reports)
    assert exact > 0.1, "of rounding to nearest on four bits"
    assert exact != half
    assert abs(half - exact) <= 0.01


def test_codes_are_those_that_were_given(
    ios_bundle: Bundle, smollm2_quantized: QuantizedCheckpoint
) -> None:
    given = list_tensors(smollm2_quantized.weights, SilentProgress())
    assert len(given) == 210 + 2
    assert inspect(ios_bundle.root, SilentProgress()).tensors == given


def test_every_weight_is_stored_as_codes(ios_bundle: Bundle) -> None:
    placement = ios_bundle.manifest.placement
    assert placement.linears == placement.linears_delegated == 211
