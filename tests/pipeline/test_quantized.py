import dataclasses
from pathlib import Path

import pytest

from llama_edge.core.errors import UsageError
from llama_edge.core.progress import SilentProgress
from llama_edge.core.types import Checkpoint
from llama_edge.pipeline.quantize import check_calibration
from llama_edge.pipeline.quantized import cache_folder, quantize_with_cache
from llama_edge.quantize import W4A8_GPTQ, W4A8_RTN
from llama_edge.quantize.stage import hash_weights


class Stages(SilentProgress):
    """Remembers what has really run."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def start(self, stage: str, total: int) -> None:
        self.names.append(stage)


@pytest.fixture
def short_model(debug_checkpoint: Checkpoint) -> Checkpoint:
    """So short a context that it writes its calibration text at once."""
    config = dataclasses.replace(debug_checkpoint.config, max_position_embeddings=48)
    return dataclasses.replace(debug_checkpoint, config=config)


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLAMA_EDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_calibrated_once_for_all_targets(short_model: Checkpoint, tmp_path: Path) -> None:
    stages = Stages()
    first = quantize_with_cache(short_model, W4A8_GPTQ, (), tmp_path, stages)
    assert stages.names == ["write calibration text", "quantize (w4a8-gptq)"]
    again = quantize_with_cache(short_model, W4A8_GPTQ, (), tmp_path, stages)
    assert len(stages.names) == 2
    assert again.root == first.root
    assert first.source_sha256 == hash_weights(short_model.weights)


def test_a_changed_quantizer_finds_no_old_result(
    short_model: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = quantize_with_cache(short_model, W4A8_GPTQ, (), tmp_path, SilentProgress())
    monkeypatch.setattr("llama_edge.pipeline.quantized._code_sha256", lambda: "another")
    second = quantize_with_cache(short_model, W4A8_GPTQ, (), tmp_path, SilentProgress())
    assert second.root != first.root


def test_another_recipe_shares_the_text_and_nothing_else(
    short_model: Checkpoint, tmp_path: Path
) -> None:
    stages = Stages()
    first = quantize_with_cache(short_model, W4A8_GPTQ, (), tmp_path, stages)
    other = dataclasses.replace(W4A8_GPTQ, name="other")
    second = quantize_with_cache(short_model, other, (), tmp_path, stages)
    assert stages.names[2:] == ["quantize (other)"]
    assert second.root != first.root
    assert second.calibration == first.calibration


def test_a_damaged_text_is_written_again(
    short_model: Checkpoint, tmp_path: Path, fresh_cache: Path
) -> None:
    first = quantize_with_cache(short_model, W4A8_GPTQ, (), tmp_path, SilentProgress())
    (tokens,) = fresh_cache.glob("calibration/*/tokens.safetensors")
    tokens.write_bytes(b"damaged")
    stages = Stages()
    again = quantize_with_cache(short_model, W4A8_GPTQ, (), tmp_path, stages)
    assert stages.names == ["write calibration text"]
    assert again.root == first.root


def test_the_user_s_text_is_another_result(short_model: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("A text about rivers, stones and the wind. " * 10)
    first = quantize_with_cache(short_model, W4A8_GPTQ, (), tmp_path, SilentProgress())
    texts = (tmp_path / "own.txt",)
    second = quantize_with_cache(short_model, W4A8_GPTQ, texts, tmp_path, SilentProgress())
    assert second.root != first.root
    assert second.calibration is not None
    assert second.calibration.origin.startswith("text with SHA-256")


def test_rounding_to_nearest_is_not_kept(
    short_model: Checkpoint, tmp_path: Path, fresh_cache: Path
) -> None:
    (tmp_path / "scratch").mkdir()
    found = quantize_with_cache(short_model, W4A8_RTN, (), tmp_path / "scratch", SilentProgress())
    assert found.root == tmp_path / "scratch"
    assert not fresh_cache.exists()


def test_text_that_would_not_be_used_is_refused() -> None:
    with pytest.raises(UsageError, match="w4a8-rtn rounds to nearest and reads no text"):
        check_calibration(W4A8_RTN, [Path("own.txt")])


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("LLAMA_EDGE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "shared"))
    assert cache_folder() == tmp_path / "shared" / "llama-edge"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "llama-edge"
