"""A head of a few rows, as Llama Guard's pruned release has one, through every target."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
import transformers

from llama_edge.backends import get_exporter
from llama_edge.checkpoints import load_checkpoint
from llama_edge.core.errors import CheckFailedError, CheckpointError, ConfigError, UsageError
from llama_edge.core.progress import SilentProgress
from llama_edge.models.blocks import NOT_COMPUTED, OutputRows
from llama_edge.models.reference import Reference
from llama_edge.models.sources import FullPrecisionSource
from llama_edge.models.weight_names import LM_HEAD
from llama_edge.pipeline.export import ExportRequest, export_model
from llama_edge.runtimes import get_runtime
from tests.checkpoint_writers import write_huggingface
from tests.conftest import DEBUG_CONFIG, MemoryWeights, debug_text

WHOLE: Final = replace(DEBUG_CONFIG, tie_word_embeddings=False)
#: Not in order: what a row stands for is the list's business.
ROWS: Final = (255, 0, 2, 17, 99, 3, 128, 54, 200, 31, 7, 77, 64, 250, 5, 6, 90, 91, 1, 40)
CUT: Final = replace(WHOLE, output_rows=ROWS)
OTHERS: Final = sorted(set(range(CUT.vocab_size)) - set(ROWS))


@pytest.fixture(scope="session")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    weights = dict(MemoryWeights(WHOLE).tensors)
    weights[LM_HEAD] = weights[LM_HEAD][list(ROWS)].contiguous()
    return write_huggingface(tmp_path_factory.mktemp("cut"), CUT, weights, debug_text())


def tokens() -> torch.Tensor:
    return torch.randint(0, 256, (50,), generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def test_the_logits_are_those_of_transformers_whole_head(cut: Path, tmp_path: Path) -> None:
    whole = write_huggingface(tmp_path / "whole", WHOLE, MemoryWeights(WHOLE).tensors, debug_text())
    theirs = transformers.LlamaForCausalLM.from_pretrained(whole, dtype=torch.float32)
    wanted = theirs(tokens()[None]).logits[0][:, list(ROWS)]
    checkpoint = load_checkpoint(str(cut))
    model = Reference(checkpoint.config, FullPrecisionSource(checkpoint.config, checkpoint.weights))
    logits = model.logits(tokens())
    torch.testing.assert_close(logits[:, list(ROWS)], wanted, rtol=1e-4, atol=1e-4)
    assert (logits[:, OTHERS] == NOT_COMPUTED).all()


def request(cut: Path, target: str, out: Path, recipe: str) -> ExportRequest:
    text = out.parent / "text.txt"
    text.write_text("The lighthouse keeper counts the ships of the evening. " * 400)
    return ExportRequest(
        model=str(cut),
        target=target,
        out=out,
        recipe=recipe,
        calibration=(text,) if recipe == "w4-hadamard" else (),
    )


TARGETS: Final = [
    ("android", "w4a8-rtn"),
    ("onnx", "w4a8-rtn"),
    ("onnx", "w4-hadamard"),
    ("ios", "w4-hadamard"),
]


@pytest.mark.parametrize(("target", "recipe"), TARGETS)
def test_every_target_writes_it(cut: Path, tmp_path: Path, target: str, recipe: str) -> None:
    bundle = export_model(request(cut, target, tmp_path / "bundle", recipe), SilentProgress())
    exporter = get_exporter(bundle.manifest.backend)
    artifact = exporter.open(bundle.root).artifact
    assert artifact.config.output_rows == ROWS
    assert exporter.open(artifact.path).weights().quantized(LM_HEAD).shape == (len(ROWS), 96)
    with get_runtime(bundle.manifest.backend).open(artifact) as session:
        logits = session.prefill([3, 17, 41, 99])
    assert logits.shape == (CUT.vocab_size,)
    assert (logits[OTHERS] == NOT_COMPUTED).all()
    assert (np.abs(logits[list(ROWS)]) < 100).all()


@pytest.mark.parametrize(("target", "recipe"), TARGETS[::3])
def test_logits_in_other_places_do_not_pass(
    cut: Path, tmp_path: Path, target: str, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = OutputRows.places
    monkeypatch.setattr(OutputRows, "places", lambda block: right(block).roll(1))
    with pytest.raises(CheckFailedError):
        export_model(request(cut, target, tmp_path / "bundle", recipe), SilentProgress())


@pytest.mark.parametrize(
    ("rows", "message"),
    [((), "has 0 entries"), ((1, 256), "below vocab_size 256"), ((1, 1), "each once")],
)
def test_rows_that_cannot_be_are_refused(rows: tuple[int, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(WHOLE, output_rows=rows)


def test_a_tied_head_is_refused() -> None:
    with pytest.raises(ConfigError, match="tie_word_embeddings"):
        replace(DEBUG_CONFIG, output_rows=(1, 2))


def test_a_head_of_another_size_is_refused(tmp_path: Path) -> None:
    weights: dict[str, Any] = MemoryWeights(WHOLE).tensors
    folder = write_huggingface(tmp_path / "model", CUT, weights, debug_text())
    with pytest.raises(CheckpointError, match=r"lm_head.weight has shape \(256, 96\)"):
        load_checkpoint(str(folder))


@pytest.mark.onnx
def test_it_does_not_write_its_own_calibration_text(cut: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--calibration"):
        export_model(request(cut, "onnx", tmp_path / "bundle", "w4a8-gptq"), SilentProgress())
