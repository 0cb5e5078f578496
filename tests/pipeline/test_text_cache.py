"""Calibration text in a file: written once, used elsewhere, refused where it does not belong."""

import hashlib
import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.errors import OutputError, QuantizeError, UsageError
from llama_edge.core.progress import SilentProgress, Steps
from llama_edge.core.quantized import QuantizedCheckpoint
from llama_edge.pipeline.quantize import check_calibration
from llama_edge.pipeline.quantized import quantize_with_cache
from llama_edge.pipeline.text_cache import MAX_FILE_BYTES, TextCache, calibration_texts
from llama_edge.quantize import W4A8_DISTILLED, W4A8_GPTQ, W4A8_META_QAT, W4A8_RTN
from llama_edge.quantize.stage import hash_weights
from tests.conftest import DEBUG_CONFIG, MemoryWeights


class Stages(SilentProgress):
    """Remembers what has really run."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def start(self, stage: str, steps: Steps, done: int = 0) -> None:
        self.names.append(stage)


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_EDGE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def model(debug_checkpoint: Checkpoint) -> Checkpoint:
    """So short a context that it writes its calibration text at once."""
    config = replace(debug_checkpoint.config, max_position_embeddings=48)
    return replace(debug_checkpoint, config=config)


@pytest.fixture(scope="module")
def fine_tune(model: Checkpoint) -> Checkpoint:
    return replace(model, weights=MemoryWeights(DEBUG_CONFIG, seed=1))


@pytest.fixture(scope="module")
def written(model: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that a run has written."""
    place = tmp_path_factory.mktemp("text")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLAMA_EDGE_CACHE", str(place / "cache"))
        quantize(model, place / "text.safetensors")
    return place / "text.safetensors"


def quantize(
    model: Checkpoint, file: Path, stages: SilentProgress | None = None, seed: int = 0
) -> QuantizedCheckpoint:
    recipe = replace(W4A8_GPTQ, seed=seed)
    return quantize_with_cache(model, recipe, TextCache(file), Path(), stages or SilentProgress())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_file_is_one_that_safetensors_reads(written: Path, model: Checkpoint) -> None:
    tokens = load_file(written)["tokens"]
    assert tokens.dtype == torch.int64
    assert tokens.shape[1] == 48
    with safe_open(written, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["seed"] == "0"
    assert metadata["model_sha256"] == hash_weights(model.weights)


def test_a_text_that_is_there_is_not_written_again(
    model: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, stages = tmp_path / "text.safetensors", Stages()
    first = quantize(model, file, stages)
    assert stages.names == ["write calibration text", "quantize (w4a8-gptq)"]
    data = file.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", file.name]
    # Another target of the same export finds the result itself.
    again = quantize(model, file, stages)
    assert (again.root, len(stages.names)) == (first.root, 2)
    # Another machine finds the text alone, and comes to the same bytes.
    monkeypatch.setenv("LLAMA_EDGE_CACHE", str(tmp_path / "another"))
    elsewhere = quantize(model, file, stages)
    assert stages.names[2:] == ["quantize (w4a8-gptq)"]
    assert contents(elsewhere.root) == contents(first.root)
    assert file.read_bytes() == data
    assert first.calibration is not None
    assert first.calibration.origin == (
        f"text cache with SHA-256 {hashlib.sha256(data).hexdigest()}: self-generated, seed 0, by "
        f"model {hash_weights(model.weights)}"
    )


def test_the_text_is_the_one_that_the_model_writes_without(
    model: Checkpoint, written: Path, tmp_path: Path
) -> None:
    plain = quantize_with_cache(model, W4A8_GPTQ, (), tmp_path, SilentProgress())
    kept = quantize(model, written)
    assert plain.calibration is not None
    assert kept.calibration is not None
    assert plain.calibration.sha256 == kept.calibration.sha256
    assert plain.calibration.origin == "self-generated, seed 0"
    name = "weights.safetensors"
    assert (plain.root / name).read_bytes() == (kept.root / name).read_bytes()


def test_another_recipe_and_a_fine_tune_take_it(
    model: Checkpoint, fine_tune: Checkpoint, written: Path
) -> None:
    stages = Stages()
    found = quantize(fine_tune, written, stages)
    assert stages.names == ["quantize (w4a8-gptq)"]
    assert found.calibration is not None
    assert hash_weights(model.weights) in found.calibration.origin
    recipe = replace(W4A8_GPTQ, name="other", group_size=16)
    quantize_with_cache(model, recipe, TextCache(written), Path(), stages)
    assert stages.names[1:] == ["quantize (other)"]


def test_a_recipe_of_several_texts_is_refused() -> None:
    file = TextCache(Path("text.safetensors"))
    message = "--text-cache text.safetensors: keeps one text, and for recipe w4a8-distilled .* 3; "
    with pytest.raises(UsageError, match=message):
        check_calibration(W4A8_DISTILLED, file)
    check_calibration(W4A8_DISTILLED, (Path("own.txt"),))
    assert W4A8_DISTILLED.distillation is not None
    distillation = replace(W4A8_DISTILLED.distillation, texts=1)
    check_calibration(replace(W4A8_DISTILLED, distillation=distillation), file)


def test_a_model_that_cannot_write_its_own_takes_it(
    model: Checkpoint, written: Path, tmp_path: Path
) -> None:
    """As a guard with a pruned head."""
    config = replace(model.config, output_rows=(1, 2), tie_word_embeddings=False)
    guard = replace(model, config=config)
    assert TextCache(written).read(guard, 0) is not None
    with pytest.raises(UsageError, match="has the model write its own calibration text"):
        quantize(guard, tmp_path / "absent.safetensors")


def other_template(model: Checkpoint) -> Checkpoint:
    template = f"{model.text.chat_template}{{# another #}}"
    return replace(model, text=replace(model.text, chat_template=template))


def no_template(model: Checkpoint) -> Checkpoint:
    return replace(model, text=replace(model.text, chat_template=None))


def other_tokens(model: Checkpoint) -> Checkpoint:
    """Two letters have each other's ids."""
    value = json.loads(model.text.tokenizer_json)
    vocabulary = value["model"]["vocab"]
    vocabulary["e"], vocabulary["t"] = vocabulary["t"], vocabulary["e"]
    return replace(model, text=replace(model.text, tokenizer_json=json.dumps(value)))


def shorter(model: Checkpoint) -> Checkpoint:
    return replace(model, config=replace(model.config, max_position_embeddings=40))


def fewer_tokens(model: Checkpoint) -> Checkpoint:
    return replace(model, config=replace(model.config, vocab_size=100))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (other_tokens, "has another tokenizer's ids; name a file that is not there"),
        (other_template, "has another chat template's requests; name a file"),
        (no_template, "has another chat template's requests; name a file"),
        (shorter, "has sequences of 48 tokens; the model has 40 positions"),
        (fewer_tokens, r"has the token \d+; the model has 100"),
    ],
)
def test_a_text_for_another_model_is_refused(
    other: Callable[[Checkpoint], Checkpoint], message: str, model: Checkpoint, written: Path
) -> None:
    before = written.read_bytes()
    with pytest.raises(QuantizeError, match=message) as caught:
        quantize(other(model), written)
    assert str(caught.value).startswith(f"{written}: ")
    assert caught.value.exit_code == 3
    assert written.read_bytes() == before


def test_a_vocabulary_with_more_tokens_is_the_same(model: Checkpoint, written: Path) -> None:
    """As a fine-tune has that adds a token for padding."""
    value = json.loads(model.text.tokenizer_json)
    added = {**value["added_tokens"][0], "content": "<|pad|>", "id": 4000}
    value["added_tokens"].append(added)
    value["model"]["vocab"]["<|pad|>"] = 4000
    text = replace(model.text, tokenizer_json=json.dumps(value))
    assert TextCache(written).read(replace(model, text=text), 0) is not None


def test_another_seed_is_refused(model: Checkpoint, written: Path) -> None:
    with pytest.raises(QuantizeError, match="was written with seed 0, and the recipe's is 7; give"):
        quantize(model, written, seed=7)


def test_another_versions_prompts_are_refused(
    model: Checkpoint, written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llama_edge.pipeline.text_cache.REQUESTS", ("Tell a story.",))
    with pytest.raises(QuantizeError, match="has another version's prompts"):
        quantize(model, written)


def changed(data: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """With another header; the tokens stay."""
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda _: b"", "is no safetensors file with a header of at most"),
        (lambda _: b"\xff" * 100, "is no safetensors file with a header"),
        (lambda data: data[:50], "is no safetensors file with a header"),
        (lambda data: data[:-8], "is damaged: .* tokens take .* there are"),
        (lambda data: data + b"\0", "is damaged"),
        (lambda data: data[:8] + b"x" + data[9:], "not readable as JSON"),
        (lambda data: data + bytes(MAX_FILE_BYTES), "at most 16777216 are read"),
        (lambda data: changed(data, lambda h: h.pop("__metadata__")), "is no calibration text"),
        (lambda data: changed(data, lambda h: h.update(more=1)), "is no calibration text"),
        (
            lambda data: changed(data, lambda h: h["__metadata__"].update(format="other")),
            "says format 'other', version 1; 'llama-edge calibration text', version 1",
        ),
        (
            lambda data: changed(data, lambda h: h["__metadata__"].update(format_version="2")),
            "version 2; .* version 1, is read here",
        ),
        (
            lambda data: changed(data, lambda h: h["tokens"].update(dtype="F64")),
            "is no calibration text of llama-edge: .*dtype",
        ),
        (lambda data: changed(data, lambda h: h["tokens"].update(shape=[0, 48])), "shape"),
        (lambda data: changed(data, lambda h: h["tokens"].update(shape=[48])), "shape"),
        (lambda data: changed(data, lambda h: h["tokens"].update(shape=[1, 48])), "is damaged"),
        (
            lambda data: changed(data, lambda h: h["tokens"].update(data_offsets=[8, 16])),
            "is damaged",
        ),
        (lambda data: data[:-8] + struct.pack("<q", -1), "has the token -1; the model has 256"),
        (lambda data: data[:-8] + struct.pack("<q", 256), "has the token 256; the model has 256"),
    ],
)
def test_a_damaged_file_is_refused_and_stays(
    damage: Callable[[bytes], bytes],
    message: str,
    model: Checkpoint,
    written: Path,
    tmp_path: Path,
) -> None:
    file = tmp_path / "text.safetensors"
    file.write_bytes(damage(written.read_bytes()))
    before = file.read_bytes()
    with pytest.raises(QuantizeError, match=message):
        quantize(model, file)
    assert file.read_bytes() == before


def test_too_little_text_is_refused(model: Checkpoint, written: Path, tmp_path: Path) -> None:
    with safe_open(written, framework="pt") as file:
        metadata = file.metadata()
    save_file({"tokens": torch.zeros(1, 31, dtype=torch.int64)}, tmp_path / "few", metadata)
    with pytest.raises(QuantizeError, match="has 31 tokens; at least 32 are needed"):
        quantize(model, tmp_path / "few")


def test_a_token_that_was_changed_may_be_any_other(
    model: Checkpoint, written: Path, tmp_path: Path
) -> None:
    """What the text says is not checked but recorded, by its hash."""
    file = tmp_path / "text.safetensors"
    data = written.read_bytes()
    one, other = data[-8:], data[-16:-8]
    file.write_bytes(data[:-16] + one + other)
    found = TextCache(file).read(model, 0)
    expected = TextCache(written).read(model, 0)
    assert found is not None
    assert expected is not None
    assert found.origin != expected.origin


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent/text", "there is no folder .*absent; make it first"),
        ("locked/text", "not writable"),
    ],
)
def test_a_place_that_cannot_be_written_is_known_before_any_work(
    name: str, message: str, model: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "locked").mkdir()
    monkeypatch.setattr("os.access", lambda path, _: Path(path).name != "locked")
    stages = Stages()
    with pytest.raises(OutputError, match=message):
        quantize(model, tmp_path / name, stages)
    assert stages.names == []


def test_what_is_no_file_is_a_message(model: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(QuantizeError, match="is a folder; a regular file is needed"):
        quantize(model, tmp_path)
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(QuantizeError, match="the file is missing"):
        quantize(model, tmp_path / "link")
    assert not (tmp_path / "nowhere").exists()


def test_a_file_that_appears_meanwhile_is_not_replaced(
    model: Checkpoint, written: Path, tmp_path: Path
) -> None:
    file = tmp_path / "text.safetensors"

    class Puts(Stages):
        """While the text is being written."""

        data = b""

        def advance(self, steps: int = 1) -> None:
            file.write_bytes(self.data)

    foreign = Puts()
    foreign.data = b"mine, and not to be lost"
    with pytest.raises(QuantizeError, match="is no safetensors file"):
        quantize(model, file, foreign)
    assert file.read_bytes() == foreign.data
    file.unlink()
    same = Puts()
    same.data = written.read_bytes()
    found = quantize(model, file, same)
    assert found.calibration is not None
    assert hashlib.sha256(same.data).hexdigest() in found.calibration.origin
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_a_text_that_cannot_be_kept_is_a_message(
    model: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("llama_edge.pipeline.text_cache.write_safetensors", full)
    file = tmp_path / "text.safetensors"
    with pytest.raises(OutputError, match="cannot be written: No space left"):
        quantize(model, file)
    assert not file.exists()


def test_a_text_that_would_not_be_used_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "text"
    assert calibration_texts((), None) == ()
    assert calibration_texts((), file) == TextCache(file)
    assert calibration_texts([file], None) == (file,)
    with pytest.raises(UsageError, match=r"with --calibration .* it writes none; leave one"):
        calibration_texts([file], file)
    check_calibration(W4A8_GPTQ, TextCache(file))
    with pytest.raises(UsageError, match=r"--text-cache .*text: recipe w4a8-rtn rounds to nearest"):
        check_calibration(W4A8_RTN, TextCache(file))
    with pytest.raises(UsageError, match="w4a8-meta-qat keeps its codes and reads no text"):
        check_calibration(W4A8_META_QAT, TextCache(file))
