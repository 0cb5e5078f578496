"""The converted tokenizer against tiktoken itself and Meta's own `ChatFormat`."""

import base64
from pathlib import Path

import pytest
import sentencepiece
from llama_models.datatypes import RawMessage
from llama_models.llama3.chat_format import ChatFormat
from llama_models.llama3.tokenizer import Tokenizer as MetaTokenizer

from llama_edge.checkpoints.meta_text import read_meta_text
from llama_edge.checkpoints.tiktoken import read_tiktoken
from llama_edge.core.errors import TokenizerError
from llama_edge.text.tokenizer import Tokenizer
from tests.checkpoint_writers import llama3_text, meta_tokenizer_path
from tests.text.test_sentencepiece import LLAMA, trained

TEXTS = {
    "English": "The quick brown fox's 12345 jumps can't WON'T over 3.14159 lazy dogs!\n\n  Right?",
    "German": "Größenwahnsinnige Übermäßigkeit: »Fußballweltmeisterschaft« kostet 5 €.",
    "French": "L'été dernier, où étiez-vous ? Ça coûtait 1 234,56 € — n'est-ce pas ?",
    "Italian": "Perché città e università sono così? L'amico dell'uomo è già lì.",
    "Portuguese": "Não há coração que não sinta saudade; às vezes, à noite, três vezes.",
    "Hindi": "क्षत्रिय ज्ञान और श्रृंगार: हिन्दी में १२३४५ शब्द लिखे गए हैं।",
    "Spanish": "¿Cuántos años tenía el pingüino? ¡Mañana cumplirá veintitrés!",
    "Thai": "ภาษาไทยเขียนติดกันโดยไม่เว้นวรรค น้ำท่วมปี ๒๕๖๗",
    "code": "def f(x):\n\treturn {k: v for k, v in x.items()}  # 0x1F600\r\n\r\n\n    pass   \n",
    "emoji": "👩‍👩‍👧‍👦🇩🇪 👍🏽 \u200b zero width, combining e\u0301, \ufeff, \U0010ffff, 漢字かな",
    "repeats": "aaaaaaaaaaaaaaaaaaaaaaaaa         \n\n\n\n\n\n!!!!!!!!!!!??????------======",
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(llama3_text())


@pytest.fixture(scope="module")
def meta() -> MetaTokenizer:
    return MetaTokenizer(meta_tokenizer_path())


@pytest.mark.parametrize("language", list(TEXTS))
def test_ids_are_tiktoken_s(tokenizer: Tokenizer, meta: MetaTokenizer, language: str) -> None:
    text = TEXTS[language]
    ids = meta.encode(text, bos=True, eos=False)
    assert tokenizer.encode(text) == ids
    assert tokenizer.decode(ids) == text


def test_every_token_s_own_text_encodes_as_tiktoken_does(
    tokenizer: Tokenizer, meta: MetaTokenizer
) -> None:
    """Every thirteenth of the 128,000, alone: long ones reach deep into the merges."""
    for number in range(0, 128000, 13):
        text = meta.model.decode([number])
        assert tokenizer.encode(text, add_bos=False) == meta.encode(text, bos=False, eos=False)


def test_control_tokens_have_meta_s_ids(tokenizer: Tokenizer, meta: MetaTokenizer) -> None:
    assert tokenizer.vocab_size == meta.n_words == 128256
    for token, number in meta.special_tokens.items():
        assert tokenizer.encode_rendered(token) == [number]
        assert number not in tokenizer.encode(token, add_bos=False)
    text = llama3_text()
    assert text.bos_token_id == meta.bos_id
    assert set(text.eos_token_ids) == set(meta.stop_tokens)


DIALOGS = [
    [("user", "Hi")],
    [("system", "You are brief."), ("user", "Wie heißt du?")],
    [("user", "1 + 1?"), ("assistant", "2"), ("user", "And\n\ntwice?  ")],
    [("system", "x"), ("user", "नमस्ते"), ("assistant", "สวัสดี"), ("user", "say <|eot_id|> twice")],
]


@pytest.mark.parametrize("dialog", DIALOGS)
def test_dialogs_are_meta_s(
    tokenizer: Tokenizer, meta: MetaTokenizer, dialog: list[tuple[str, str]]
) -> None:
    raw = [
        RawMessage(role=role, content=text, stop_reason="end_of_turn")
        if role == "assistant"
        else RawMessage(role=role, content=text)
        for role, text in dialog
    ]
    expected = ChatFormat(meta).encode_dialog_prompt(raw).tokens
    messages = [{"role": role, "content": text} for role, text in dialog]
    assert tokenizer.encode_chat(messages) == expected


def test_an_unknown_role_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match="no role sudo"):
        tokenizer.encode_chat([{"role": "sudo", "content": "x"}])


def lines(count: int) -> list[bytes]:
    return [b"%s %d" % (base64.b64encode(bytes([byte])), byte) for byte in range(count)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n".join(lines(255)), "1 of the 256"),
        (b"\n".join([*lines(256), b"!!! 256"]), "line 257"),
        (b"\n".join([*lines(256), b"YWI= 300"]), "rank"),
        (b"\n".join([*lines(256), b"YWI= x"]), "line 257"),
        (b"\x0a\x09\x0a\x05<unk>\x15", "SentencePiece"),
        (b"", "256 of the 256"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    with pytest.raises(TokenizerError, match=message):
        read_tiktoken(path)


def test_a_token_twice_and_an_absent_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    with pytest.raises(TokenizerError, match="the file is missing"):
        read_tiktoken(path)
    path.write_bytes(b"\n".join([*lines(256), b"YWI= 256", b"YWI= 257"]))
    with pytest.raises(TokenizerError, match="different"):
        read_tiktoken(path)


def test_a_token_without_end_is_refused(tmp_path: Path) -> None:
    """Its merges would be sought with the square of its length."""
    path = tmp_path / "tokenizer.model"
    path.write_bytes(base64.b64encode(b"a" * 257) + b" 0\n")
    with pytest.raises(TokenizerError, match="line 1 has a token of 257 bytes; at most 256"):
        read_tiktoken(path)


def test_a_sentencepiece_model_of_before_llama_3(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(trained(**LLAMA))
    text = read_meta_text(path)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(path))
    assert text.chat_template is None
    assert (text.bos_token_id, text.eos_token_ids, text.add_bos) == (1, (2,), True)
    for sample in TEXTS.values():
        assert Tokenizer(text).encode(sample) == reference.encode(sample, add_bos=True)


def test_another_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"\x00\x01 something else")
    with pytest.raises(TokenizerError, match="is neither a SentencePiece model nor a tiktoken"):
        read_meta_text(path)
