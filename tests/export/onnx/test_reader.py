import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from llama_edge.backends.onnx.exporter import OnnxExporter
from llama_edge.core.artifact import Artifact
from llama_edge.core.errors import ArtifactError, UnknownNameError
from llama_edge.core.packing import tensor_sha256
from llama_edge.core.quantized import QuantizedCheckpoint, QuantizedWeights
from llama_edge.models.weights import float_shapes

K_PROJ = "model.layers.1.self_attn.k_proj.weight"
STORED_QKV = "model.layers.1.self_attn.qkv_proj.weight.codes"


def assert_same(found: QuantizedWeights, expected: QuantizedWeights) -> None:
    assert found.quantized_names() == expected.quantized_names()
    for name in expected.quantized_names():
        ours, theirs = found.quantized(name), expected.quantized(name)
        assert (ours.bits, ours.group_size) == (theirs.bits, theirs.group_size), name
        assert tensor_sha256(ours.codes) == tensor_sha256(theirs.codes), name
        assert tensor_sha256(ours.scales) == tensor_sha256(theirs.scales), name


@pytest.fixture
def copied(debug_onnx: Mapping[int, Artifact], tmp_path: Path) -> Path:
    shutil.copytree(debug_onnx[4].root, tmp_path / "copied")
    return tmp_path / "copied"


def stored_place(folder: Path, name: str) -> slice:
    graph = onnx.load_model(folder / "model.onnx", load_external_data=False).graph
    proto = next(proto for proto in graph.initializer if proto.name == name)
    place = {entry.key: entry.value for entry in proto.external_data}
    return slice(int(place["offset"]), int(place["offset"]) + int(place["length"]))


def edit_model(folder: Path, old: bytes, new: bytes) -> None:
    content = (folder / "model.onnx").read_bytes()
    assert len(old) == len(new)
    assert old in content
    (folder / "model.onnx").write_bytes(content.replace(old, new))


def test_codes_scales_and_norms_come_back(
    debug_onnx: Mapping[int, Artifact], debug_quantized: QuantizedCheckpoint
) -> None:
    weights = OnnxExporter().open(debug_onnx[4].path).weights()
    assert_same(weights, debug_quantized.weights)
    for name in float_shapes(debug_quantized.config):
        assert torch.equal(weights.vector(name), debug_quantized.weights.vector(name))


def test_codes_and_scales_of_a_real_model_come_back(
    smollm2_onnx: Mapping[int, Artifact], smollm2_quantized: QuantizedCheckpoint
) -> None:
    assert_same(OnnxExporter().open(smollm2_onnx[4].path).weights(), smollm2_quantized.weights)


def test_swapped_nibbles_change_the_hash_of_their_matrix_only(
    copied: Path, debug_quantized: QuantizedCheckpoint
) -> None:
    data = np.memmap(copied / "model.onnx.data", np.uint8, "r+")
    heads, width = 6 * 16, 96 // 2
    place = stored_place(copied, STORED_QKV)
    rows = data[place].reshape(-1, width)[heads : heads + 32]
    rows[:] = (rows << 4) | (rows >> 4)
    data.flush()
    weights = OnnxExporter().open(copied / "model.onnx").weights()
    for name in weights.quantized_names():
        same = torch.equal(
            weights.quantized(name).codes, debug_quantized.weights.quantized(name).codes
        )
        assert same == (name != K_PROJ), name


def test_names_that_the_model_has_not(debug_onnx: Mapping[int, Artifact]) -> None:
    weights = OnnxExporter().open(debug_onnx[4].path).weights()
    for name in ("model.layers.2.mlp.up_proj.weight", "model.norm.weight", "x"):
        with pytest.raises(UnknownNameError, match="not a quantized matrix"):
            weights.quantized(name)
    with pytest.raises(UnknownNameError, match="not a float weight"):
        weights.vector(K_PROJ)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"llama_edge.format_version", b"llama_edge.format_versiom", "format_version is None"),
        (b'"accuracy_level": 4', b'"accuracy_level": 9', "accuracy_level 9"),
        (b'"max_context": 256', b'"max_context": nil', "metadata is damaged"),
        (b'"max_context": 256', b'"max_context": 999', "999, the model has 512"),
        (b'"vocab_size": 256', b'"vocab_size":-256', "vocab_size is -256"),
        (b'"head_dim": 16', b'"head_dum": 16', "head_dum"),
    ],
)
def test_damaged_metadata(copied: Path, old: bytes, new: bytes, message: str) -> None:
    edit_model(copied, old, new)
    with pytest.raises(ArtifactError, match=message):
        OnnxExporter().open(copied)


def test_a_config_that_is_not_the_graphs(copied: Path) -> None:
    edit_model(copied, b'"intermediate_size": 160', b'"intermediate_size": 192')
    weights = OnnxExporter().open(copied / "model.onnx").weights()
    with pytest.raises(ArtifactError, match="the model's config needs"):
        weights.quantized("model.layers.0.mlp.up_proj.weight")


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "genai_config.json"])
def test_a_missing_file(copied: Path, name: str) -> None:
    (copied / name).unlink()
    with pytest.raises(ArtifactError, match=name):
        OnnxExporter().open(copied)


@pytest.mark.parametrize("level", [0, 4])
def test_every_linear_multiplies_stored_codes(
    debug_onnx: Mapping[int, Artifact], level: int
) -> None:
    placement = OnnxExporter().open(debug_onnx[level].path).placement()
    assert placement.linears == placement.linears_delegated == 11
    norms = 5 * 96 * 4
    assert placement.weight_bytes - placement.weight_bytes_delegated == norms
    assert placement.operators - placement.operators_delegated == sum(placement.portable.values())
    assert placement.portable.get("MatMul", 0) == (1 if level == 0 else 0)


def test_a_linear_of_full_precision_shows(copied: Path) -> None:
    up_proj = "model.layers.1.mlp.up_proj.output"
    model = onnx.load_model(copied / "model.onnx", load_external_data=False)
    node = next(node for node in model.graph.node if node.name == up_proj)
    node.CopyFrom(onnx.helper.make_node("MatMul", [node.input[0], "w"], node.output[:]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((96, 160), "f4"), "w"))
    (copied / "model.onnx").write_bytes(model.SerializeToString())
    after = OnnxExporter().open(copied / "model.onnx").placement()
    assert (after.linears, after.linears_delegated) == (11, 10)
    assert after.weight_bytes_delegated < after.weight_bytes - 5 * 96 * 4


def test_the_interface_is_the_graphs_own(debug_onnx: Mapping[int, Artifact]) -> None:
    interface = OnnxExporter().open(debug_onnx[4].path).interface()
    inputs = {spec.name: spec for spec in interface.inputs}
    assert inputs["input_ids"].dtype == "int64"
    assert inputs["past_key_values.1.value"].shape == ("batch_size", 2, "past_sequence_length", 16)
    assert interface.outputs[0].name == "logits"
    assert interface.outputs[0].shape == ("batch_size", "sequence_length", 256)
