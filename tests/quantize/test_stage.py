import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.errors import QuantizeError, UnknownNameError
from llama_edge.core.model_config import ModelConfig
from llama_edge.core.packing import tensor_bytes, tensor_sha256
from llama_edge.core.progress import SilentProgress, Steps, step_count
from llama_edge.core.quantized import QuantizedCheckpoint
from llama_edge.formats.quantized_checkpoint import CONFIG_FILE, WEIGHTS_FILE
from llama_edge.models.weight_names import EMBEDDING, LM_HEAD, block_weight
from llama_edge.quantize import DEFAULT_RECIPE, RECIPES, W4A8_RTN, get_recipe
from llama_edge.quantize.groupwise import quantize_groupwise
from llama_edge.quantize.stage import HashedWeights, hash_weights, quantize_checkpoint
from tests.conftest import DEBUG_CONFIG, MemoryWeights, debug_text


def checkpoint_of(config: ModelConfig = DEBUG_CONFIG) -> Checkpoint:
    return Checkpoint(
        source="debug", config=config, weights=MemoryWeights(config), text=debug_text()
    )


def quantize(checkpoint: Checkpoint, folder: Path) -> QuantizedCheckpoint:
    folder.mkdir()
    return quantize_checkpoint(checkpoint, W4A8_RTN, folder, SilentProgress())


class CountingProgress(SilentProgress):
    def __init__(self) -> None:
        self.total = 0
        self.done = 0

    def start(self, stage: str, steps: Steps, done: int = 0) -> None:
        self.total = step_count(steps)
        self.done = done

    def advance(self, steps: int = 1) -> None:
        self.done += steps


def test_every_matrix_has_the_codes_of_its_own_weight(
    debug_checkpoint: Checkpoint, debug_quantized: QuantizedCheckpoint
) -> None:
    names = debug_quantized.weights.quantized_names()
    assert len(names) == 2 + 2 * 7
    for name in names:
        source = EMBEDDING if name == LM_HEAD else name
        weight = debug_checkpoint.weights.read(source)
        table = source == EMBEDDING
        bits, group_size = (8, weight.shape[1]) if table else (4, 32)
        expected = quantize_groupwise(name, weight, bits=bits, group_size=group_size)
        stored = debug_quantized.weights.quantized(name)
        assert torch.equal(stored.codes, expected.codes), name
        assert torch.equal(stored.scales, expected.scales), name
        assert (stored.bits, stored.group_size) == (bits, group_size)


def test_norms_are_stored_as_they_are(
    debug_checkpoint: Checkpoint, debug_quantized: QuantizedCheckpoint
) -> None:
    for name in ("model.norm.weight", block_weight(1, "input_layernorm")):
        assert torch.equal(
            debug_quantized.weights.vector(name), debug_checkpoint.weights.read(name)
        )


def test_the_same_weights_give_the_same_bytes(
    debug_quantized: QuantizedCheckpoint, tmp_path: Path
) -> None:
    again = quantize(replace(checkpoint_of(), source="another name"), tmp_path / "again")
    files = sorted(path.name for path in debug_quantized.root.iterdir())
    assert files == sorted(path.name for path in again.root.iterdir())
    for name in files:
        assert (debug_quantized.root / name).read_bytes() == (again.root / name).read_bytes(), name


def test_one_changed_weight_changes_the_source_hash(
    debug_quantized: QuantizedCheckpoint, tmp_path: Path
) -> None:
    checkpoint = checkpoint_of()
    name = block_weight(1, "mlp.up_proj")
    changed = checkpoint.weights.read(name).clone()
    changed[3, 5] = torch.nextafter(changed[3, 5], torch.tensor(9.0))
    checkpoint.weights.tensors[name] = changed  # type: ignore[attr-defined]
    other = quantize(checkpoint, tmp_path / "other")
    assert other.source_sha256 != debug_quantized.source_sha256
    assert len(other.source_sha256) == 64


def test_an_untied_head_is_stored_on_its_own(tmp_path: Path) -> None:
    untied = quantize(
        checkpoint_of(replace(DEBUG_CONFIG, tie_word_embeddings=False)), tmp_path / "untied"
    )
    head, table = untied.weights.quantized(LM_HEAD), untied.weights.quantized(EMBEDDING)
    assert tensor_sha256(head.codes) != tensor_sha256(table.codes)
    expected = quantize_groupwise(
        LM_HEAD,
        MemoryWeights(untied.config).read(LM_HEAD),
        bits=8,
        group_size=DEBUG_CONFIG.hidden_size,
    )
    assert torch.equal(head.codes, expected.codes)


def test_a_tied_head_is_the_embedding_and_stored_once(
    debug_quantized: QuantizedCheckpoint, tmp_path: Path
) -> None:
    head = debug_quantized.weights.quantized(LM_HEAD)
    assert torch.equal(head.codes, debug_quantized.weights.quantized(EMBEDDING).codes)
    untied = quantize(
        checkpoint_of(replace(DEBUG_CONFIG, tie_word_embeddings=False)), tmp_path / "untied"
    )
    sizes = [(root / WEIGHTS_FILE).stat().st_size for root in (debug_quantized.root, untied.root)]
    assert sizes[1] - sizes[0] >= DEBUG_CONFIG.vocab_size * (DEBUG_CONFIG.hidden_size + 2)


def test_progress_counts_every_matrix(tmp_path: Path) -> None:
    progress = CountingProgress()
    quantize_checkpoint(checkpoint_of(), W4A8_RTN, tmp_path, progress)
    assert progress.done == progress.total == 1 + 2 * 7


def test_a_width_that_the_group_does_not_divide_stops_before_any_work(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(replace(DEBUG_CONFIG, intermediate_size=168))
    with pytest.raises(
        QuantizeError, match=r"layers\.0\.mlp\.down_proj\.weight: in_features 168 .* group_size 32"
    ):
        quantize_checkpoint(checkpoint, W4A8_RTN, tmp_path, SilentProgress())
    assert not list(tmp_path.iterdir())


def test_a_weight_that_is_not_finite_leaves_no_finished_folder(tmp_path: Path) -> None:
    checkpoint = checkpoint_of()
    name = block_weight(0, "mlp.gate_proj")
    checkpoint.weights.tensors[name][4, 4] = torch.nan  # type: ignore[attr-defined]
    with pytest.raises(QuantizeError, match="gate_proj"):
        quantize_checkpoint(checkpoint, W4A8_RTN, tmp_path, SilentProgress())
    assert not (tmp_path / CONFIG_FILE).exists()


class OneAtATimeWeights(MemoryWeights):
    """Fails when a weight is asked for while an earlier matrix is still held."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.given: list[weakref.ref[Tensor]] = []

    def read(self, name: str) -> Tensor:
        assert all(reference() is None for reference in self.given), f"held when reading {name}"
        tensor = super().read(name).clone()
        if tensor.ndim == 2:
            self.given.append(weakref.ref(tensor))
        return tensor


def test_one_full_precision_matrix_is_held_at_a_time(tmp_path: Path) -> None:
    weights = OneAtATimeWeights(DEBUG_CONFIG)
    quantize(replace(checkpoint_of(), weights=weights), tmp_path / "streamed")
    assert len(weights.given) == 1 + 2 * 7


def test_holding_a_matrix_would_be_noticed() -> None:
    weights = OneAtATimeWeights(DEBUG_CONFIG)
    held = weights.read(EMBEDDING)
    with pytest.raises(AssertionError, match="held when reading"):
        weights.read(EMBEDDING)
    assert held is not None


def test_a_recipe_is_found_by_its_name() -> None:
    assert get_recipe(DEFAULT_RECIPE) is RECIPES[DEFAULT_RECIPE]
    assert get_recipe("w4a8-rtn").to_json()["group_size"] == 32
    with pytest.raises(UnknownNameError, match=r"recipe 'w5' is unknown; choose from: w4a8-rtn"):
        get_recipe("w5")


def test_a_weight_is_hashed_once(
    debug_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache's key and the record of the source are of one hash."""
    hashed: list[Tensor] = []

    def counted(tensor: Tensor) -> memoryview:
        hashed.append(tensor)
        return tensor_bytes(tensor)

    monkeypatch.setattr("llama_edge.quantize.stage.tensor_bytes", counted)
    weights = HashedWeights.of(debug_checkpoint.weights)
    first = hash_weights(weights)
    checkpoint = replace(debug_checkpoint, weights=weights)
    quantized = quantize_checkpoint(checkpoint, W4A8_RTN, tmp_path, SilentProgress())
    assert quantized.source_sha256 == first
    assert len(hashed) == len(list(debug_checkpoint.weights))
