from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.errors import QuantizeError
from llama_edge.core.model_shapes import get_shape
from llama_edge.core.progress import SilentProgress
from llama_edge.quantize.arithmetic import EXACT
from llama_edge.quantize.calibration import (
    LENGTH,
    LENGTH_OF_LARGE,
    SEQUENCES,
    CalibrationSet,
    generate_calibration,
    read_calibration,
    sequence_length,
)
from llama_edge.quantize.calibration_prompts import PROMPTS
from llama_edge.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def generated(debug_checkpoint: Checkpoint) -> CalibrationSet:
    return generate_calibration(debug_checkpoint, 0, SilentProgress(), EXACT, length=48)


def test_every_prompt_begins_a_sequence(
    generated: CalibrationSet, debug_checkpoint: Checkpoint
) -> None:
    assert generated.tokens.shape == (SEQUENCES, 48)
    tokenizer = Tokenizer(debug_checkpoint.text)
    for row, prompt in zip(generated.tokens, PROMPTS, strict=True):
        tokens = (
            tokenizer.encode_chat([{"role": "user", "content": prompt.text}])
            if prompt.is_request
            else tokenizer.encode(prompt.text)
        )
        assert row[: min(24, len(tokens))].tolist() == tokens[:24]


def test_the_seed_decides_what_is_written(
    generated: CalibrationSet, debug_checkpoint: Checkpoint
) -> None:
    again = generate_calibration(debug_checkpoint, 0, SilentProgress(), EXACT, length=48)
    other = generate_calibration(debug_checkpoint, 1, SilentProgress(), EXACT, length=48)
    assert again.record() == generated.record()
    assert other.record().sha256 != generated.record().sha256
    assert torch.equal(other.tokens[:, :8], generated.tokens[:, :8])


def test_large_models_write_shorter_sequences(debug_checkpoint: Checkpoint) -> None:
    one_billion = get_shape("llama-3.2-1b").config
    assert sequence_length(one_billion) == LENGTH_OF_LARGE < LENGTH
    assert sequence_length(replace(one_billion, max_position_embeddings=100)) == 100
    small = replace(debug_checkpoint.config, max_position_embeddings=4096)
    assert sequence_length(small) == LENGTH


def test_the_user_s_own_text_is_cut_into_windows(
    debug_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("one sentence about rivers and stones. " * 20)
    (tmp_path / "b.txt").write_text("and another one.")
    found = read_calibration(debug_checkpoint, [tmp_path / "a.txt", tmp_path / "b.txt"], 64)
    tokens = Tokenizer(debug_checkpoint.text).encode((tmp_path / "a.txt").read_text())
    assert found.tokens[0].tolist() == tokens[:64]
    assert found.tokens.shape[1] == 64
    assert found.origin.startswith("text with SHA-256 ")


def test_one_short_text_is_one_short_window(debug_checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a text of some more than thirty-two byte-sized tokens")
    assert read_calibration(debug_checkpoint, [tmp_path / "a.txt"]).tokens.shape[0] == 1


def test_text_shorter_than_a_group_is_refused(debug_checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("too short")
    with pytest.raises(QuantizeError, match="tokens of calibration text; at least 32"):
        read_calibration(debug_checkpoint, [tmp_path / "a.txt"])


def test_a_file_that_is_no_text(debug_checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"\xff\xfe\x00")
    for name, why in (("a.bin", "is saved as UTF-16"), ("absent.txt", "the file is missing")):
        with pytest.raises(QuantizeError, match=f"{name}: {why}"):
            read_calibration(debug_checkpoint, [tmp_path / name])
