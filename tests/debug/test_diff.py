"""Contents against contents, of one format or two."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from llama_edge.bundle.folder import Bundle
from llama_edge.core.progress import SilentProgress
from llama_edge.core.quantized import QuantizedCheckpoint
from llama_edge.debug.diff import DiffReport, Section, diff
from tests.pipeline import damage

Copy = Callable[[str], Path]


@pytest.fixture
def copy(debug_bundles: Mapping[str, Bundle], tmp_path: Path) -> Copy:
    return lambda target: shutil.copytree(debug_bundles[target].root, tmp_path / target)


def compare(first: Path, second: Path) -> DiffReport:
    return diff(str(first), str(second), SilentProgress())


def section(report: DiffReport, name: str) -> Section:
    return next(found for found in report.sections if found.name == name)


def test_two_formats_hold_the_same_codes(debug_bundles: Mapping[str, Bundle]) -> None:
    report = compare(debug_bundles["android"].root, debug_bundles["onnx"].root)
    assert report.equal
    assert section(report, "tensors").equal
    assert not section(report, "graph").matters, "two formats compute the same by other operators"
    counts = {item.what: (item.first, item.second) for item in section(report, "graph").differences}
    assert counts["GroupQueryAttention"] == (None, "2")
    assert counts["llama::custom_sdpa"] == ("2", None)
    assert not section(report, "size").equal


def test_a_thing_equals_itself(
    debug_bundles: Mapping[str, Bundle], debug_folder: Path, debug_quantized: QuantizedCheckpoint
) -> None:
    for path in (
        *(bundle.root for bundle in debug_bundles.values()),
        debug_bundles["android"].root / "model.pte",
        debug_quantized.root,
        debug_folder,
    ):
        report = compare(path, path)
        assert report.equal
        assert all(found.equal for found in report.sections)


def test_a_bundle_has_its_quantized_checkpoints_codes(
    debug_bundles: Mapping[str, Bundle], debug_quantized: QuantizedCheckpoint
) -> None:
    report = compare(debug_quantized.root, debug_bundles["onnx"].root)
    assert report.equal
    assert section(report, "recipe").equal
    assert not section(report, "graph").compared


def test_quantization_differs_from_full_precision(
    debug_bundles: Mapping[str, Bundle], debug_folder: Path
) -> None:
    report = compare(debug_folder, debug_bundles["onnx"].root)
    assert not report.equal
    tensors = section(report, "tensors")
    assert len(tensors.differences) == 15
    assert "relative error 0.0" in str(tensors.differences[1].second)
    assert section(report, "floats").equal
    assert section(report, "tokenizer").equal


@pytest.mark.parametrize("target", ["android", "onnx"])
def test_codes_and_scales_are_counted(
    target: str, copy: Copy, debug_bundles: Mapping[str, Bundle]
) -> None:
    folder = copy(target)
    damage.swap_nibbles(folder, 1)
    damage.step_scale(folder, 0)
    report = compare(debug_bundles[target].root, folder)
    assert not report.equal
    found = {item.what: str(item.second) for item in section(report, "tensors").differences}
    assert set(found) == {
        "model.layers.1.mlp.down_proj.weight",
        "model.layers.0.self_attn.o_proj.weight",
    }
    assert found["model.layers.1.mlp.down_proj.weight"].startswith("2 of 15360 values differ")
    assert "1 bfloat16 steps" in found["model.layers.0.self_attn.o_proj.weight"]
    assert section(report, "graph").equal


def test_a_graphs_attributes_and_constants(copy: Copy, debug_bundles: Mapping[str, Bundle]) -> None:
    folder = copy("onnx")
    damage.transpose_rope(folder, 1)
    report = compare(debug_bundles["onnx"].root, folder)
    (found,) = section(report, "graph").differences
    assert "rotary_interleaved" in found.what
    assert "layers.1" in found.what
    assert (found.first, found.second) == ("0", "1")
    damaged = copy("android")
    damage.smaller_epsilon_pte(damaged, 0)
    report = compare(debug_bundles["android"].root, damaged)
    assert [item.what for item in section(report, "graph").differences] == [
        "rms_norm.eps (constant) sha256"
    ]
    assert not report.equal


def test_an_unquantized_layer_cannot_be_read_back(
    copy: Copy, debug_bundles: Mapping[str, Bundle]
) -> None:
    folder = copy("onnx")
    damage.leave_unquantized(folder, 1)
    report = compare(debug_bundles["onnx"].root, folder)
    (found,) = section(report, "tensors").differences
    assert "cannot be read" in str(found.second)
    kinds = {item.what: (item.first, item.second) for item in section(report, "graph").differences}
    assert kinds["MatMulNBits"] == ("11", "10")
    assert kinds["MatMul"] == (None, "1")


def test_tokens_and_template(copy: Copy, debug_bundles: Mapping[str, Bundle]) -> None:
    folder = copy("onnx")
    path = folder / "tokenizer.json"
    value = json.loads(path.read_text())
    ids = value["model"]["vocab"]
    ids["he"], ids["in"] = ids["in"], ids["he"]
    path.write_text(json.dumps(value))
    config = folder / "tokenizer_config.json"
    config.write_text(config.read_text().replace("<|im_start|>assistant", "<|im_start|> assistant"))
    report = compare(debug_bundles["onnx"].root, folder)
    tokens = {item.what for item in section(report, "tokenizer").differences}
    assert tokens == {"token 'he'", "token 'in'"}
    (line,) = section(report, "chat template").differences
    assert "<|im_start|> assistant" in str(line.second)
    assert not report.equal
    assert section(report, "tensors").equal
