import gc
import json
import weakref
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor

from llama_edge.backends.base import LowerOptions
from llama_edge.backends.onnx.exporter import OnnxExporter
from llama_edge.core.artifact import ActivationQuantization, Artifact
from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.errors import ExportError
from llama_edge.core.packing import QuantizedTensor
from llama_edge.core.progress import SilentProgress
from llama_edge.core.quantized import QuantizedCheckpoint, QuantizedWeights
from llama_edge.core.regular import file_sha256
from llama_edge.models.weight_names import EMBEDDING, LM_HEAD
from llama_edge.quantize import W4A8_RTN
from llama_edge.quantize.stage import quantize_checkpoint
from tests.conftest import DEBUG_CONFIG, MemoryWeights

OPTIONS = LowerOptions(max_context=256)


class WatchedWeights:
    """Hands on another's matrices and counts how many of them are alive at once."""

    def __init__(self, weights: QuantizedWeights) -> None:
        self._weights = weights
        self._alive: list[weakref.ref[Tensor]] = []
        self.most_alive = 0

    def quantized_names(self) -> tuple[str, ...]:
        return self._weights.quantized_names()

    def quantized(self, name: str) -> QuantizedTensor:
        matrix = self._weights.quantized(name)
        self._alive.append(weakref.ref(matrix.codes))
        gc.collect()
        self._alive = [each for each in self._alive if each() is not None]
        self.most_alive = max(self.most_alive, len(self._alive))
        return matrix

    def vector(self, name: str) -> Tensor:
        return self._weights.vector(name)


def test_the_artifact_describes_itself(debug_onnx: Mapping[int, Artifact]) -> None:
    weight_only, int8 = debug_onnx[0], debug_onnx[4]
    assert int8.files == ("model.onnx", "model.onnx.data", "genai_config.json")
    assert int8.activation is ActivationQuantization.INT8_PER_BLOCK
    assert weight_only.activation is ActivationQuantization.NONE
    assert int8.config == DEBUG_CONFIG
    assert (int8.max_context, int8.max_prefill) == (256, 256)
    assert OnnxExporter().open(int8.root).artifact == int8


def test_two_lowerings_give_the_same_bytes(
    debug_quantized: QuantizedCheckpoint, debug_onnx: Mapping[int, Artifact], tmp_path: Path
) -> None:
    again = OnnxExporter().lower(debug_quantized, tmp_path, OPTIONS, SilentProgress())
    for name in again.files:
        assert file_sha256(tmp_path / name) == file_sha256(debug_onnx[4].root / name), name


def test_matrices_stream(debug_quantized: QuantizedCheckpoint, tmp_path: Path) -> None:
    watched = WatchedWeights(debug_quantized.weights)
    checkpoint = replace(debug_quantized, weights=watched)
    gc.freeze()  # the millions of objects of the imported libraries need not be looked through
    try:
        OnnxExporter().lower(checkpoint, tmp_path, OPTIONS, SilentProgress())
    finally:
        gc.unfreeze()
    assert watched.most_alive == 3, "Q, K and V are stacked; nothing else is held together"


def test_a_tied_table_is_stored_once(debug_onnx: Mapping[int, Artifact], untied: Artifact) -> None:
    def bytes_named(artifact: Artifact, name: str) -> int:
        graph = onnx.load_model(artifact.path, load_external_data=False).graph
        protos = [proto for proto in graph.initializer if proto.name == f"{name}.codes"]
        return sum(int(entry.value) for entry in protos[0].external_data if entry.key == "length")

    table = DEBUG_CONFIG.vocab_size * DEBUG_CONFIG.hidden_size
    graph = onnx.load_model(debug_onnx[4].path, load_external_data=False).graph
    assert f"{LM_HEAD}.codes" not in {proto.name for proto in graph.initializer}
    assert bytes_named(debug_onnx[4], EMBEDDING) == table
    assert bytes_named(untied, LM_HEAD) == table
    assert untied.size_bytes - debug_onnx[4].size_bytes > table


def test_an_untied_head_is_its_own(untied: Artifact, untied_quantized: QuantizedCheckpoint) -> None:
    weights = OnnxExporter().open(untied.path).weights()
    expected = untied_quantized.weights
    assert torch.equal(weights.quantized(LM_HEAD).codes, expected.quantized(LM_HEAD).codes)
    assert torch.equal(weights.quantized(EMBEDDING).codes, expected.quantized(EMBEDDING).codes)
    assert not torch.equal(weights.quantized(LM_HEAD).codes, weights.quantized(EMBEDDING).codes)


@pytest.fixture(scope="module")
def untied_quantized(
    debug_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> QuantizedCheckpoint:
    config = replace(DEBUG_CONFIG, tie_word_embeddings=False)
    checkpoint = replace(debug_checkpoint, config=config, weights=MemoryWeights(config))
    folder = tmp_path_factory.mktemp("untied-quantized")
    return quantize_checkpoint(checkpoint, W4A8_RTN, folder, SilentProgress())


@pytest.fixture(scope="module")
def untied(
    untied_quantized: QuantizedCheckpoint, tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    folder = tmp_path_factory.mktemp("untied")
    return OnnxExporter().lower(untied_quantized, folder, OPTIONS, SilentProgress())


def test_genai_config_tells_what_the_graph_needs(debug_onnx: Mapping[int, Artifact]) -> None:
    config = json.loads((debug_onnx[4].root / "genai_config.json").read_text())
    model, search = config["model"], config["search"]
    assert (model["context_length"], search["max_length"]) == (256, 256)
    assert (model["bos_token_id"], model["eos_token_id"]) == (3, [0, 2])
    decoder = model["decoder"]
    assert (decoder["head_size"], decoder["num_attention_heads"]) == (16, 6)
    assert (decoder["num_key_value_heads"], decoder["num_hidden_layers"]) == (2, 2)
    assert (search["temperature"], search["top_p"]) == (0.6, 0.9)
    names = {spec.name for spec in OnnxExporter().open(debug_onnx[4].path).interface().inputs}
    assert {decoder["inputs"]["past_key_names"] % layer for layer in range(2)} < names


def test_a_graph_that_the_checker_refuses_is_an_error(
    debug_quantized: QuantizedCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = (onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("com.microsoft", 1))
    monkeypatch.setattr("llama_edge.backends.onnx.lower.OPSETS", old)
    with pytest.raises(ExportError, match="RMSNormalization"):
        OnnxExporter().lower(debug_quantized, tmp_path, OPTIONS, SilentProgress())
