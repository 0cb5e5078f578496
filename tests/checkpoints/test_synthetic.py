import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from llama_edge.checkpoints import load_checkpoint
from llama_edge.checkpoints import synthetic as synthetic_module
from llama_edge.checkpoints.synthetic import random_weight, write_synthetic
from llama_edge.checkpoints.synthetic_text import synthetic_text
from llama_edge.core.errors import ConfigError, OutputError, UnknownNameError
from llama_edge.core.model_config import ModelConfig
from llama_edge.core.model_shapes import SHAPES, get_shape
from llama_edge.core.progress import SilentProgress
from llama_edge.models.reference import Reference
from llama_edge.models.sources import FullPrecisionSource
from llama_edge.models.weight_names import block_weight
from llama_edge.models.weights import weight_shapes
from llama_edge.text.tokenizer import Tokenizer

#: Reference Guard's, shrunk: a head of its own, so every kind of weight is there.
SMALL = replace(
    get_shape("llama-guard-3-1b").config,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    intermediate_size=160,
    vocab_size=768,
)


def write(folder: Path, config: ModelConfig = SMALL, seed: int = 0) -> Path:
    folder.mkdir()
    write_synthetic(folder, "small", config, seed, SilentProgress())
    return folder


def hashes(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def test_what_is_written_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic_module, "MAX_SHARD_BYTES", 150_000)
    folder = write(tmp_path / "model")
    assert len(list(folder.glob("*.safetensors"))) > 2
    checkpoint = load_checkpoint(str(folder))
    assert checkpoint.config == SMALL
    assert list(checkpoint.weights) == list(weight_shapes(SMALL))
    name = block_weight(1, "mlp.down_proj")
    expected = random_weight(name, (64, 160), seed=0).float()
    assert torch.equal(checkpoint.weights.read(name), expected)


def test_transformers_computes_the_same(tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    checkpoint = load_checkpoint(str(folder))
    tokens = torch.tensor([[512, 5, 99, 300, 7]])
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        wanted = theirs(tokens).logits[0]
        source = FullPrecisionSource(checkpoint.config, checkpoint.weights)
        found = Reference(checkpoint.config, source).logits(tokens[0])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    first, again = hashes(write(tmp_path / "a")), hashes(write(tmp_path / "b"))
    other = hashes(write(tmp_path / "c", seed=1))
    assert first == again
    weights = "model-00001-of-00001.safetensors"
    assert {name for name in first if first[name] != other[name]} == {weights, "README.md"}
    # What NumPy or torch of another version must not change.
    digest = hashlib.sha256(
        random_weight("lm_head.weight", (64, 64), seed=0).view(torch.uint8).numpy().tobytes()
    )
    assert digest.hexdigest() == "528dffe6e3e17dc888e3bf2a8420626c265f31a78ab0af3d89c7209215578a7b"


def test_a_shorter_model_begins_as_the_longer_one(tmp_path: Path) -> None:
    long = load_checkpoint(str(write(tmp_path / "long")))
    one = replace(SMALL, num_hidden_layers=1)
    short = load_checkpoint(str(write(tmp_path / "short", one)))
    assert all(torch.equal(short.weights.read(n), long.weights.read(n)) for n in short.weights)


def test_weights_spread_as_said_and_few_channels_stand_out() -> None:
    up = random_weight(block_weight(0, "mlp.up_proj"), (2048, 1024), seed=0).float()
    down = random_weight(block_weight(0, "mlp.down_proj"), (1024, 2048), seed=0).float()
    norm = random_weight(block_weight(3, "input_layernorm"), (2048,), seed=0).float()
    other_norm = random_weight(block_weight(4, "input_layernorm"), (2048,), seed=0).float()
    std = (0.4 / 1024) ** 0.5
    assert up.std().item() == pytest.approx(std, rel=0.02)
    assert down.std().item() == pytest.approx(std / 32**0.5, rel=0.02)
    assert abs(up.mean().item()) < 1e-4
    assert up.std(1).max() > 1.5 * up.std(1).min()
    large = (norm > 4).nonzero().flatten().tolist()
    assert 0 < len(large) <= 4
    assert large == (other_norm > 4).nonzero().flatten().tolist()
    assert norm.median().item() == pytest.approx(1, abs=0.02)


def test_the_published_vocabulary_has_llama_3s_control_tokens() -> None:
    text = synthetic_text(128256)
    tokenizer = Tokenizer(text)
    assert tokenizer.vocab_size == 128256
    assert text.bos_token_id == 128000
    assert text.eos_token_ids == (128001, 128008, 128009)
    ids = tokenizer.encode_chat([{"role": "user", "content": "What is the capital? 北京, ñandú"}])
    assert ids[:2] == [128000, 128006]
    assert tokenizer.decode(ids[4:-6]).strip() == "What is the capital? 北京, ñandú"
    words = tokenizer.encode("the capital of the country", add_bos=False)
    assert len(words) < 15


def test_too_small_a_vocabulary_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"vocab_size is 511.*at least 512"):
        synthetic_text(511)


def test_a_real_tokenizer_takes_the_place_of_the_made_up_one(tmp_path: Path) -> None:
    given = synthetic_text(700)
    write_synthetic(tmp_path, "small", SMALL, 0, SilentProgress(), given)
    assert load_checkpoint(str(tmp_path)).text == given
    assert "tokenizer is made up" not in (tmp_path / "README.md").read_text()
    larger = synthetic_text(769)
    with pytest.raises(ConfigError, match=r"has 769 tokens and small a vocabulary of 768; give"):
        write_synthetic(tmp_path, "small", SMALL, 0, SilentProgress(), larger)


def test_a_full_disk_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(OutputError, match=r"needs .* MiB and 0 MiB are free"):
        write_synthetic(tmp_path, "small", SMALL, 0, SilentProgress())
    assert not list(tmp_path.iterdir())


def test_an_unknown_shape_is_told_with_those_that_are_known() -> None:
    with pytest.raises(UnknownNameError, match=r"'llama-9' is unknown.*llama-3.2-1b"):
        get_shape("llama-9")


@pytest.mark.parametrize(
    ("name", "millions"),
    # Published: 1.23, 3.21 and (1.23 with a head of its own) 1.50 billion; 1123 million with a
    # whole head, which has 262.6 million more than one of 20 rows.
    [
        ("llama-3.2-1b", 1235.8),
        ("llama-3.2-3b", 3212.7),
        ("llama-guard-3-1b", 1498.5),
        ("llama-guard-3-1b-int4", 1123 - 262.6),
    ],
)
def test_shapes_have_the_published_number_of_parameters(name: str, millions: float) -> None:
    shapes = weight_shapes(SHAPES[name].config).values()
    count = sum(torch.Size(shape).numel() for shape in shapes)
    assert count / 1e6 == pytest.approx(millions, abs=0.1)
