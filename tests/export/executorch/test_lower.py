import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llama_edge.backends.base import LowerOptions
from llama_edge.backends.executorch.exporter import ExecuTorchExporter
from llama_edge.backends.executorch.placement import read_placement
from llama_edge.core.artifact import Artifact, Placement
from llama_edge.core.errors import ConfigError, ExportError, UsageError
from llama_edge.core.packing import QuantizedTensor
from llama_edge.core.progress import SilentProgress
from llama_edge.core.quantized import QuantizedCheckpoint
from llama_edge.formats.pte import PteFile
from llama_edge.models.weight_names import EMBEDDING, LM_HEAD
from tests.export.executorch.conftest import lower


class OtherHead:
    """The same weights, but with a head of its own."""

    def __init__(self, checkpoint: QuantizedCheckpoint) -> None:
        self._weights = checkpoint.weights

    def quantized_names(self) -> tuple[str, ...]:
        return self._weights.quantized_names()

    def quantized(self, name: str) -> QuantizedTensor:
        tensor = self._weights.quantized(name)
        if name != LM_HEAD:
            return tensor
        return dataclasses.replace(tensor, codes=tensor.codes.flip(0).contiguous())

    def vector(self, name: str) -> Tensor:
        return self._weights.vector(name)


def test_every_code_and_scale_reads_back(
    debug_pte: Artifact, debug_quantized: QuantizedCheckpoint
) -> None:
    weights = ExecuTorchExporter().open(debug_pte.path).weights()
    assert weights.quantized_names() == tuple(debug_quantized.weights.quantized_names())
    for name in weights.quantized_names():
        found, expected = weights.quantized(name), debug_quantized.weights.quantized(name)
        assert torch.equal(found.codes, expected.codes), name
        assert torch.equal(found.scales, expected.scales), name
        assert (found.bits, found.group_size) == (expected.bits, expected.group_size)


def test_norms_read_back_exactly(debug_pte: Artifact, debug_quantized: QuantizedCheckpoint) -> None:
    weights = ExecuTorchExporter().open(debug_pte.path).weights()
    name = "model.layers.1.post_attention_layernorm.weight"
    assert torch.equal(weights.vector(name), debug_quantized.weights.vector(name))


def test_a_shared_table_is_stored_once(
    debug_pte: Artifact, debug_quantized: QuantizedCheckpoint, tmp_path: Path
) -> None:
    untied = dataclasses.replace(debug_quantized, weights=OtherHead(debug_quantized))
    artifact = lower(untied, tmp_path)
    table = debug_quantized.config.vocab_size * debug_quantized.config.hidden_size
    assert artifact.size_bytes - debug_pte.size_bytes == pytest.approx(table, rel=0.1)
    weights = ExecuTorchExporter().open(artifact.path).weights()
    flipped = weights.quantized(EMBEDDING).codes.flip(0)
    assert torch.equal(weights.quantized(LM_HEAD).codes, flipped)


def test_two_lowerings_give_the_same_bytes(
    debug_pte: Artifact, debug_quantized: QuantizedCheckpoint, tmp_path: Path
) -> None:
    assert lower(debug_quantized, tmp_path).path.read_bytes() == debug_pte.path.read_bytes()


def test_the_file_describes_itself(debug_pte: Artifact) -> None:
    assert ExecuTorchExporter().open(debug_pte.root).artifact == debug_pte


def test_the_runner_metadata_is_there(
    debug_pte: Artifact, debug_quantized: QuantizedCheckpoint
) -> None:
    pte = PteFile(debug_pte.path)
    assert pte.constant("get_eos_ids") == list(debug_quantized.text.eos_token_ids)
    assert pte.constant("get_bos_id") == [debug_quantized.text.bos_token_id]
    assert pte.constant("get_max_context_len") == [256]
    assert pte.constant("get_vocab_size") == [debug_quantized.config.vocab_size]
    assert pte.constant("use_kv_cache") == [1]


def test_the_interface_is_read_from_the_file(debug_pte: Artifact) -> None:
    interface = ExecuTorchExporter().open(debug_pte.path).interface()
    assert [item.name for item in interface.inputs] == ["tokens", "input_pos"]
    assert interface.outputs[0].shape == (1, 1, 256)
    assert "(2, 256, 1, 16)" in interface.cache


def test_every_linear_is_delegated(debug_pte: Artifact) -> None:
    placement = ExecuTorchExporter().open(debug_pte.path).placement()
    assert placement.linears == placement.linears_delegated == 2 * 7 + 1
    assert placement.weight_bytes == placement.weight_bytes_delegated > 0
    assert placement.portable["llama::custom_sdpa"] == 2
    assert placement.operators == placement.operators_delegated + sum(placement.portable.values())


def test_a_linear_outside_the_delegate_fails_the_export(
    debug_quantized: QuantizedCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_fewer(pte: PteFile) -> Placement:
        found = read_placement(pte)
        return dataclasses.replace(found, linears_delegated=found.linears_delegated - 1)

    monkeypatch.setattr("llama_edge.backends.executorch.exporter.read_placement", one_fewer)
    with pytest.raises(ExportError, match="1 of 15 linears are outside XNNPACK"):
        lower(debug_quantized, tmp_path)


@pytest.mark.parametrize("context", [0, 513])
def test_a_context_the_model_does_not_have_is_refused(
    debug_quantized: QuantizedCheckpoint, tmp_path: Path, context: int
) -> None:
    with pytest.raises(ConfigError, match=f"max_context is {context}; this model holds 1 to 512"):
        lower(debug_quantized, tmp_path, context)


def test_an_option_of_another_backend_is_refused(debug_quantized: QuantizedCheckpoint) -> None:
    with pytest.raises(UsageError, match="belongs to the onnx target"):
        ExecuTorchExporter().check_supported(
            debug_quantized.config, debug_quantized.recipe, LowerOptions(accuracy_level=4)
        )


def test_a_group_that_xnnpack_cannot_load_is_refused(debug_quantized: QuantizedCheckpoint) -> None:
    recipe = dataclasses.replace(debug_quantized.recipe, group_size=16)
    options = LowerOptions(max_context=256)
    with pytest.raises(ConfigError, match="not a multiple of 32"):
        ExecuTorchExporter().check_supported(debug_quantized.config, recipe, options)


def test_a_weight_only_recipe_is_refused(
    debug_quantized: QuantizedCheckpoint, tmp_path: Path
) -> None:
    recipe = dataclasses.replace(debug_quantized.recipe, activation_bits=None)
    checkpoint = dataclasses.replace(debug_quantized, recipe=recipe)
    with pytest.raises(
        UsageError, match=r"w4a8-rtn leaves .* floating point.* --target ios or onnx "
    ):
        ExecuTorchExporter().lower(checkpoint, tmp_path, LowerOptions(), SilentProgress())
    assert list(tmp_path.iterdir()) == []
