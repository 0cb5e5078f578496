import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from torch import Tensor

from llama_edge.checkpoints import load_checkpoint
from llama_edge.checkpoints.gguf import load_gguf
from llama_edge.checkpoints.gguf_file import GgufFile
from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.errors import CheckpointError, LlamaEdgeError, TokenizerError
from llama_edge.models.weight_names import EMBEDDING, LM_HEAD
from llama_edge.text.tokenizer import Tokenizer
from tests.checkpoint_writers import random_weights, write_gguf
from tests.conftest import DEBUG_CONFIG, DEBUG_SCALING

assert DEBUG_CONFIG.rope_scaling is not None
#: GGUF has no original context length of its own; Llama 3's is 8192.
CONFIG = replace(
    DEBUG_CONFIG,
    hidden_size=256,
    head_dim=32,
    num_attention_heads=8,
    intermediate_size=512,
    rope_scaling=replace(DEBUG_SCALING, original_max_position_embeddings=8192),
)
UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return random_weights(CONFIG)


@pytest.fixture
def path(weights: dict[str, Tensor], debug_checkpoint: Checkpoint, tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "model.gguf", CONFIG, weights, debug_checkpoint.text, pre="smollm")


def test_config_weights_and_text(
    path: Path, weights: dict[str, Tensor], debug_checkpoint: Checkpoint
) -> None:
    checkpoint = load_checkpoint(str(path))
    assert checkpoint.config == CONFIG
    assert replace(checkpoint.text, generation_defaults={}) == replace(
        debug_checkpoint.text, generation_defaults={}
    )
    for name, weight in weights.items():
        assert torch.equal(checkpoint.weights.read(name), weight.float()), name


@pytest.mark.parametrize(
    ("kind", "error"),
    [(Kind.F32, 0), (Kind.F16, 1e-3), (Kind.BF16, 0), (Kind.Q8_0, 0.01), (Kind.Q4_0, 0.15),
     (Kind.Q4_1, 0.15)],
)  # fmt: skip
def test_block_formats(
    weights: dict[str, Tensor],
    debug_checkpoint: Checkpoint,
    tmp_path: Path,
    kind: Kind,
    error: float,
) -> None:
    """Q and K among them: rows are put in order after dequantization."""
    written = write_gguf(
        tmp_path / "m.gguf", CONFIG, weights, debug_checkpoint.text, kind, pre="smollm"
    )
    checkpoint = load_gguf(written, "x")
    for name, weight in weights.items():
        if weight.dim() == 2:
            difference = (checkpoint.weights.read(name) - weight.float()).abs().max()
            assert difference <= error * weight.abs().max()


def q4_k(block: bytes) -> list[float]:
    """One super-block of 256 values, step by step. Source: `dequantize_row_q4_K` in ggml."""
    d, dmin = struct.unpack("<2e", block[:4])
    packed, codes = block[4:16], block[16:]
    values = []
    for group in range(8):
        if group < 4:
            scale, low = packed[group] & 63, packed[group + 4] & 63
        else:
            scale = packed[group + 4] & 15 | packed[group - 4] >> 6 << 4
            low = packed[group + 4] >> 4 | packed[group] >> 6 << 4
        for code in codes[group // 2 * 32 :][:32]:
            nibble = code >> 4 if group % 2 else code & 15
            values.append(d * scale * nibble - dmin * low)
    return values


def q6_k(block: bytes) -> list[float]:
    """One super-block of 256 values. Source: `dequantize_row_q6_K` in ggml."""
    low, high, scales = block[:128], block[128:192], struct.unpack("16b", block[192:208])
    (d,) = struct.unpack("<e", block[208:])
    values = []
    for place in range(256):
        half, quarter, column = place // 128, place % 128 // 32, place % 32
        nibble = low[half * 64 + quarter % 2 * 32 + column]
        nibble = nibble >> 4 if quarter > 1 else nibble & 15
        bits = high[half * 32 + column] >> 2 * quarter & 3
        values.append(d * scales[place // 16] * ((nibble | bits << 4) - 32))
    return values


@pytest.mark.parametrize(
    ("kind", "size", "halves", "expected"),
    [(Kind.Q4_K, 144, (0, 2), q4_k), (Kind.Q6_K, 210, (208,), q6_k)],
)
def test_k_formats_by_hand(
    tmp_path: Path,
    kind: Kind,
    size: int,
    halves: tuple[int, ...],
    expected: Callable[[bytes], list[float]],
) -> None:
    blocks = np.random.default_rng(0).integers(0, 256, (3, size), np.uint8)
    for place in halves:  # sensible scales instead of random half floats
        blocks[:, place : place + 2] = np.frombuffer(np.float16(0.01).tobytes(), np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "k.gguf", "llama")
    writer.add_tensor("x", blocks, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read = GgufFile(tmp_path / "k.gguf").read("x")
    by_hand = torch.tensor([expected(block.tobytes()) for block in blocks])
    assert read.shape == (3, 256)
    torch.testing.assert_close(read, by_hand)


def test_rows_are_dequantized_in_pieces(
    path: Path, weights: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llama_edge.checkpoints.gguf_file._ROW_CHUNK_VALUES", 256 * 7)
    read = load_gguf(path, "x").weights.read(EMBEDDING)
    assert torch.equal(read, weights[EMBEDDING].float())


def test_an_own_head_and_a_stored_copy(
    weights: dict[str, Tensor], debug_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    text = debug_checkpoint.text
    for name, head in (("own", weights[EMBEDDING] * 2), ("copy", weights[EMBEDDING])):
        written = write_gguf(
            tmp_path / f"{name}.gguf", CONFIG, {**weights, LM_HEAD: head}, text, pre="smollm"
        )
        checkpoint = load_gguf(written, "x")
        assert checkpoint.config.tie_word_embeddings == (name == "copy")
        assert (LM_HEAD in list(checkpoint.weights)) == (name == "own")


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_rope_scaling_is_recovered(
    weights: dict[str, Tensor], debug_checkpoint: Checkpoint, tmp_path: Path, factor: float
) -> None:
    assert CONFIG.rope_scaling is not None
    config = replace(
        CONFIG, rope_theta=5e5, rope_scaling=replace(CONFIG.rope_scaling, factor=factor)
    )
    written = write_gguf(tmp_path / "m.gguf", config, weights, debug_checkpoint.text, pre="smollm")
    assert load_gguf(written, "x").config == config


def test_another_rope_scaling_is_refused(
    weights: dict[str, Tensor], debug_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """Factors that begin at 4096 positions instead of 8192."""
    other = replace(DEBUG_SCALING, original_max_position_embeddings=4096)
    config = replace(CONFIG, rope_scaling=other)
    written = write_gguf(tmp_path / "m.gguf", config, weights, debug_checkpoint.text, pre="smollm")
    with pytest.raises(CheckpointError, match="not those of Llama 3's scaling"):
        load_gguf(written, "x")


def patch(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert data.count(old) >= 1
    assert len(old) == len(new)
    path.write_bytes(data.replace(old, new, 1))


def keyed(key: str, layout: str, *values: int) -> bytes:
    """The end of a metadata entry: its key, its type and its value."""
    return key.encode() + struct.pack(layout, *values)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"GGUF", b"GGML", "does not begin with GGUF"),
        (b"GGUF\3", b"GGUF\1", "version 1"),
        (b"GGUF\3\0\0\0", b"GGUF\0\0\0\3", "big-endian"),
        (b"\5\0\0\0\0\0\0\0llama", b"\5\0\0\0\0\0\0\0mamba", "mamba"),
        (b"\5\0\0\0\0\0\0\0llama", b"\5\0\0\0\0\0\0\0ll\xffma", "UTF-8"),
        (b"smollm", b"qwenxx", "pre-tokenizer 'qwenxx'"),
        (b"gpt2", b"bert", "'bert'"),
        (b"token_embd.weight", b"token_type.weight", "token_embd"),
        (b"blk.1.attn_q.weight", b"blk.1.attn_x.weight", "missing"),
        (b"llama.block_count", b"llama.block_xount", "block_count is None"),
        (keyed("llama.block_count", "<II", 4, 2), keyed("llama.block_count", "<II", 6, 2), "block"),
        (keyed("llama.block_count", "<II", 4, 2), keyed("llama.block_count", "<II", 99, 2), "99"),
        (keyed("dimension_count", "<II", 4, 32), keyed("dimension_count", "<II", 4, 16), "16"),
        (keyed("merges", "<IIQ", 9, 8, 9), keyed("merges", "<IIQ", 9, 8, 2**60), "can hold"),
        (keyed("merges", "<IIQ", 9, 8, 9), keyed("merges", "<IIQ", 9, 9, 9), "unknown type 9"),
        (keyed("token_type", "<IIQ", 9, 5, 256), keyed("token_type", "<IIQ", 9, 11, 2**50), "hold"),
        (keyed("bos_token_id", "<II", 4, 3), keyed("bos_token_id", "<II", 4, 300), "is 300, which"),
        (keyed("eos_token_id", "<II", 4, 2), keyed("eos_token_id", "<II", 4, 300), "300"),
        (b"\xc4\xa0 the", b"\xc4\xa0 thx", "token that does not exist"),
    ],
)  # fmt: skip
def test_damaged_metadata_is_refused(path: Path, old: bytes, new: bytes, message: str) -> None:
    patch(path, old, new)
    with pytest.raises(LlamaEdgeError, match=message) as caught:
        load_checkpoint(str(path))
    assert caught.value.exit_code == 3


def tensor_info(shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], kind, offset)


@pytest.mark.parametrize(
    ("shape", "kind", "offset", "message"),
    [
        ((256, 256), 30, 2**40, "its offset is wrong"),
        ((256, 256), 30, 2**64 - 64, "its offset is wrong"),
        ((256, 256), 30, 512, "begins at byte|inside"),
        ((2**40, 256), 30, 0, "its offset is wrong"),
        ((2**63, 2**63), 30, 0, "its offset is wrong"),
        ((0, 256), 30, 0, "has shape"),
        ((256, 256), 24, 0, "is stored as I8, which is not read"),
        ((256, 256), 9999, 0, "quantized as type 9999"),
        ((256, 255), 8, 0, "multiple of 32"),
    ],
)
def test_a_lying_tensor_record_is_refused(
    path: Path, shape: tuple[int, ...], kind: int, offset: int, message: str
) -> None:
    """The embedding's record: 256 x 256, BF16 (30), somewhere in the data."""
    data = path.read_bytes()
    start = data.index(b"token_embd.weight") + len("token_embd.weight")
    old = data[start : start + len(tensor_info(shape, kind, offset))]
    assert old[:24] == tensor_info((256, 256), 30, 0)[:24]
    patch(path, old, tensor_info(shape, kind, offset))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(str(path))


def test_truncation_anywhere_is_refused(path: Path) -> None:
    data = path.read_bytes()
    for size in [*range(0, 200, 7), *range(200, len(data), len(data) // 60), len(data) - 1]:
        path.write_bytes(data[:size])
        with pytest.raises(LlamaEdgeError):
            load_checkpoint(str(path))


def test_random_damage_never_ends_in_a_traceback(path: Path) -> None:
    """Any byte of the header may be anything; what loads all the same is a value, not a crash."""
    data = path.read_bytes()
    header = data.index(b"output_norm.weight") + 64
    random = np.random.default_rng(1)
    refused = 0
    for _ in range(300):
        broken = bytearray(data)
        for place in random.integers(0, header, 3):
            broken[place] = random.integers(0, 256)
        path.write_bytes(broken)
        try:
            load_checkpoint(str(path))
        except LlamaEdgeError:
            refused += 1
    assert refused > 50


def test_a_folder_or_nothing_in_its_place(tmp_path: Path) -> None:
    for bad in (tmp_path, tmp_path / "absent.gguf"):
        with pytest.raises(CheckpointError, match=r"is a folder|is missing"):
            GgufFile(bad)


def test_smollm2_tokens_match_its_published_tokenizer(smollm2: Checkpoint) -> None:
    """Ids from the `tokenizer.json` of HuggingFaceTB/SmolLM2-135M-Instruct."""
    vocabulary = json.loads(smollm2.text.tokenizer_json)["model"]["vocab"]
    ids = Tokenizer(smollm2.text).encode("The year 2024")
    assert ids == [vocabulary[token] for token in ("The", "Ġyear", "Ġ", "2", "0", "2", "4")]


def test_a_vocabulary_of_another_size_than_the_table(
    weights: dict[str, Tensor], debug_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    config = replace(CONFIG, vocab_size=200)
    small = {**weights, EMBEDDING: weights[EMBEDDING][:200].contiguous()}
    written = write_gguf(tmp_path / "m.gguf", config, small, debug_checkpoint.text, pre="smollm")
    with pytest.raises(TokenizerError, match="256 tokens and the model 200"):
        load_checkpoint(str(written))
