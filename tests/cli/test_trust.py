import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from llama_edge.bundle.finding_codes import finding_codes
from llama_edge.bundle.folder import Bundle
from tests.cli.conftest import Program
from tests.faults.forging import edit_json, edit_manifest, put, rehash


@pytest.fixture
def bundle(debug_bundles: Mapping[str, Bundle], tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    shutil.copytree(debug_bundles["onnx"].root, folder)
    return folder


def test_doctor_on_a_good_bundle(program: Program, bundle: Path) -> None:
    result = program("doctor", bundle, "--json")
    assert result.code == 0
    assert result.json["passed"] is True
    assert "files and hashes" in result.json["checked"]
    assert "nothing found" in program("doctor", bundle).out


def test_doctor_says_what_where_expected_found_and_the_remedy(
    program: Program, bundle: Path
) -> None:
    change = {"eos_token_id": [0, 2, 9]}
    edit_json(bundle / "generation_config.json", lambda value: value.update(change))
    rehash(bundle)
    result = program("doctor", bundle, "--json")
    assert result.code == 1
    (finding,) = result.json["findings"]
    known = finding_codes()["eos.foreign"]
    assert finding == {
        "code": "eos.foreign",
        "where": "generation_config.json: eos_token_id",
        "expected": "the ids [0, 2]",
        "found": "[0, 2, 9], with [9]",
        "what": known.what,
        "remedy": known.remedy,
    }
    text = program("doctor", bundle).out
    for word in finding.values():
        assert word in text


def test_a_signed_bundle_is_verified_until_it_is_changed(
    program: Program, bundle: Path, tmp_path: Path
) -> None:
    key, public = tmp_path / "key", tmp_path / "key.pub"
    made = program("keygen", key, "--json").json
    assert made["public_key"] == str(public)
    assert program("doctor", bundle, "--public-key", public).code == 1, "not signed yet"
    assert program("sign", bundle, "--key", key, "--json").json["key_id"] == made["key_id"]
    for command in ("verify", "doctor"):
        assert program(command, bundle, "--public-key", public).code == 0
    assert program("doctor", bundle).code == 0
    # A liar who makes every hash agree cannot sign.
    edit_json(bundle / "generation_config.json", lambda value: value.update(temperature=2.0))
    edit_manifest(bundle, lambda value: put(value, "text.generation_defaults.temperature", 2.0))
    rehash(bundle)
    assert program("doctor", bundle).code == 0
    for command in ("verify", "doctor"):
        result = program(command, bundle, "--public-key", public, "--json")
        assert result.code == 1
        assert [found["code"] for found in result.json["findings"]] == ["signature.invalid"]


def test_verify_finds_a_changed_file(program: Program, bundle: Path, tmp_path: Path) -> None:
    program("keygen", tmp_path / "key")
    program("sign", bundle, "--key", tmp_path / "key")
    (bundle / "parity.json").write_text(json.dumps({"passed": True}))
    result = program("verify", bundle, "--public-key", tmp_path / "key.pub", "--json")
    assert [found["code"] for found in result.json["findings"]] == ["files.size"]


def test_what_failed_or_is_damaged_is_not_signed(
    program: Program, bundle: Path, tmp_path: Path
) -> None:
    program("keygen", tmp_path / "key")
    edit_manifest(bundle, lambda value: put(value, "verdict", "failed"))
    result = program("sign", bundle, "--key", tmp_path / "key")
    assert result.code == 1
    assert "failed its gate" in result.err
    edit_manifest(bundle, lambda value: put(value, "verdict", "passed"))
    (bundle / "tokenizer.json").unlink()
    assert program("sign", bundle, "--key", tmp_path / "key").code == 1
    assert not (bundle / "manifest.sig").exists()


def test_a_key_for_what_is_no_bundle(program: Program, debug_folder: Path, tmp_path: Path) -> None:
    program("keygen", tmp_path / "key")
    result = program("doctor", debug_folder, "--public-key", tmp_path / "key.pub")
    assert result.code == 2
    assert "belongs to a bundle" in result.err
