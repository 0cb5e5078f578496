"""A tokenizer.json that crashes its library is an error of the file, in every command."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import transformers

from llama_edge.bundle.folder import Bundle
from llama_edge.core.errors import TokenizerError
from llama_edge.text import native
from llama_edge.text.native import NativeTokenizer, open_tokenizer
from llama_edge.text.text_assets import read_text_assets
from llama_edge.text.tokenizer import Tokenizer
from tests.cli.conftest import Program, program
from tests.conftest import debug_text
from tests.faults.forging import edit_manifest, put, rehash

__all__ = ["program"]

Change = Callable[[dict[str, Any]], object]
PADDING: Final = {
    "strategy": {"Fixed": 100_000_000_000},
    "direction": "Right",
    "pad_to_multiple_of": None,
    "pad_id": 0,
    "pad_type_id": 0,
    "pad_token": "x",
}
TRUNCATION: Final = {
    "direction": "Right",
    "max_length": 3,
    "strategy": "LongestFirst",
    "stride": 0,
}


def changed(change: Change) -> str:
    value = json.loads(debug_text().tokenizer_json)
    change(value)
    return json.dumps(value, ensure_ascii=False)


def field(name: str, new: object) -> Change:
    return lambda value: value.update({name: new})


def replace(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


def split(regex: str) -> dict[str, Any]:
    pattern = {"Regex": regex}
    return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}


#: What the library does with each, and the words of it.
CRASHES: Final[Mapping[str, tuple[Change, str]]] = {
    "an abort": (
        field("normalizer", {"type": "Precompiled", "precompiled_charsmap": "/////w=="}),
        r"SIGABRT \(memory allocation of \d+ bytes failed\)",
    ),
    "memory": (field("normalizer", replace("a", "b" * 2_000_000)), "memory allocation"),
    "a panic while it parses": (
        field("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        "PanicException: Precompiled",
    ),
    "a panic on a text": (field("normalizer", replace("", "xx")), "PanicException: index out of"),
    "a panic of a regular expression": (
        field("pre_tokenizer", split(r"^(([a-z])+.)+[A-Z]([a-z])+$")),
        "PanicException: Onig",
    ),
    "a panic of the decoder": (
        field("decoder", {"type": "Strip", "content": "a", "start": 5, "stop": 5}),
        "PanicException: index out of",
    ),
    "a panic of the post-processor": (
        field(
            "post_processor",
            {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "zz", "type_id": 0}}],
                "pair": [],
                "special_tokens": {},
            },
        ),
        "PanicException: no entry found",
    ),
    "an error": (field("version", "9.9"), "not a tokenizer that this version .* reads: Unknown"),
    "nothing": (lambda value: value.clear(), "not a tokenizer that this version"),
}


@pytest.mark.parametrize("kind", CRASHES)
def test_what_ends_the_library_is_an_error(kind: str) -> None:
    change, message = CRASHES[kind]
    with pytest.raises(TokenizerError, match=message) as found:
        open_tokenizer("tokenizer.json", changed(change)).encode("a" * 4096)
    assert len(str(found.value)) < 500
    assert str(found.value).isprintable()


def test_what_never_ends_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_LIMITS", dataclasses.replace(native._LIMITS, cpu_s=1))
    doubling = {"type": "Sequence", "decoders": [replace("a", "aa")] * 40}
    with pytest.raises(TokenizerError, match=r"takes more than (1 s of processor time|1536 MiB)"):
        open_tokenizer("tokenizer.json", changed(field("decoder", doubling)))


def test_a_text_that_is_no_unicode_is_refused() -> None:
    with pytest.raises(TokenizerError, match="is not valid Unicode"):
        open_tokenizer("tokenizer.json", "\ud800")


def test_each_text_is_opened_once(monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = changed(field("model", json.loads(debug_text().tokenizer_json)["model"])), "{}"
    opened = open_tokenizer("first", good)
    with pytest.raises(TokenizerError, match="first: not a"):
        open_tokenizer("first", bad)

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("opened a second time")

    monkeypatch.setattr(native, "NativeTokenizer", forbidden)
    assert open_tokenizer("second", good) is opened
    with pytest.raises(TokenizerError, match="second: not a"):
        open_tokenizer("second", bad)


def test_a_panic_on_the_users_text_is_an_error_and_not_the_end() -> None:
    hidden = changed(field("pre_tokenizer", split(r"^((☃)+.)+Q(☃)+$")))
    tokenizer = Tokenizer(dataclasses.replace(debug_text(), tokenizer_json=hidden))
    with pytest.raises(TokenizerError, match=r"the tokenizers library was stopped on it: .*Panic"):
        tokenizer.encode("☃" * 4096 + "!")
    assert tokenizer.decode(tokenizer.encode("On")) == "On"


def test_a_child_that_was_killed_is_replaced() -> None:
    tokenizer = NativeTokenizer(debug_text().tokenizer_json)
    process = tokenizer._worker._process
    assert process is not None
    process.popen.kill()
    process.popen.wait()
    with pytest.raises(TokenizerError, match="SIGKILL"):
        tokenizer.encode("a")
    assert tokenizer.encode("a") == tokenizer.letter


def test_lengths_are_reset_as_transformers_does(debug_folder: Path, tmp_path: Path) -> None:
    """Neither crashes nor cuts; and programs that read the written file do neither as well."""
    text = "the rain in the north and the south"
    for name, value in (("padding", PADDING), ("truncation", TRUNCATION)):
        folder = shutil.copytree(debug_folder, tmp_path / name)
        (folder / "tokenizer.json").write_text(changed(field(name, value)))
        reference = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
        wanted = reference(text, add_special_tokens=False)["input_ids"]
        assert len(wanted) > 3
        found = read_text_assets(folder)
        assert Tokenizer(found).encode(text) == wanted
        written = json.loads(found.tokenizer_json)
        assert written["padding"] is written["truncation"] is None
        assert written["model"] == json.loads(debug_text().tokenizer_json)["model"]


@pytest.mark.parametrize("kind", ["an abort", "a panic on a text"])
def test_every_command_lives_on(
    program: Program,
    debug_bundles: Mapping[str, Bundle],
    debug_folder: Path,
    tmp_path: Path,
    kind: str,
) -> None:
    """In a bundle whose hashes agree, and in a checkpoint."""
    bundle = shutil.copytree(debug_bundles["android"].root, tmp_path / "bundle")
    model = shutil.copytree(debug_folder, tmp_path / "model")
    text = changed(CRASHES[kind][0])
    for folder in (bundle, model):
        (folder / "tokenizer.json").write_text(text)
    rehash(bundle)
    entry = next(
        entry
        for entry in json.loads((bundle / "manifest.json").read_text())["files"]
        if entry["path"] == "tokenizer.json"
    )
    edit_manifest(bundle, lambda value: put(value, "text.tokenizer_sha256", entry["sha256"]))
    for code, arguments in (
        (1, ("doctor", bundle)),
        (3, ("run", bundle, "hi")),
        (1, ("push", bundle)),
        (1, ("doctor", model)),
        (3, ("export", model, "--target", "onnx", "--recipe", "w4a8-rtn", "--out", tmp_path / "o")),
    ):
        result = program(*arguments)
        assert result.code == code, arguments
        assert "the tokenizers library" in result.out + result.err
    assert not (tmp_path / "o").exists()


def test_a_tokenizer_that_the_library_may_not_read_again() -> None:
    """Two tokens with one id: which of them it writes differs from process to process."""
    value = json.loads(debug_text().tokenizer_json)
    vocabulary = value["model"]["vocab"]
    vocabulary["g"] = vocabulary["z"]
    for _ in range(6):
        opened = NativeTokenizer(json.dumps(value))
        try:
            assert opened.encode_plain("an in")
        except TokenizerError as error:
            assert str(error).startswith("not a tokenizer that this version")
