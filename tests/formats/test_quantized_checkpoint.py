import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.errors import ArtifactError, LlamaEdgeError
from llama_edge.core.packing import unpack_int4
from llama_edge.core.progress import SilentProgress
from llama_edge.core.quantized import QuantizedCheckpoint
from llama_edge.core.recipe import Recipe
from llama_edge.formats.quantized_checkpoint import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    Layout,
    read_quantized_checkpoint,
    write_safetensors,
)
from llama_edge.models.weight_names import EMBEDDING, FINAL_NORM, LM_HEAD, block_weight
from llama_edge.quantize.stage import quantize_checkpoint
from tests.conftest import DEBUG_CONFIG, MemoryWeights, debug_text

UP = block_weight(1, "mlp.up_proj")


@pytest.fixture
def folder(debug_quantized: QuantizedCheckpoint, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(debug_quantized.root, tmp_path / "copy")


def test_a_folder_comes_back_as_it_was_written(debug_quantized: QuantizedCheckpoint) -> None:
    again = read_quantized_checkpoint(debug_quantized.root)
    assert replace(again, weights=debug_quantized.weights) == debug_quantized


def test_the_official_library_reads_the_file(debug_quantized: QuantizedCheckpoint) -> None:
    tensors = load_file(debug_quantized.root / WEIGHTS_FILE)
    layout = Layout(debug_quantized.config, debug_quantized.recipe).stored_tensors()
    assert set(tensors) == set(layout)
    assert f"{LM_HEAD}.codes" not in tensors
    up = debug_quantized.weights.quantized(UP)
    assert torch.equal(unpack_int4(tensors[f"{UP}.codes"]), up.codes)
    assert torch.equal(tensors[f"{UP}.scales"], up.scales)
    assert tensors[f"{EMBEDDING}.codes"].dtype == torch.int8
    assert tensors[FINAL_NORM].dtype == torch.float32


def test_every_tensor_starts_at_a_multiple_of_its_item(tmp_path: Path) -> None:
    # With an odd vocabulary the table's scales have 2 bytes more than a multiple of 4; the
    # official library cannot view a float32 tensor that starts there.
    config = replace(DEBUG_CONFIG, vocab_size=257)
    checkpoint = Checkpoint(
        source="", config=config, weights=MemoryWeights(config), text=debug_text()
    )
    quantize_checkpoint(checkpoint, Recipe(name="r", summary=""), tmp_path, SilentProgress())
    data = (tmp_path / WEIGHTS_FILE).read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    assert (8 + length) % 8 == 0
    item = {"I8": 1, "U8": 1, "BF16": 2, "F32": 4}
    for name, entry in json.loads(data[8 : 8 + length]).items():
        assert entry["data_offsets"][0] % item[entry["dtype"]] == 0, name
    tensors = load_file(tmp_path / WEIGHTS_FILE)
    assert torch.equal(tensors[FINAL_NORM], checkpoint.weights.read(FINAL_NORM))


@pytest.mark.parametrize(("weight_bits", "table_bits"), [(8, 8), (4, 4), (8, 4)])
def test_other_bits_are_stored_in_their_own_width(
    tmp_path: Path, debug_checkpoint: Checkpoint, weight_bits: int, table_bits: int
) -> None:
    recipe = Recipe(name="r", summary="", weight_bits=weight_bits, table_bits=table_bits)
    stored = quantize_checkpoint(debug_checkpoint, recipe, tmp_path, SilentProgress())
    for name, bits in ((UP, weight_bits), (EMBEDDING, table_bits)):
        tensor = stored.weights.quantized(name)
        assert tensor.bits == bits
        whole_row = name == EMBEDDING and bits == 8
        assert tensor.group_size == (tensor.shape[1] if whole_row else recipe.group_size)
        error = (tensor.dequantize() - debug_checkpoint.weights.read(name)).abs().max().item()
        assert error <= 0.51 * tensor.scales.max().item()


def test_the_writer_wants_the_layouts_order_and_all_of_it(tmp_path: Path) -> None:
    layout = {"a": ("I8", (2,)), "b": ("F32", (1, 1))}
    a, b = ("a", torch.zeros(2, dtype=torch.int8)), ("b", torch.ones(1, 1))
    write_safetensors(tmp_path / "good", layout, [a, b])
    assert load_file(tmp_path / "good")["b"].tolist() == [[1.0]]
    with pytest.raises(AssertionError, match="b written as a"):
        write_safetensors(tmp_path / "bad", layout, [b, a])
    with pytest.raises(ValueError, match="shorter"):
        write_safetensors(tmp_path / "short", layout, [a])


def change_json(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads((folder / CONFIG_FILE).read_text())
    change(value)
    (folder / CONFIG_FILE).write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format_version=2), "format_version is 2; this program reads 1"),
        (lambda d: d.pop("format_version"), "format_version is None"),
        (lambda d: d.pop("config"), "'config' is missing"),
        (lambda d: d.pop("recipe"), "'recipe' is missing"),
        (lambda d: d.pop("source_sha256"), "'source_sha256' is missing"),
        (lambda d: d.update(config=[]), "mapping"),
        (lambda d: d.update(recipe="w4a8"), "mapping"),
        (lambda d: d["recipe"].update(group_size=0), "group_size is 0"),
        (lambda d: d["recipe"].update(weight_bits=3), "weight_bits is 3"),
        (lambda d: d["recipe"].update(activation_bits=16), "activation_bits is 16"),
        (lambda d: d["recipe"].update(strange=1), "strange"),
        (lambda d: d["config"].update(hidden_size=-96), "hidden_size is -96"),
        (lambda d: d["config"].update(num_hidden_layers=10**9), "num_hidden_layers is 1000000000"),
        (lambda d: d["config"].update(num_hidden_layers=3), r"layers\.2\..* is missing"),
        (lambda d: d["config"].update(intermediate_size=192), r"needed"),
        (lambda d: d["config"].update(tie_word_embeddings=False), r"lm_head.* is missing"),
        (lambda d: d["recipe"].update(group_size=16), r"BF16 .* is needed"),
    ],
)
def test_a_damaged_description_is_refused(
    folder: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    change_json(folder, change)
    with pytest.raises(ArtifactError, match=message):
        read_quantized_checkpoint(folder)


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE, "tokenizer.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "folder"])
def test_a_damaged_file_is_named(folder: Path, name: str, damage: str) -> None:
    path = folder / name
    data = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "missing":
        path.write_bytes(data[: len(data) // 2 if damage == "truncated" else 0])
    with pytest.raises(LlamaEdgeError, match=name):
        read_quantized_checkpoint(folder)


@pytest.mark.parametrize(
    "header",
    [
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 64) + b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,99999999999]}}',
    ],
)
def test_a_lying_header_is_refused(folder: Path, header: bytes) -> None:
    (folder / WEIGHTS_FILE).write_bytes(header)
    with pytest.raises(ArtifactError, match=WEIGHTS_FILE):
        read_quantized_checkpoint(folder)


def change_tensor(folder: Path, name: str, change: Callable[[Tensor], Tensor]) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    tensors[name] = change(tensors[name].clone()).contiguous()
    save_file(tensors, folder / WEIGHTS_FILE)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (f"{UP}.codes", lambda t: t.view(torch.int8)),
        (f"{UP}.codes", lambda t: t[:-1]),
        (f"{UP}.scales", lambda t: t.to(torch.float16)),
        (f"{EMBEDDING}.scales", lambda t: t.flatten()),
        (FINAL_NORM, lambda t: t.bfloat16()),
    ],
)
def test_a_tensor_of_another_type_or_shape_is_refused_on_opening(
    folder: Path, name: str, change: Callable[[Tensor], Tensor]
) -> None:
    change_tensor(folder, name, change)
    with pytest.raises(ArtifactError, match=f"{name} is .* is needed"):
        read_quantized_checkpoint(folder)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_no_backend_holds_is_refused_on_reading(folder: Path, value: float) -> None:
    def plant(scales: Tensor) -> Tensor:
        scales[7, 1] = value
        return scales

    change_tensor(folder, f"{UP}.scales", plant)
    weights = read_quantized_checkpoint(folder).weights
    with pytest.raises(ArtifactError, match=rf"{UP} is damaged: a scale is"):
        weights.quantized(UP)
    assert weights.quantized(block_weight(0, "mlp.up_proj")).bits == 4


def test_a_norm_that_is_not_finite_is_refused_on_reading(folder: Path) -> None:
    change_tensor(folder, FINAL_NORM, lambda norm: norm * torch.nan)
    with pytest.raises(ArtifactError, match=f"{FINAL_NORM} is damaged"):
        read_quantized_checkpoint(folder).weights.vector(FINAL_NORM)
