"""GGUF files that people have: any block format and name, absent keys, other vocabularies."""

import io
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np
import pytest
import sentencepiece
import torch
from gguf import GGMLQuantizationType as Kind
from torch import Tensor

from llama_edge.checkpoints import load_checkpoint
from llama_edge.checkpoints.gguf_file import is_readable, readable_types
from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.errors import CheckpointError, TokenizerError
from llama_edge.core.model_config import LinearRopeScaling
from llama_edge.text.contract import GOLDEN_TEXTS
from llama_edge.text.tokenizer import Tokenizer
from tests.checkpoint_writers import gguf_blocks, in_their_layout, random_weights, write_gguf
from tests.checkpoints.test_gguf import CONFIG
from tests.conftest import debug_text

Edit = Callable[[gguf.GGUFWriter], None]
UP: Final = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return random_weights(CONFIG)


@pytest.fixture
def write(weights: dict[str, Tensor], tmp_path: Path) -> Callable[..., Path]:
    def written(edit: Edit = lambda writer: None, **options: Any) -> Path:  # noqa: ANN401
        path = tmp_path / "model.gguf"
        return write_gguf(path, CONFIG, weights, debug_text(), pre="smollm", edit=edit, **options)

    return written


def without(*keys: str) -> Edit:
    def edit(writer: gguf.GGUFWriter) -> None:
        for key in keys:
            del writer.kv_data[0][key]

    return edit


def test_the_package_s_own_formats_are_all_read() -> None:
    named = ("Q2_K", "Q3_K", "Q4_K", "Q5_0", "Q5_1", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4")
    assert {*named, "F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "TQ1_0"} <= set(readable_types())
    assert not is_readable(Kind.I32)
    assert not is_readable(Kind.Q8_K)


@pytest.mark.parametrize("name", [n for n in readable_types() if n not in ("F32", "F16")])
def test_values_are_the_package_s(
    write: Callable[..., Path], weights: dict[str, Tensor], name: str
) -> None:
    kind = Kind[name]
    checkpoint = load_checkpoint(str(write(kind=kind)))
    values = in_their_layout(CONFIG, UP, weights[UP]).float().numpy()
    reference = gguf.quants.dequantize(gguf_blocks(values, kind), kind).reshape(values.shape)
    assert np.isfinite(reference).all()
    assert torch.equal(checkpoint.weights.read(UP), torch.from_numpy(reference).float())


def test_what_is_not_read_is_named(write: Callable[..., Path]) -> None:
    def as_integers(writer: gguf.GGUFWriter) -> None:
        name = "blk.0.ffn_up.weight"
        info = writer.tensors[0][name]
        writer.tensors[0][name] = replace(info, dtype=Kind.I16)

    with pytest.raises(CheckpointError, match=r"ffn_up.weight is stored as I16, which is not read"):
        load_checkpoint(str(write(as_integers)))


@pytest.mark.parametrize("name", ["TINY.GGUF", "sha256-0123456789abcdef", "model"])
def test_a_file_is_known_by_its_first_bytes(write: Callable[..., Path], name: str) -> None:
    path = write()
    assert load_checkpoint(str(path.rename(path.with_name(name)))).config == CONFIG


def test_a_folder_with_one_model(write: Callable[..., Path], tmp_path: Path) -> None:
    path = write()
    folder = tmp_path / "alone"
    folder.mkdir()
    (folder / "README.md").write_text("about")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load_checkpoint(str(folder))
    shutil.copy(path, folder / "model-Q8_0.gguf")
    assert load_checkpoint(str(folder)).config == CONFIG
    shutil.copy(path, folder / "model-Q4_0.GGUF")
    with pytest.raises(
        CheckpointError, match=r"2 GGUF models, model-Q4_0.GGUF, model-Q8_0.gguf; give one"
    ):
        load_checkpoint(str(folder))


def test_a_folder_with_the_parts_of_one(
    weights: dict[str, Tensor], debug_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    text = debug_checkpoint.text
    write_gguf(folder / "m.gguf", CONFIG, weights, text, pre="smollm", part_tensors=8)
    assert len(list(folder.iterdir())) > 1
    assert load_checkpoint(str(folder)).config == CONFIG


def test_absent_keys_have_llama_cpp_s_defaults(write: Callable[..., Path]) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        without("llama.rope.freq_base", "tokenizer.ggml.add_bos_token")(writer)
        without("tokenizer.ggml.token_type", "llama.rope.dimension_count")(writer)

    checkpoint = load_checkpoint(str(write(edit)))
    assert checkpoint.config.rope_theta == 10000.0
    assert not checkpoint.text.add_bos
    # Known by their texts alone; `<|im_start|>` and `<|begin|>` are ordinary tokens then.
    added = {token.content for token in Tokenizer(checkpoint.text)._control}
    assert added == {"<|endoftext|>", "<|im_end|>"}


@pytest.mark.parametrize("key", ["add_rope_scaling_factor", "llama.rope.scale_linear"])
def test_linear_rope_scaling(tmp_path: Path, key: str) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        if key == "add_rope_scaling_factor":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(4.0)
        else:
            writer.add_float32(key, 4.0)

    config = replace(CONFIG, rope_scaling=None)
    path = tmp_path / "m.gguf"
    write_gguf(path, config, random_weights(config), debug_text(), pre="smollm", edit=edit)
    assert load_checkpoint(str(path)).config.rope_scaling == LinearRopeScaling(factor=4.0)


def test_another_rope_scaling_is_named(write: Callable[..., Path]) -> None:
    path = write(lambda writer: writer.add_rope_scaling_type(gguf.RopeScalingType.YARN))
    with pytest.raises(CheckpointError, match="has RoPE scaling of type 'yarn'"):
        load_checkpoint(str(path))


def kind_of_file(value: str) -> Edit:
    return lambda writer: writer.add_type(value)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (kind_of_file("adapter"), "is a LoRA adapter and no model; merge it"),
        (kind_of_file("imatrix"), "is an importance matrix and no model"),
        (kind_of_file("mmproj"), "is the vision part of a model"),
        (kind_of_file("other"), "is a GGUF file of type 'other'"),
        (lambda writer: writer.tensors[0].clear(), "a vocabulary and no weights"),
    ],
)
def test_other_files_are_named(write: Callable[..., Path], edit: Edit, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(str(write(edit)))


def test_a_git_lfs_pointer_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    with pytest.raises(CheckpointError, match="is a Git LFS pointer"):
        load_checkpoint(str(path))


def test_a_repeated_token_keeps_its_first_id(write: Callable[..., Path]) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        tokens = writer.kv_data[0]["tokenizer.ggml.tokens"].value
        tokens[-5:] = [tokens[0]] * 5

    with pytest.raises(TokenizerError, match="token that does not exist"):  # a merge makes one
        load_checkpoint(str(write(edit)))

    def padded(writer: gguf.GGUFWriter) -> None:
        edit(writer)
        writer.kv_data[0]["tokenizer.ggml.merges"].value = ["h e"]

    checkpoint = load_checkpoint(str(write(padded)))
    assert "5 ids repeat the token '<|endoftext|>'; the first id is taken" in (
        checkpoint.text.warnings
    )
    assert Tokenizer(checkpoint.text).encode_rendered("<|endoftext|>the") == [
        0,
        *Tokenizer(checkpoint.text).encode("the"),
    ]


def test_control_looking_tokens_are_control_tokens(write: Callable[..., Path]) -> None:
    """Whatever their type says, as in llama.cpp."""

    def edit(writer: gguf.GGUFWriter) -> None:
        types = writer.kv_data[0]["tokenizer.ggml.token_type"].value
        types[:4] = [1, 1, 1, 1]

    text = load_checkpoint(str(write(edit))).text
    assert text.eos_token_ids == (0, 2)
    assert 2 in Tokenizer(text).encode_rendered("<|im_end|>")
    assert 2 not in Tokenizer(text).encode("<|im_end|>")


@pytest.fixture(scope="module")
def pieces() -> sentencepiece.SentencePieceProcessor:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text for _, text in GOLDEN_TEXTS] * 20),
        model_writer=model,
        vocab_size=CONFIG.vocab_size + 300,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=0.98,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def as_sentencepiece(pieces: sentencepiece.SentencePieceProcessor) -> Edit:
    """As llama.cpp's converter writes Llama 2's vocabulary."""

    def kind(number: int) -> int:
        if pieces.is_unknown(number):
            return 2
        return 3 if pieces.is_control(number) else 6 if pieces.is_byte(number) else 1

    def edit(writer: gguf.GGUFWriter) -> None:
        keys = ("model", "pre", "tokens", "token_type", "merges", "bos_token_id", "eos_token_id")
        without(*(f"tokenizer.ggml.{key}" for key in (*keys, "add_bos_token")))(writer)
        count = pieces.vocab_size()
        writer.add_tokenizer_model("llama")
        writer.add_token_list([pieces.id_to_piece(number) for number in range(count)])
        writer.add_token_scores([pieces.get_score(number) for number in range(count)])
        writer.add_token_types([kind(number) for number in range(count)])

    return edit


def test_a_sentencepiece_vocabulary(
    pieces: sentencepiece.SentencePieceProcessor, tmp_path: Path
) -> None:
    """No id of a special token is in the file: they are Llama's."""
    config = replace(CONFIG, vocab_size=pieces.vocab_size())
    path = tmp_path / "m.gguf"
    edit = as_sentencepiece(pieces)
    write_gguf(path, config, random_weights(config), debug_text(), pre="smollm", edit=edit)
    text = load_checkpoint(str(path)).text
    assert text.special_tokens == {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    assert (text.bos_token_id, text.add_bos, text.eos_token_ids) == (1, True, (2,))
    tokenizer = Tokenizer(text)
    for _, sample in (*GOLDEN_TEXTS, ("", " leading"), ("", "a  b\n\n")):
        plain = sample.replace("<|", "").replace("|>", "")
        ids = tokenizer.encode(plain)
        assert ids == [1, *pieces.encode(plain)]
        assert tokenizer.decode(ids) == pieces.decode(ids[1:])
