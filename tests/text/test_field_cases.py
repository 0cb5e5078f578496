"""Text files as people have them, each with transformers' reading beside ours.

The conditions are of public bug reports: docs/field-cases.md lists them.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
import transformers
from tokenizers import AddedToken, Tokenizer

from llama_edge.core.errors import TokenizerError
from llama_edge.text.contract import GOLDEN_TEXTS, build_text_contract
from llama_edge.text.text_assets import read_text_assets
from llama_edge.text.tokenizer import Tokenizer as OurTokenizer
from tests.text.families import FAMILIES, Family, plain, special

CHATML: Final = FAMILIES["chatml"]
USER: Final = {"role": "user", "content": "What is the capital of France?"}


def rewrite(path: Path, **changes: object) -> None:
    value = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**value, **changes}))


def written(folder: Path, family: Family = CHATML, **config: object) -> Path:
    """A folder of the family, with other values in tokenizer_config.json."""
    family.write(folder)
    rewrite(folder / "tokenizer_config.json", **config)
    return folder


def agreed(folder: Path) -> OurTokenizer:
    """Both programs see the same tokens, dialogs and texts in the folder."""
    text = read_text_assets(folder)
    ours = OurTokenizer(text)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    assert text.special_tokens == theirs.special_tokens_map
    added = {number: str(token) for number, token in theirs.added_tokens_decoder.items()}
    assert {n: token.content for n, token in ours._tokenizer.added.items()} == added
    flags = {str(token): token.special for token in theirs.added_tokens_decoder.values()}
    assert {t.content: t.special for t in ours._tokenizer.added.values()} == flags
    for golden in build_text_contract(text).golden_chats:
        given = ours.form.given(golden.messages)
        rendered = theirs.apply_chat_template(given, tokenize=False, add_generation_prompt=True)
        assert golden.text == rendered
        ids = theirs.apply_chat_template(given, add_generation_prompt=True)["input_ids"]
        assert golden.tokens == tuple(ids)
    for _, sample in GOLDEN_TEXTS:
        if "<|" not in sample:
            assert ours.encode(sample) == theirs(sample)["input_ids"]
    return ours


def listed(tokens: Mapping[int, AddedToken]) -> dict[str, dict[str, Any]]:
    """As `added_tokens_decoder` has them."""
    return {
        str(number): {
            "content": token.content,
            "lstrip": token.lstrip,
            "normalized": token.normalized,
            "rstrip": token.rstrip,
            "single_word": token.single_word,
            "special": token.special,
        }
        for number, token in tokens.items()
    }


def numbered(folder: Path) -> dict[str, int]:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return {token.content: number for number, token in tokenizer.get_added_tokens_decoder().items()}


def test_flags_of_added_tokens_decoder_win(tmp_path: Path) -> None:
    folder = written(tmp_path, FAMILIES["chatml, not special"])
    ids = numbered(folder)
    tokens = {ids[token]: special(token)[0] for token in ids}
    rewrite(folder / "tokenizer_config.json", added_tokens_decoder=listed(tokens))
    tokenizer = agreed(folder)
    assert tokenizer.decode([ids["<|im_end|>"]]) == ""
    assert ids["<|im_end|>"] not in tokenizer.encode("<|im_end|>")
    tokens[ids["<|im_end|>"]] = plain("<|im_end|>")[0]
    rewrite(folder / "tokenizer_config.json", added_tokens_decoder=listed(tokens))
    assert agreed(folder).decode([ids["<|im_end|>"]]) == "<|im_end|>"


@pytest.mark.parametrize("file", ["added_tokens_decoder", "added_tokens.json"])
def test_tokens_that_only_another_file_has_are_added(tmp_path: Path, file: str) -> None:
    folder = written(tmp_path, replace(CHATML, control=special("<|endoftext|>"), ends=("!",)))
    size = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    if file == "added_tokens.json":
        (folder / file).write_text(json.dumps({"<|im_start|>": size, "<|im_end|>": size + 1}))
        rewrite(folder / "tokenizer_config.json", additional_special_tokens=["<|im_start|>"])
    else:
        tokens = dict(enumerate(special("<|im_start|>", "<|im_end|>"), size))
        rewrite(folder / "tokenizer_config.json", added_tokens_decoder=listed(tokens))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": size + 1}))
    tokenizer = agreed(folder)
    assert tokenizer._text.eos_token_ids[-1] == size + 1
    assert tokenizer.vocab_size == size + 2


def test_an_id_that_the_tokenizer_does_not_give_is_told(tmp_path: Path) -> None:
    folder = written(tmp_path)
    size = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    ids = numbered(folder)
    tokens = {ids[t.content]: t for t in CHATML.control} | {size + 7: special("<|new|>")[0]}
    rewrite(folder / "tokenizer_config.json", added_tokens_decoder=listed(tokens))
    (warning,) = agreed(folder)._text.warnings
    assert warning == (
        f"the token '<|new|>' has the id {size}, as in transformers, although a file lists it with "
        f"{size + 7}"
    )


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"bos_token": "", "unk_token": ""}, {"eos_token": "<|im_end|>"}),
        ({"eos_token": None}, {}),
        (
            {"pad_token": {"__type": "AddedToken", "content": "<|endoftext|>"}},
            {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        ),
        (
            {"image_token": "<|im_start|>", "add_bos_token": True},
            {"eos_token": "<|im_end|>", "image_token": "<|im_start|>"},
        ),
        (
            {"extra_special_tokens": {"call_token": "<|im_start|>"}},
            {"eos_token": "<|im_end|>", "call_token": "<|im_start|>"},
        ),
    ],
)
def test_tokens_by_name(tmp_path: Path, config: dict[str, Any], named: dict[str, str]) -> None:
    """Empty counts as absent, on which transformers fails."""
    folder = written(tmp_path, **config)
    if "" in config.values():
        assert read_text_assets(folder).special_tokens == named
    else:
        assert agreed(folder)._text.special_tokens == named


def test_special_tokens_map_counts_without_added_tokens_decoder(tmp_path: Path) -> None:
    folder = written(tmp_path)
    (folder / "special_tokens_map.json").write_text('{"pad_token": "<|endoftext|>"}')
    assert agreed(folder)._text.special_tokens["pad_token"] == "<|endoftext|>"
    rewrite(folder / "tokenizer_config.json", added_tokens_decoder={})
    assert "pad_token" not in agreed(folder)._text.special_tokens


def test_an_ordinary_word_as_eos_token_is_made_special_and_told(tmp_path: Path) -> None:
    """(Whose ids transformers then also gives to what a person types.)"""
    folder = written(tmp_path, eos_token="the")
    text = read_text_assets(folder)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    assert text.special_tokens == theirs.special_tokens_map
    assert OurTokenizer(text).encode_rendered("the the") == theirs("the the")["input_ids"]
    assert text.eos_token_ids == (numbered(folder)["<|endoftext|>"], numbered(folder)["<|im_end|>"])
    assert "eos_token is 'the', an ordinary token of tokenizer.json" in text.warnings[-1]


TEMPLATES: Final = {
    "pad_token": "{{ pad_token }}{% for m in messages %}{{ m.content }}{% endfor %}",
    "eos_token": "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}",
    "separators": "{{ messages | tojson(separators=(',', ':')) }}",
    "indented": "{{ messages | tojson(indent=2, sort_keys=true, ensure_ascii=true) }}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}\n{% endgeneration %}\n"
    "{%- endfor %}",
    "a variable that nobody passes": "{% if documents %}x{% endif %}{% if date_string is defined %}"
    "y{% endif %}{{ nothing }}{% for m in messages %}{{ m.content }}{% endfor %}",
    "functions": "{% set n = namespace(d=dict(a=1)) %}{{ n.d.a }}{% for m in messages %}"
    "{{ m.content.strip().split(' ')[0:99] | join(' ') }}{% if loop.last %}{% break %}{% endif %}"
    "{% endfor %}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_see_what_transformers_gives(tmp_path: Path, name: str) -> None:
    family = replace(CHATML, template=TEMPLATES[name])
    agreed(written(tmp_path, family, pad_token="<|endoftext|>"))


def test_a_template_in_a_list_or_a_folder(tmp_path: Path) -> None:
    folder = written(tmp_path)
    (folder / "chat_template.jinja").unlink()
    named = [{"name": name, "template": CHATML.template} for name in ("tool_use", "default")]
    rewrite(folder / "tokenizer_config.json", chat_template=named)
    agreed(folder)
    more = folder / "additional_chat_templates"
    more.mkdir()
    (more / "rag.jinja").write_text("other")
    with pytest.raises(TokenizerError, match=r"the chat templates rag, and none is named default"):
        read_text_assets(folder)
    (folder / "chat_template.jinja").write_text(CHATML.template)
    agreed(folder)


def test_a_template_without_the_users_words_is_refused(tmp_path: Path) -> None:
    """However long what it writes of its own is."""
    template = "A preamble. " * 200 + "{% for m in messages %}{{ m.role }}{% endfor %}"
    folder = written(tmp_path, replace(CHATML, template=template))
    text = read_text_assets(folder)
    with pytest.raises(TokenizerError, match="leaves out the user message"):
        build_text_contract(text)


def test_a_template_that_drops_the_system_prompt_or_later_turns(tmp_path: Path) -> None:
    template = "{% for m in messages if m.role == 'user' %}{% if loop.last %}{{ m.content }}" + (
        "{% endif %}{% endfor %}"
    )
    folder = written(tmp_path, replace(CHATML, template=template))
    tokenizer = agreed(folder)
    assert [warning.partition(":")[0] for warning in tokenizer._text.warnings] == [
        "the chat template takes no system message",
        "the chat template takes one exchange only",
    ]
    with pytest.raises(TokenizerError, match=r"it leaves out the system message; leave the system"):
        tokenizer.encode_chat([{"role": "system", "content": "Be brief."}, USER])


@pytest.mark.parametrize("flag", [True, False])
def test_begin_tokens_are_the_post_processor_s(tmp_path: Path, flag: bool) -> None:
    for name in ("chatml", "gemma"):
        folder = tmp_path / name
        agreed(written(folder, FAMILIES[name], add_bos_token=flag))


def test_llama_s_class_goes_by_its_config(tmp_path: Path) -> None:
    """As transformers 4's class does; the file that is written agrees with it."""
    folder = written(
        tmp_path, FAMILIES["llama-3"], add_bos_token=False, tokenizer_class="LlamaTokenizerFast"
    )
    text = read_text_assets(folder)
    assert not text.add_bos
    assert Tokenizer.from_str(text.tokenizer_json).encode("a").ids == (
        Tokenizer.from_str(text.tokenizer_json).encode("a", add_special_tokens=False).ids
    )
