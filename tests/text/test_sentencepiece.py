"""SentencePiece models, with the ids of the `sentencepiece` package beside ours."""

import io
import json
from pathlib import Path
from typing import Any, Final

import pytest
import sentencepiece
import transformers

from llama_edge.core.errors import TokenizerError
from llama_edge.text import sentencepiece as ours
from llama_edge.text.contract import GOLDEN_TEXTS
from llama_edge.text.sentencepiece import read_sentencepiece
from llama_edge.text.text_assets import read_text_assets
from llama_edge.text.tokenizer import Tokenizer, TokenStream

TEXTS: Final = [
    *(text for _, text in GOLDEN_TEXTS if "<|" not in text),
    "Hello world",
    " Hello  world ",
    "a\n\n\tb",
    "ﬁne ①②③ Å",
    "👍🏽 <0x41> ▁",
    "",
]
CORPUS: Final = [text for _, text in GOLDEN_TEXTS] * 20
#: As Llama 2's model was made.
LLAMA: Final = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}


def trained(**options: Any) -> bytes:  # noqa: ANN401
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        **{
            "vocab_size": 700,
            "model_type": "bpe",
            "byte_fallback": True,
            "minloglevel": 2,
            "hard_vocab_limit": False,
            "character_coverage": 0.98,
            **options,
        },
    )
    return model.getvalue()


def folder_of(model: bytes, folder: Path, **config: object) -> Path:
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer.model").write_bytes(model)
    value = {"tokenizer_class": "LlamaTokenizer", **named, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(value))
    (folder / "generation_config.json").write_text('{"eos_token_id": 2}')
    return folder


@pytest.mark.parametrize(
    "options",
    [
        LLAMA,
        {**LLAMA, "add_dummy_prefix": False},
        {**LLAMA, "user_defined_symbols": ["[INST]", "\u2581\u2581"]},
        {},
    ],
    ids=["as Llama's", "without a space in front", "with symbols", "the trainer's defaults"],
)
def test_texts_have_their_ids(options: dict[str, Any], tmp_path: Path) -> None:
    """With `legacy`, a text that begins with a space gets another one, as from the package.

    It also gets one after each symbol, as it does not from the package.
    """
    legacy = "user_defined_symbols" not in options
    model = trained(**options)
    reference = sentencepiece.SentencePieceProcessor(model_proto=model)
    tokenizer = Tokenizer(read_text_assets(folder_of(model, tmp_path, legacy=legacy)))
    for text in TEXTS:
        if not legacy and (text.startswith(" ") or "\u2581" in text):
            continue
        ids = tokenizer.encode(text)
        assert ids == [1, *reference.encode(text)], text
        assert tokenizer.decode(ids) == reference.decode(ids[1:]), text
        stream = TokenStream(tokenizer)
        assert "".join(map(stream.push, ids)) + stream.flush() == reference.decode(ids[1:])


def test_transformers_reads_the_same_folder(tmp_path: Path) -> None:
    folder = folder_of(trained(**LLAMA), tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    text = read_text_assets(folder)
    tokenizer = Tokenizer(text)
    assert text.special_tokens == theirs.special_tokens_map
    for sample in TEXTS:
        ids = theirs(sample, add_special_tokens=False)["input_ids"]
        assert tokenizer.encode(sample, add_bos=False) == ids
        rendered = f"<s>[INST] {sample} [/INST]</s>next"
        ids = theirs(rendered, add_special_tokens=False)["input_ids"]
        assert tokenizer.encode_rendered(rendered) == ids


def test_a_tokenizer_json_goes_first(tmp_path: Path) -> None:
    folder = folder_of(trained(**LLAMA), tmp_path)
    made = read_text_assets(folder)
    (folder / "tokenizer.json").write_text(made.tokenizer_json)
    (folder / "tokenizer.model").write_bytes(b"rubbish")
    assert read_text_assets(folder) == made


def test_another_kind_is_named() -> None:
    with pytest.raises(TokenizerError, match="m: is a SentencePiece model of type 'unigram'"):
        read_sentencepiece(trained(**LLAMA, model_type="unigram"), "m")


@pytest.mark.parametrize("length", [0, 1, 7, 100, 1000])
def test_damage_is_refused(length: int) -> None:
    model = trained(**LLAMA)
    with pytest.raises(TokenizerError, match=r"^m: "):
        read_sentencepiece(model[:length], "m")
    for place in range(0, 2000, 37):
        changed = bytearray(model)
        changed[place] ^= 0xFF
        try:
            read_sentencepiece(bytes(changed), "m")
        except TokenizerError as error:
            assert str(error).startswith("m: ")


def test_a_piece_without_end_is_refused(tmp_path: Path) -> None:
    long = "a" * (ours.MAX_PIECE_CHARACTERS + 1)
    model = trained(**LLAMA, user_defined_symbols=[])
    piece = bytes([10, *_length(long), *long.encode()])
    folder = folder_of(model + bytes([10, *_length(piece), *piece]), tmp_path)
    with pytest.raises(TokenizerError, match=r"a piece has 257 characters; at most 256"):
        read_text_assets(folder)


def _length(value: str | bytes) -> list[int]:
    return [len(value) & 0x7F | 0x80, len(value) >> 7]
