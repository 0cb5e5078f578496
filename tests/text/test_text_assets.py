import json
from dataclasses import replace
from pathlib import Path

import pytest

from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.errors import TokenizerError
from llama_edge.core.text_assets import TextAssets
from llama_edge.text.native import AddedToken, Changes, open_tokenizer
from llama_edge.text.text_assets import fit_vocabulary, read_text_assets, write_text_assets
from llama_edge.text.tokenizer import Tokenizer


@pytest.fixture
def text(debug_checkpoint: Checkpoint) -> TextAssets:
    return debug_checkpoint.text


def rewrite(path: Path, **changes: object) -> None:
    value = json.loads(path.read_text()) if path.exists() else {}
    value.update(changes)
    path.write_text(json.dumps(value))


def test_what_is_written_is_read_back(text: TextAssets, tmp_path: Path) -> None:
    write_text_assets(tmp_path, text)
    assert read_text_assets(tmp_path) == text


def test_a_text_without_bos_and_template_is_read_back(text: TextAssets, tmp_path: Path) -> None:
    named = {"eos_token": "<|im_end|>"}
    bare = replace(text, bos_token_id=None, chat_template=None, special_tokens=named)
    write_text_assets(tmp_path, bare)
    assert read_text_assets(tmp_path) == bare


def test_the_real_model_is_read_back(smollm2: Checkpoint, tmp_path: Path) -> None:
    write_text_assets(tmp_path, smollm2.text)
    assert read_text_assets(tmp_path) == smollm2.text


def test_bytes_are_the_same_every_time(text: TextAssets, tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        write_text_assets(folder, text)
    files = sorted(path.name for path in folders[0].iterdir())
    assert files == ["generation_config.json", "tokenizer.json", "tokenizer_config.json"]
    for name in files:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
        assert b"\r" not in (folders[0] / name).read_bytes()


def test_end_ids_of_generation_config_stand_alone(text: TextAssets, tmp_path: Path) -> None:
    """0 and 2 are implied. Neither config.json's list nor an ordinary word ends a turn."""
    write_text_assets(tmp_path, text)
    rewrite(tmp_path / "generation_config.json", eos_token_id=[7, 8])
    rewrite(tmp_path / "config.json", eos_token_id=9)
    rewrite(tmp_path / "tokenizer_config.json", eos_token={"content": "A", "special": True})
    assert read_text_assets(tmp_path).eos_token_ids == (0, 2, 7, 8)


def test_a_special_eos_token_counts_besides(text: TextAssets, tmp_path: Path) -> None:
    write_text_assets(tmp_path, text)
    rewrite(tmp_path / "generation_config.json", eos_token_id=7)
    rewrite(tmp_path / "tokenizer_config.json", eos_token="<|begin|>")
    assert read_text_assets(tmp_path).eos_token_ids == (0, 2, 3, 7)


@pytest.mark.parametrize("generation", [None, {}, {"eos_token_id": None}, {"eos_token_id": []}])
def test_other_files_name_the_ends_where_generation_config_names_none(
    text: TextAssets, tmp_path: Path, generation: dict[str, object] | None
) -> None:
    write_text_assets(tmp_path, text)
    path = tmp_path / "generation_config.json"
    path.unlink() if generation is None else path.write_text(json.dumps(generation))
    rewrite(tmp_path / "config.json", eos_token_id=[9, 10])
    rewrite(tmp_path / "tokenizer_config.json", eos_token="A")
    a = json.loads(text.tokenizer_json)["model"]["vocab"]["A"]
    assert read_text_assets(tmp_path).eos_token_ids == tuple(sorted({0, 2, 9, 10, a}))


def test_the_template_s_end_of_turn_counts_although_no_file_names_it(
    text: TextAssets, tmp_path: Path
) -> None:
    write_text_assets(tmp_path, replace(text, eos_token_ids=(0,)))
    rewrite(tmp_path / "generation_config.json", eos_token_id=0)
    rewrite(tmp_path / "tokenizer_config.json", eos_token="<|endoftext|>")
    assert read_text_assets(tmp_path).eos_token_ids == (0, 2)


def test_template_forms(text: TextAssets, tmp_path: Path) -> None:
    write_text_assets(tmp_path, text)
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    rewrite(tmp_path / "tokenizer_config.json", chat_template=named)
    assert read_text_assets(tmp_path).chat_template == "yes"
    (tmp_path / "chat_template.jinja").write_text("from the file")
    assert read_text_assets(tmp_path).chat_template == "from the file"


def test_bos_is_what_the_tokenizer_itself_adds_if_nothing_says(
    text: TextAssets, tmp_path: Path
) -> None:
    write_text_assets(tmp_path, text)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["add_bos_token"]
    path.write_text(json.dumps(config))
    assert not read_text_assets(tmp_path).add_bos
    tokenizer = json.loads(text.tokenizer_json)
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<|begin|>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|begin|>": {"id": "<|begin|>", "ids": [3], "tokens": ["<|begin|>"]}},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert read_text_assets(tmp_path).add_bos


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer.json", b"{}", "not a tokenizer"),
        ("tokenizer.json", b"\xff\xfe", "UTF-8"),
        ("tokenizer_config.json", b"[]", "JSON object"),
        ("tokenizer_config.json", b'{"chat_template": 3}', "chat_template"),
        ("tokenizer_config.json", b'{"eos_token": 3}', "eos_token is 3"),
        ("tokenizer_config.json", b'{"pad_token": {"content": 3}}', "pad_token is"),
        (
            "tokenizer_config.json",
            b'{"pad_token": {"content": "x", "lstrip": 3}}',
            "has a flag that",
        ),
        ("tokenizer_config.json", b'{"added_tokens_decoder": [3]}', "added_tokens_decoder is a"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"x": "y"}}', "under 'x'"),
        ("added_tokens.json", b'{"x": "y"}', "the id of 'x'"),
        ("generation_config.json", b'{"eos_token_id": "2"}', "eos_token_id"),
        ("generation_config.json", b'{"eos_token_id": 2, "top_p": "x"}', "top_p"),
        ("generation_config.json", b'{"eos_tok', "JSON"),
    ],
)
def test_damaged_files_are_named(
    text: TextAssets, tmp_path: Path, file: str, content: bytes, message: str
) -> None:
    write_text_assets(tmp_path, text)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(TokenizerError, match=message):
        read_text_assets(tmp_path)


def test_an_absent_tokenizer_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="missing"):
        read_text_assets(tmp_path)


def test_no_end_token_at_all_is_an_error(text: TextAssets, tmp_path: Path) -> None:
    write_text_assets(tmp_path, text)
    tokenizer = json.loads(text.tokenizer_json)
    tokenizer["added_tokens"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "generation_config.json").unlink()
    with pytest.raises(TokenizerError, match="no end-of-sequence token"):
        read_text_assets(tmp_path)


def test_tokens_without_a_row_are_named(text: TextAssets) -> None:
    """255 rows: the last token of the vocabulary is a merge, which texts need."""
    with pytest.raises(TokenizerError, match=r"256 tokens .* the token 'and' with the id 255"):
        fit_vocabulary("here", text, 255)


def test_an_added_token_without_a_row_is_left_out(text: TextAssets) -> None:
    padded = open_tokenizer(
        "here", text.tokenizer_json, Changes(added=(AddedToken(content="[PAD]", special=True),))
    )
    named = {**text.special_tokens, "pad_token": "[PAD]"}
    given = replace(text, tokenizer_json=padded.tokenizer_json, special_tokens=named)
    assert fit_vocabulary("here", given, 257) == given
    fitted = fit_vocabulary("here", given, 256)
    assert "pad_token" not in fitted.special_tokens
    assert "'[PAD]' are left out" in fitted.warnings[-1]
    assert Tokenizer(fitted).vocab_size == 256
    assert Tokenizer(fitted).encode_rendered("a[PAD]") == Tokenizer(text).encode("a[PAD]")
    written = replace(given, chat_template="{{ messages[0].content }}[PAD]")
    with pytest.raises(TokenizerError, match=r"the token '\[PAD\]' with the id 256"):
        fit_vocabulary("here", written, 256)


@pytest.mark.parametrize("unused", [0, 1, 1024])
def test_padding_rows_are_accepted(text: TextAssets, unused: int) -> None:
    assert fit_vocabulary("here", text, 256 + unused).warnings == text.warnings


def test_many_padding_rows_are_remarked(text: TextAssets) -> None:
    assert fit_vocabulary("here", text, 256 + 2385).warnings == (
        *text.warnings,
        "2385 of the 2641 embedding rows have no token",
    )


def test_an_end_id_outside_the_vocabulary_is_refused(text: TextAssets) -> None:
    with pytest.raises(TokenizerError, match="999"):
        fit_vocabulary("here", replace(text, eos_token_ids=(0, 999)), 256)
