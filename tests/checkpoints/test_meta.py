import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llama_edge.checkpoints.base import unpermute_heads
from llama_edge.checkpoints.meta import load_meta
from llama_edge.core.errors import CheckpointError, LlamaEdgeError
from llama_edge.core.model_config import ModelConfig
from llama_edge.models.weight_names import EMBEDDING, LM_HEAD
from tests.checkpoint_writers import interleaved, random_weights, write_meta
from tests.conftest import DEBUG_CONFIG, DEBUG_SCALING

WQ = "layers.0.attention.wq.weight"
#: Meta's folder has no context length: 8192 original positions, 131072 with scaled RoPE.
CONFIG = replace(
    DEBUG_CONFIG,
    max_position_embeddings=131072,
    rope_scaling=replace(DEBUG_SCALING, original_max_position_embeddings=8192),
)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return random_weights(CONFIG)


@pytest.fixture(autouse=True)
def _no_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Converting the real tokenizer takes seconds; test_forms.py and test_tiktoken.py do it."""
    monkeypatch.setattr("llama_edge.checkpoints.meta.read_meta_text", lambda _: None)


@pytest.fixture
def meta_folder(weights: dict[str, Tensor], tmp_path: Path) -> Path:
    return write_meta(tmp_path / "meta", CONFIG, weights)


def load(folder: Path) -> ModelConfig:
    return load_meta(folder, "x").config


def change_params(folder: Path, **changes: object) -> None:
    path = folder / "params.json"
    params = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in params.items() if value is not None}))


def change_weights(folder: Path, changes: dict[str, Tensor | None], shard: int = 0) -> None:
    path = folder / f"consolidated.{shard:02}.pth"
    weights = torch.load(path, weights_only=True) | changes
    torch.save({name: value for name, value in weights.items() if value is not None}, path)


@pytest.mark.parametrize("shards", [1, 2])
def test_config_and_weights(weights: dict[str, Tensor], tmp_path: Path, shards: int) -> None:
    folder = write_meta(tmp_path / "meta", CONFIG, weights, shards)
    checkpoint = load_meta(folder, "x")
    assert checkpoint.config == CONFIG
    assert list(checkpoint.weights) == list(weights)
    for name, weight in weights.items():
        assert torch.equal(checkpoint.weights.read(name), weight.float()), name


def test_an_embedding_sliced_by_width_as_in_llama_2(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    folder = write_meta(tmp_path / "meta", CONFIG, weights, 2)
    for number, part in enumerate(weights[EMBEDDING].chunk(2, dim=1)):
        change_weights(folder, {"tok_embeddings.weight": part.clone()}, number)
    assert torch.equal(load_meta(folder, "x").weights.read(EMBEDDING), weights[EMBEDDING].float())


def test_unpermute_by_hand() -> None:
    """Two heads of four rows: pairs (0, 1) and (2, 3) become halves (0, 2) and (1, 3)."""
    rows = torch.arange(8.0)[:, None]
    assert unpermute_heads(rows, 2).flatten().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    weight = torch.randn(24, 5)
    assert torch.equal(unpermute_heads(interleaved(weight, 3), 3), weight)


def test_an_own_head_is_not_tied(meta_folder: Path, weights: dict[str, Tensor]) -> None:
    head = weights[EMBEDDING] + 1
    change_weights(meta_folder, {"output.weight": head, "rope.freqs": torch.ones(8)})
    checkpoint = load_meta(meta_folder, "x")
    assert not checkpoint.config.tie_word_embeddings
    assert torch.equal(checkpoint.weights.read(LM_HEAD), head.float())


def test_without_a_head_it_is_tied(meta_folder: Path) -> None:
    change_weights(meta_folder, {"output.weight": None})
    assert load(meta_folder).tie_word_embeddings


@pytest.mark.parametrize(
    ("dim", "layers", "key", "factor"),
    [
        (2048, 16, None, 32.0),
        (3072, 28, None, 32.0),
        (4096, 32, None, 8.0),
        (8192, 80, None, 8.0),
        (4096, 32, 32, 32.0),
        (640, 7, 16, 16.0),
    ],
)
def test_the_rope_factor_is_named_or_known(
    meta_folder: Path, dim: int, layers: int, key: int | None, factor: float
) -> None:
    """The shapes do not fit the small tensors; the factor is settled before they are compared."""
    from llama_edge.checkpoints.json_fields import Fields
    from llama_edge.checkpoints.meta import _rope_scaling

    params = {"use_scaled_rope": True, "dim": dim, "n_layers": layers, "rope_scaling_factor": key}
    scaling = _rope_scaling(Fields(meta_folder, params))
    assert scaling is not None
    assert scaling.factor == factor
    assert (scaling.low_freq_factor, scaling.high_freq_factor) == (1.0, 4.0)
    assert scaling.original_max_position_embeddings == 8192


def test_an_unknown_rope_factor_is_not_guessed(meta_folder: Path) -> None:
    change_params(meta_folder, rope_scaling_factor=None)
    with pytest.raises(CheckpointError, match='add "rope_scaling_factor": 32'):
        load(meta_folder)


def test_unscaled_rope(meta_folder: Path) -> None:
    change_params(meta_folder, use_scaled_rope=None, rope_theta=None)
    config = load(meta_folder)
    assert (config.rope_scaling, config.rope_theta) == (None, 500000.0)
    assert config.max_position_embeddings == 8192


def test_vocab_size_may_be_left_to_the_table(meta_folder: Path) -> None:
    change_params(meta_folder, vocab_size=-1)
    assert load(meta_folder).vocab_size == 256


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ffn_dim_multiplier": 2.0}, "gate_proj.* has shape"),
        ({"multiple_of": 0}, "multiple_of"),
        ({"multiple_of": 4096}, "gate_proj.* has shape"),
        ({"n_kv_heads": None}, "k_proj.* has shape"),
        ({"n_heads": 5}, "n_heads|num_attention_heads|shape"),
        ({"n_heads": 0}, "num_attention_heads"),
        ({"dim": 2**40}, "hidden_size"),
        ({"dim": "96"}, "dim"),
        ({"n_layers": 3}, "missing"),
        ({"n_layers": 1}, "unexpected"),
        ({"vocab_size": 300}, "shape"),
        ({"lora_args": {"rank": 16}}, "lora_args"),
        ({"quantization_args": {"spinquant": True}}, "quantization_args"),
        ({"use_scaled_rope": "yes"}, "use_scaled_rope"),
    ],
)
def test_params_that_do_not_fit(
    meta_folder: Path, changes: dict[str, object], message: str
) -> None:
    change_params(meta_folder, **changes)
    with pytest.raises(LlamaEdgeError, match=message) as caught:
        load(meta_folder)
    assert caught.value.exit_code == 3


def test_a_pickle_that_runs_code_is_refused(meta_folder: Path) -> None:
    """What else a file of torch can be is in test_torch_file.py."""
    torch.save({"x": Path("y")}, meta_folder / "consolidated.00.pth")
    with pytest.raises(CheckpointError, match=r"holds Python.s pathlib\.PosixPath; nothing of it"):
        load(meta_folder)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"x": torch.ones(2, dtype=torch.int8)}, "x is int8; float32, float16, bfloat16 are read"),
        ({}, "missing"),
    ],
)
def test_tensors_of_another_kind_are_refused(
    meta_folder: Path, value: object, message: str
) -> None:
    torch.save(value, meta_folder / "consolidated.00.pth")
    with pytest.raises(CheckpointError, match=message):
        load(meta_folder)


@pytest.mark.parametrize("form", ["old", "nested", "compiled", "one file", "llama2.c"])
def test_forms_of_the_file(meta_folder: Path, weights: dict[str, Tensor], form: str) -> None:
    path = meta_folder / "consolidated.00.pth"
    stored = torch.load(path, weights_only=True)
    path.unlink()
    prefix = "_orig_mod." if form in ("compiled", "llama2.c") else ""
    stored = {prefix + name: value for name, value in stored.items()}
    if form == "llama2.c":
        stored |= {"freqs_cos": torch.ones(3), "freqs_sin": torch.ones(3)}
    value = (
        {"model": stored, "model_args": {"dim": 96}} if form in ("nested", "llama2.c") else stored
    )
    name = "stories.pt" if form in ("one file", "llama2.c") else path.name
    torch.save(value, meta_folder / name, _use_new_zipfile_serialization=form != "old")
    read = load_meta(meta_folder, "x").weights
    for each, weight in weights.items():
        assert torch.equal(read.read(each), weight.float()), each


def test_which_file_it_is(meta_folder: Path) -> None:
    (meta_folder / "consolidated.00.pth").rename(meta_folder / "a.pt")
    (meta_folder / "b.pth").touch()
    with pytest.raises(CheckpointError, match=r"has no weights: .* ending in .pth or .pt; a.pt, b"):
        load(meta_folder)


def test_params_in_single_quotes(meta_folder: Path) -> None:
    path = meta_folder / "params.json"
    path.write_text(str(json.loads(path.read_text())))
    with pytest.raises(CheckpointError, match="JSON has double quotes, and no quotes around"):
        load(meta_folder)


def test_nan_is_found(meta_folder: Path, weights: dict[str, Tensor]) -> None:
    broken = weights["model.layers.0.self_attn.q_proj.weight"].clone()
    broken[:] = torch.nan
    change_weights(meta_folder, {WQ: broken})
    with pytest.raises(CheckpointError, match=r"q_proj\.weight holds nan"):
        load_meta(meta_folder, "x").weights.read("model.layers.0.self_attn.q_proj.weight")


def test_files_that_do_not_belong_together(weights: dict[str, Tensor], tmp_path: Path) -> None:
    folder = write_meta(tmp_path / "meta", CONFIG, weights, 2)
    change_weights(folder, {WQ: None}, 1)
    with pytest.raises(CheckpointError, match="different models"):
        load(folder)
    (folder / "consolidated.00.pth").unlink()
    with pytest.raises(CheckpointError, match=r"consolidated\.00\.pth is missing"):
        load(folder)
    (folder / "consolidated.01.pth").unlink()
    with pytest.raises(CheckpointError, match=r"consolidated\.00\.pth is missing"):
        load(folder)


def test_slices_of_different_width(weights: dict[str, Tensor], tmp_path: Path) -> None:
    folder = write_meta(tmp_path / "meta", CONFIG, weights, 2)
    change_weights(folder, {"output.weight": torch.ones(128, 90)}, 1)
    with pytest.raises(CheckpointError, match="do not fit together"):
        load(folder)
