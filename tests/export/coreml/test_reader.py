import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from coremltools.proto import MIL_pb2, Model_pb2

from llama_edge.backends.base import LowerOptions
from llama_edge.backends.coreml.exporter import CoreMLExporter
from llama_edge.backends.onnx.exporter import OnnxExporter
from llama_edge.core.errors import ArtifactError, CheckFailedError, UnknownNameError
from llama_edge.core.packing import tensor_sha256
from llama_edge.core.progress import SilentProgress
from llama_edge.core.quantized import QuantizedCheckpoint, QuantizedWeights
from llama_edge.models.weights import float_shapes
from llama_edge.text.text_assets import write_text_assets
from tests.export.coreml.conftest import UP, Message, Package, Quantized

MODEL = "Data/com.apple.CoreML/model.mlmodel"
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"
NORM = "model.layers.1.input_layernorm.weight"


@pytest.fixture
def copied(package: Package, tmp_path: Path) -> Path:
    """A package that a test may damage."""
    path = tmp_path / "copied" / "model.mlpackage"
    shutil.copytree(package("tied").path.parent, path)
    return path


def assert_same(found: QuantizedWeights, expected: QuantizedWeights) -> None:
    assert found.quantized_names() == expected.quantized_names()
    for name in expected.quantized_names():
        ours, theirs = found.quantized(name), expected.quantized(name)
        assert (ours.bits, ours.group_size) == (theirs.bits, theirs.group_size), name
        assert tensor_sha256(ours.codes) == tensor_sha256(theirs.codes), name
        assert tensor_sha256(ours.scales) == tensor_sha256(theirs.scales), name


def edit(path: Path, change: Callable[[Message], None]) -> None:
    """Change the program of a package."""
    spec = Model_pb2.Model()
    spec.ParseFromString((path / MODEL).read_bytes())
    change(spec)
    (path / MODEL).write_bytes(spec.SerializeToString())


def operation(spec: Message, output: str) -> Message:
    function = spec.mlProgram.functions["main"]
    operations = function.block_specializations[function.opset].operations
    return next(each for each in operations if [o.name for o in each.outputs] == [output])


@pytest.mark.parametrize("name", ["tied", "untied", "rotated", "small", "mixed"])
def test_codes_scales_and_floats_come_back(
    name: str, package: Package, quantized: Quantized
) -> None:
    weights, expected = CoreMLExporter().open(package(name).path).weights(), quantized(name)
    assert_same(weights, expected.weights)
    for vector in float_shapes(expected.config):
        assert torch.equal(weights.vector(vector), expected.weights.vector(vector))


@pytest.mark.parametrize("name", ["tied", "rotated"])
def test_onnx_holds_the_same(
    name: str, package: Package, quantized: Quantized, tmp_path: Path
) -> None:
    options = LowerOptions(max_context=256)
    onnx = OnnxExporter().lower(quantized(name), tmp_path, options, SilentProgress())
    assert_same(
        CoreMLExporter().open(package(name).path.parent).weights(),
        OnnxExporter().open(onnx.path).weights(),
    )


def test_a_package_under_another_name(copied: Path, package: Package) -> None:
    renamed = copied.rename(copied.parent / "other name.mlpackage")
    artifact = CoreMLExporter().open(renamed).artifact
    assert artifact.path == renamed / "Manifest.json"
    assert_same(
        CoreMLExporter().open(artifact.path).weights(),
        CoreMLExporter().open(package("tied").path.parent).weights(),
    )


def test_one_flipped_bit_changes_one_matrix(copied: Path, package: Package) -> None:
    right = CoreMLExporter().open(package("tied").path.parent).weights()
    place = len(right.quantized(UP).codes.flatten()) // 4
    content = bytearray((copied / WEIGHTS).read_bytes())
    spec = Model_pb2.Model()
    spec.ParseFromString((copied / MODEL).read_bytes())
    data = operation(spec, UP.replace(".", "_")).inputs["data"].arguments[0].value
    content[data.blobFileValue.offset + 64 + place] ^= 1
    (copied / WEIGHTS).write_bytes(content)
    wrong = CoreMLExporter().open(copied).weights()
    for name in right.quantized_names():
        same = torch.equal(wrong.quantized(name).codes, right.quantized(name).codes)
        assert same == (name != UP), name


def test_names_that_the_model_has_not(package: Package) -> None:
    weights = CoreMLExporter().open(package("tied").path.parent).weights()
    for name in ("model.layers.2.mlp.up_proj.weight", "model.norm.weight", "x"):
        with pytest.raises(UnknownNameError, match="not a quantized matrix"):
            weights.quantized(name)
    with pytest.raises(UnknownNameError, match="not a float weight"):
        weights.vector(UP)


@pytest.mark.parametrize(
    ("key", "old", "new", "message"),
    [
        ("format_version", "1", "2", "format_version is '2'"),
        ("config", '"vocab_size": 256', '"vocab_size": -256', "vocab_size is -256"),
        ("config", '"head_dim"', '"head_dum"', "head_dum"),
        ("lowering", '"max_context": 256', '"max_context": 999', "999, the model has 512"),
        ("lowering", '"max_prefill": 256', '"max_prefill": 0', "max_prefill is 0"),
        ("lowering", "{", "[" * 100000, "metadata is damaged"),
        ("eos_token_ids", "[0, 2]", "{}", "not a list of end tokens"),
        ("eos_token_ids", "[0, 2]", "[]", "not a list of end tokens"),
        ("eos_token_ids", "[0, 2]", "[-1]", "no token id"),
    ],
)
def test_damaged_metadata(copied: Path, key: str, old: str, new: str, message: str) -> None:
    def change(spec: Message) -> None:
        entries = spec.description.metadata.userDefined
        assert old in entries[f"llama_edge.{key}"]
        entries[f"llama_edge.{key}"] = entries[f"llama_edge.{key}"].replace(old, new)

    edit(copied, change)
    with pytest.raises(ArtifactError, match=message):
        CoreMLExporter().open(copied)


def test_metadata_that_is_absent(copied: Path) -> None:
    edit(copied, lambda spec: spec.description.metadata.userDefined.clear())
    with pytest.raises(ArtifactError, match="format_version is None"):
        CoreMLExporter().open(copied)


@pytest.mark.parametrize("name", ["Manifest.json", MODEL, WEIGHTS])
def test_a_missing_file(copied: Path, name: str) -> None:
    (copied / name).unlink()
    with pytest.raises(ArtifactError, match=f"{Path(name).name}: the file is missing"):
        CoreMLExporter().open(copied)


def test_a_truncated_weight_file(copied: Path) -> None:
    content = (copied / WEIGHTS).read_bytes()
    (copied / WEIGHTS).write_bytes(content[: len(content) // 8])
    weights = CoreMLExporter().open(copied).weights()
    with pytest.raises(ArtifactError, match="after the file's end"):
        weights.quantized(UP)


def renamed(spec: Message) -> None:
    operation(spec, UP.replace(".", "_")).outputs[0].name = "w"


def with_zero_points(spec: Message) -> None:
    found = operation(spec, UP.replace(".", "_"))
    found.inputs["offset"].CopyFrom(found.inputs["scale"])


def without_scales(spec: Message) -> None:
    del operation(spec, UP.replace(".", "_")).inputs["scale"]


def unsigned(spec: Message) -> None:
    value = operation(spec, UP.replace(".", "_")).inputs["data"].arguments[0].value
    value.type.tensorType.dataType = MIL_pb2.DataType.UINT4


def of_another_shape(spec: Message) -> None:
    value = operation(spec, UP.replace(".", "_")).inputs["data"].arguments[0].value
    rows, columns = value.type.tensorType.dimensions
    rows.constant.size, columns.constant.size = columns.constant.size, rows.constant.size


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (renamed, f"{UP} is absent"),
        (with_zero_points, "has zero points"),
        (without_scales, "its scale is no constant"),
        (unsigned, "elements of type 8; uint4 has 11"),
        (of_another_shape, r"the model's config needs \(160, 96\)"),
    ],
)
def test_a_matrix_that_is_not_as_it_must_be(
    copied: Path, change: Callable[[Message], None], message: str
) -> None:
    edit(copied, change)
    with pytest.raises(ArtifactError, match=message):
        CoreMLExporter().open(copied).weights().quantized(UP)


def test_a_norm_of_another_shape(copied: Path) -> None:
    def change(spec: Message) -> None:
        value = operation(spec, NORM.replace(".", "_")).attributes["val"]
        value.type.tensorType.dimensions[0].constant.size = 48
        value.immediateValue.tensor.floats.values.extend([1.0] * 48)

    edit(copied, change)
    with pytest.raises(ArtifactError, match=r"input_layernorm.weight is not fp32 \(96,\)"):
        CoreMLExporter().open(copied).weights().vector(NORM)


def test_end_tokens_are_the_packages_own(package: Package) -> None:
    assert CoreMLExporter().open(package("tied").path).end_tokens() == (0, 2)


def test_text_files_of_another_model_are_refused(
    copied: Path, debug_quantized: QuantizedCheckpoint
) -> None:
    write_text_assets(copied.parent, debug_quantized.text)
    assert CoreMLExporter().open(copied).end_tokens() == (0, 2)
    template = f"{debug_quantized.text.chat_template} "
    write_text_assets(copied.parent, replace(debug_quantized.text, chat_template=template))
    with pytest.raises(CheckFailedError, match="was written for text files whose contract"):
        CoreMLExporter().open(copied).end_tokens()
