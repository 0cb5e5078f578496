"""int8 block linears among int4 ones, the whole way to each target's file and back."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from llama_edge.backends.base import LowerOptions
from llama_edge.bundle.examine import examine
from llama_edge.bundle.folder import Bundle
from llama_edge.bundle.manifest import Verdict
from llama_edge.cli.report import print_bundles
from llama_edge.core.errors import ArtifactError, QuantizeError
from llama_edge.core.packing import QuantizedTensor, concatenate_rows
from llama_edge.core.progress import SilentProgress
from llama_edge.core.quantized import QuantizedCheckpoint
from llama_edge.debug.inspect import inspect
from llama_edge.formats.quantized_checkpoint import CONFIG_FILE, read_quantized_checkpoint
from llama_edge.models.weight_names import EMBEDDING, LM_HEAD
from llama_edge.pipeline.export import export_model
from llama_edge.pipeline.quantize import QuantizeRequest, quantize_model
from llama_edge.quantize import W4A8_MIXED
from tests.conftest import debug_request

pytestmark = [pytest.mark.executorch, pytest.mark.onnx]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file with a larger budget: a tenth of so small a model is one linear."""
    path = tmp_path_factory.mktemp("recipe") / "mixed.json"
    path.write_text('{"base": "w4a8-mixed", "name": "mixed-for-tests", "extra_bytes": 0.25}')
    return str(path)


@pytest.fixture(scope="module")
def bundles(
    recipe: str, debug_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Bundle]:
    place = tmp_path_factory.mktemp("mixed")

    def export(target: str, accuracy_level: int | None) -> Bundle:
        request = replace(
            debug_request(debug_folder, target, place / f"{target}-{accuracy_level}"),
            recipe=recipe,
            options=LowerOptions(max_context=512, accuracy_level=accuracy_level),
        )
        return export_model(request, SilentProgress())

    return {
        "android": export("android", None),
        "onnx": export("onnx", None),
        "onnx, float activations": export("onnx", 0),
    }


def test_every_target_passes_the_gate_with_the_same_codes(bundles: Mapping[str, Bundle]) -> None:
    manifests = [bundle.manifest for bundle in bundles.values()]
    assert all(manifest.verdict is Verdict.PASSED for manifest in manifests)
    assert len({manifest.tensors for manifest in manifests}) == 1
    assert len({manifest.mixed_precision for manifest in manifests}) == 1
    assert bundles["onnx, float activations"].manifest.parity["mean_kl"] < 1e-6
    for bundle in bundles.values():
        recipe = replace(W4A8_MIXED, name="mixed-for-tests", extra_bytes=0.25)
        assert bundle.manifest.recipe == replace(recipe, summary=bundle.manifest.recipe.summary)
        assert examine(bundle.root, None, SilentProgress()).findings == ()


def test_the_manifest_says_which_linears_and_what_they_cost(
    bundles: Mapping[str, Bundle],
) -> None:
    for bundle in bundles.values():
        mixed = bundle.manifest.mixed_precision
        assert mixed is not None
        assert 0 < mixed.spent_bytes <= mixed.budget_bytes
        wide = [
            entry.name
            for entry in bundle.manifest.tensors
            if entry.bits == 8 and entry.name not in (EMBEDDING, LM_HEAD)
        ]
        assert wide == list(mixed.int8_linears)
        assert {entry.bits for entry in bundle.manifest.tensors} == {4, 8}


def test_inspect_reads_the_widths_out_of_the_files(bundles: Mapping[str, Bundle]) -> None:
    for bundle in bundles.values():
        assert inspect(bundle.root, SilentProgress()).tensors == bundle.manifest.tensors


def test_the_table_shows_widths_and_what_they_cost(
    bundles: Mapping[str, Bundle], capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = bundles["onnx"]
    mixed = bundle.manifest.mixed_precision
    assert mixed is not None
    wide = len(mixed.int8_linears)
    print_bundles([bundle])
    shown = " ".join(capsys.readouterr().out.split())
    assert f"block linears │ {14 - wide} int4, {wide} int8, for 0.0" in shown


@pytest.fixture(scope="module")
def quantized(
    recipe: str, debug_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> QuantizedCheckpoint:
    out = tmp_path_factory.mktemp("quantized") / "q"
    request = QuantizeRequest(model=str(debug_folder), recipe=recipe, out=out)
    return quantize_model(request, SilentProgress())


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('"spent_bytes": ', '"spent_bytes": 9', "budget_bytes allows"),
        ('"model.layers.', '"model.strange.', "is no block linear of this model"),
        ('"int8_linears"', '"linears"', "int8_linears"),
        ('"mixed_precision"', '"mixed"', "'mixed_precision' is missing"),
    ],
)
def test_a_damaged_record_is_refused(
    before: str, after: str, message: str, quantized: QuantizedCheckpoint
) -> None:
    path = quantized.root / CONFIG_FILE
    right = path.read_text()
    assert before in right
    path.write_text(right.replace(before, after))
    try:
        with pytest.raises(ArtifactError, match=message):
            read_quantized_checkpoint(quantized.root)
    finally:
        path.write_text(right)


def test_a_record_that_the_file_contradicts_is_refused(quantized: QuantizedCheckpoint) -> None:
    path = quantized.root / CONFIG_FILE
    right = path.read_text()
    assert quantized.mixed_precision is not None
    first = quantized.mixed_precision.int8_linears[0]
    path.write_text(right.replace(first, _a_narrow_one(quantized)))
    try:
        with pytest.raises(ArtifactError, match="is needed"):
            read_quantized_checkpoint(quantized.root)
    finally:
        path.write_text(right)


def _a_narrow_one(quantized: QuantizedCheckpoint) -> str:
    tensors = map(quantized.weights.quantized, quantized.weights.quantized_names())
    pairs = zip(quantized.weights.quantized_names(), tensors, strict=True)
    return next(name for name, tensor in pairs if tensor.bits == 4)


def test_widths_that_differ_are_not_stacked(quantized: QuantizedCheckpoint) -> None:
    by_bits: dict[int, QuantizedTensor] = {}
    for name in quantized.weights.quantized_names()[1:-1]:
        tensor = quantized.weights.quantized(name)
        by_bits[tensor.bits] = tensor
    with pytest.raises(QuantizeError, match=r"\(8, \d+\).* cannot be stacked"):
        concatenate_rows([by_bits[4], by_bits[8]])
