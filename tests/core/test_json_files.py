"""What JSON's grammar leaves open is refused, and each message names its cause."""

import codecs
import json
from pathlib import Path

import pytest

from llama_edge.core.errors import ArtifactError, CheckpointError
from llama_edge.core.files import write_json
from llama_edge.core.json_files import (
    MAX_CONFIG_BYTES,
    canonical_json,
    parse_json,
    parse_json_object,
    read_json_object,
)


def test_canonical_json_does_not_depend_on_the_order() -> None:
    assert canonical_json({"b": 1, "a": ["é"]}) == '{\n  "a": [\n    "é"\n  ],\n  "b": 1\n}\n'
    with pytest.raises(ValueError, match="Out of range float"):
        canonical_json(float("nan"))


def test_json_comes_back(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"text": "日本語", "number": 1.5})
    assert read_json_object(tmp_path / "a.json") == {"text": "日本語", "number": 1.5}


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        '{"a": null, "b": [true, false, -0.0, 1e30, -17, 2.5e-7]}',
        # As Hugging Face writes a tokenizer without a limit.
        '{"model_max_length": 1000000000000000019884624838656}',
        '{"pair": "\\ud83d\\ude42", "plain": "\\u00e9\\n\\u0000"}',
        '{"a": {"b": 1}, "b": {"a": 1}}',
        '{"deep": ' + "[" * 63 + "]" * 63 + "}",
        '{"wide": [' + ",".join(["[]"] * 1000) + "]}",
    ],
)
def test_what_is_clear_is_read_as_python_reads_it(text: str) -> None:
    assert parse_json(text, "a.json") == json.loads(text)
    assert parse_json_object(codecs.BOM_UTF8 + text.encode(), "a.json") == json.loads(text)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (b"", "not readable as JSON: Expecting value"),
        (b"{", "not readable as JSON: Expecting property name"),
        (b"{'dim': 1}", "not readable as JSON: Expecting property name enclosed in double quotes"),
        (b"[1]", "holds a list; a JSON object is needed"),
        (b"null", "holds a NoneType; a JSON object is needed"),
        (b'{"a": 1} {"a": 2}', "not readable as JSON: Extra data"),
        (b'{"a": {"b": 1, "b": 1}}', "not readable as JSON: the key 'b' is there twice"),
        (b'{"\xc3\xa9": 1, "\\u00e9": 2}', r"the key '\\xe9' is there twice"),
        (b'{"a": NaN}', "a is NaN; a finite number is needed"),
        (b'{"a": [1, {"b": -Infinity}]}', r"a\[1\].b is -Infinity; a finite number"),
        (b'{"a": 1e999}', "a is 1e999; a finite number is needed"),
        (b'{"a": ' + b"9" * 5000 + b"}", r"a number of 5000 digits \(99999999...\); at most 40"),
        (b'{"a": -' + b"9" * 41 + b"}", "a number of 41 digits"),
        (b'{"a": "x\\ud800"}', r"a has \\ud800, half of a surrogate pair"),
        (b'{"\\uDC00": 1}', r"\\udc00 has \\udc00, half of a surrogate pair"),
        (b'{"a": ["\\ude42\\ud83d"]}', r"a\[0\] has \\ude42, half of a surrogate pair"),
        (b'{"a": ' + b"[" * 64 + b"]" * 64 + b"}", "nested more than 64 levels deep"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "nested more than 64 levels deep"),
        (b"[" * 100_000, "nested more than 64 levels deep"),
        (b'{"a":' * 100_000, "nested more than 64 levels deep"),
        (b'{"a": "\xff"}', "is not UTF-8 text: invalid start byte at byte 7; save it as UTF-8"),
        (b'{"a": "\xed\xa0\x80"}', "is not UTF-8 text"),
        ("{}".encode("utf-16"), "is saved as UTF-16, as Windows PowerShell does; save it as UTF-8"),
        ("{}".encode("utf-16-be"), "is saved as UTF-16"),
        ("{}".encode("utf-32"), "is saved as UTF-32"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git lfs pull"),
    ],
)
def test_what_is_unclear_is_refused(tmp_path: Path, damage: bytes, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(damage)
    with pytest.raises(ArtifactError, match=f"^{path}: .*{message}"):
        read_json_object(path)


def test_an_error_is_of_the_callers_class(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": 1, "a": 2}')
    with pytest.raises(CheckpointError, match="twice"):
        read_json_object(tmp_path / "a.json", CheckpointError)


def test_each_kind_of_file_has_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("{}" + " " * (MAX_CONFIG_BYTES - 2))
    assert read_json_object(path) == {}
    path.write_text("{}" + " " * (MAX_CONFIG_BYTES - 1))
    with pytest.raises(ArtifactError, match="has 1048577 bytes; at most 1048576 are read"):
        read_json_object(path)
    assert read_json_object(path, limit=2 * MAX_CONFIG_BYTES) == {}


@pytest.mark.parametrize("text", ["'{\"dim\": 4}'", "{'dim': 4}", "\n { 'dim': 4}"])
def test_single_quotes_are_named(text: str) -> None:
    with pytest.raises(ArtifactError, match="JSON has double quotes"):
        parse_json(text, "params.json")
