import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import coremltools as ct
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from llama_edge.backends.coreml.deferred import DeferredArray
from llama_edge.backends.coreml.exporter import CoreMLExporter
from llama_edge.bundle.folder import compare_tensors, list_tensors
from llama_edge.core.artifact import ActivationQuantization, Artifact
from llama_edge.core.errors import CheckFailedError, ExportError
from llama_edge.core.packing import QuantizedTensor
from llama_edge.core.progress import SilentProgress
from llama_edge.core.quantized import QuantizedCheckpoint, QuantizedWeights
from llama_edge.core.regular import file_sha256
from llama_edge.formats.mlpackage import MLPackage
from llama_edge.models.value_names import attention_value, hidden_value
from llama_edge.models.weight_names import EMBEDDING, LM_HEAD
from tests.conftest import DEBUG_CONFIG
from tests.export.coreml.conftest import UP, Message, Package, Quantized, lower, with_matrix


def operations(artifact: Artifact) -> Sequence[Message]:
    found: Sequence[Message] = MLPackage(artifact.path.parent).block("main").operations
    return found


def made(artifact: Artifact) -> dict[str, Message]:
    return {output.name: each for each in operations(artifact) for output in each.outputs}


def names_in(operation: Message, key: str) -> list[str]:
    return [binding.name for binding in operation.inputs[key].arguments]


def test_the_artifact_describes_itself(package: Package) -> None:
    artifact = package("tied")
    assert artifact.files == (
        "model.mlpackage/Manifest.json",
        "model.mlpackage/Data/com.apple.CoreML/model.mlmodel",
        "model.mlpackage/Data/com.apple.CoreML/weights/weight.bin",
    )
    assert artifact.activation is ActivationQuantization.NONE
    assert artifact.config == DEBUG_CONFIG
    assert (artifact.max_context, artifact.max_prefill) == (256, 256)
    for place in (artifact.root, artifact.path.parent, artifact.path):
        assert CoreMLExporter().open(place).artifact == artifact


def test_one_call_takes_no_more_than_512_tokens(
    debug_quantized: QuantizedCheckpoint, tmp_path: Path
) -> None:
    config = replace(DEBUG_CONFIG, max_position_embeddings=1024)
    artifact = lower(replace(debug_quantized, config=config), tmp_path, 1024)
    assert (artifact.max_context, artifact.max_prefill) == (1024, 512)
    assert CoreMLExporter().open(artifact.path).interface().inputs[0].shape == (1, "tokens <= 512")


def test_a_cache_of_one_token_has_no_range(
    debug_quantized: QuantizedCheckpoint, tmp_path: Path
) -> None:
    artifact = lower(debug_quantized, tmp_path, 1)
    assert CoreMLExporter().open(artifact.path).interface().inputs[0].shape == (1, 1)


@pytest.mark.parametrize("name", ["tied", "rotated"])
def test_two_lowerings_give_the_same_bytes(
    name: str, package: Package, quantized: Quantized, tmp_path: Path
) -> None:
    first, again = package(name), lower(quantized(name), tmp_path)
    for file in again.files:
        assert file_sha256(again.root / file) == file_sha256(first.root / file), file


class WatchedWeights:
    """Hands on another's matrices and counts how many of their codes are alive at once."""

    def __init__(self, weights: QuantizedWeights) -> None:
        self._weights = weights
        self._alive: list[weakref.ref[NDArray[np.int8]]] = []
        self.most_alive = 0

    def quantized_names(self) -> tuple[str, ...]:
        return self._weights.quantized_names()

    def quantized(self, name: str) -> QuantizedTensor:
        matrix = self._weights.quantized(name)
        # A tensor's memory outlives the Python object; an array below it lives as long.
        codes: NDArray[np.int8] = matrix.codes.numpy().copy()
        self._alive = [each for each in self._alive if each() is not None]
        self._alive.append(weakref.ref(codes))
        self.most_alive = max(self.most_alive, len(self._alive))
        return replace(matrix, codes=torch.from_numpy(codes))

    def vector(self, name: str) -> Tensor:
        return self._weights.vector(name)


def test_matrices_stream(
    debug_quantized: QuantizedCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = WatchedWeights(debug_quantized.weights)
    lower(replace(debug_quantized, weights=watched), tmp_path / "streamed")
    assert watched.most_alive == 1
    # A program that is given the codes keeps all of them until it is written.
    monkeypatch.setattr(DeferredArray, "of", lambda name, shape, kind, read: read().view(kind))
    lower(replace(debug_quantized, weights=watched), tmp_path / "held")
    assert watched.most_alive > DEBUG_CONFIG.num_hidden_layers * 7


def test_codes_that_were_promised_and_not_read_are_found_out(
    debug_quantized: QuantizedCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(DeferredArray, "flatten")  # the promise itself is written
    artifact = lower(debug_quantized, tmp_path)
    given, written = (
        list_tensors(weights, SilentProgress())
        for weights in (debug_quantized.weights, CoreMLExporter().open(artifact.path).weights())
    )
    with pytest.raises(CheckFailedError, match="codes_sha256"):
        compare_tensors(given, written)


def test_nothing_is_printed(
    debug_quantized: QuantizedCheckpoint, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lower(debug_quantized, tmp_path)
    assert capfd.readouterr() == ("", "")


def test_a_tied_table_is_stored_once(package: Package) -> None:
    tied, untied = package("tied"), package("untied")
    table = EMBEDDING.replace(".", "_")
    assert names_in(made(tied)["logits"], "weight") == [table]
    looked_up = [each for each in operations(tied) if each.type == "gather"]
    assert [table] in [names_in(each, "x") for each in looked_up]
    assert LM_HEAD.replace(".", "_") not in made(tied)
    assert names_in(made(untied)["logits"], "weight") == [LM_HEAD.replace(".", "_")]
    size = DEBUG_CONFIG.vocab_size * DEBUG_CONFIG.hidden_size
    assert untied.size_bytes - tied.size_bytes > size


@pytest.mark.parametrize("name", ["tied", "rotated"])
def test_the_values_that_the_gate_looks_at_are_there(name: str, package: Package) -> None:
    config, found = DEBUG_CONFIG, made(package(name))
    for layer in range(config.num_hidden_layers + 1):
        dimensions = found[hidden_value(layer).replace(".", "_")].outputs[0].type.tensorType
        assert dimensions.dimensions[2].constant.size == config.hidden_size
    for layer in range(config.num_hidden_layers):
        dimensions = found[attention_value(layer).replace(".", "_")].outputs[0].type.tensorType
        assert dimensions.dimensions[2].constant.size == config.query_size


def test_a_state_is_read_once_and_then_after_each_write(package: Package) -> None:
    for state in ("keyCache", "valueCache"):
        touched = [
            each.type
            for each in operations(package("tied"))
            if each.type in ("read_state", "write_state") and names_in(each, "input") == [state]
        ]
        layers = DEBUG_CONFIG.num_hidden_layers
        assert touched == ["read_state", *["write_state", "read_state"] * layers]


def test_a_name_that_was_changed_on_the_way_is_an_error(
    debug_quantized: QuantizedCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "llama_edge.backends.coreml.lower.attention_value", lambda layer: f"{layer}.output"
    )
    with pytest.raises(ExportError, match=r"the value 0\.output is not in the written program"):
        lower(debug_quantized, tmp_path)


def test_a_weight_beyond_fp16_is_refused(
    debug_quantized: QuantizedCheckpoint, tmp_path: Path
) -> None:
    right = debug_quantized.weights.quantized(UP)
    largest = int(right.codes.abs().max())

    def scaled(scale: float) -> QuantizedTensor:
        scales = torch.full_like(right.scales, scale)
        return replace(right, scales=scales)

    most = 2.0 ** np.floor(np.log2(65504 / largest))
    lower(with_matrix(debug_quantized, UP, scaled(most)), tmp_path / "fits")
    with pytest.raises(ExportError, match=f"{UP}: a weight is .* another target"):
        lower(with_matrix(debug_quantized, UP, scaled(2 * most)), tmp_path / "does not")


def test_the_package_is_one_that_coremltools_opens(package: Package) -> None:
    artifact = package("tied")
    model = ct.models.MLModel(str(artifact.path.parent), skip_model_load=True)
    spec = model.get_spec()
    assert spec.specificationVersion == 9, "iOS 18"
    assert [state.name for state in spec.description.state] == ["keyCache", "valueCache"]
