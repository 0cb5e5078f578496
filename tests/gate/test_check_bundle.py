import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from llama_edge.bundle.folder import Bundle, list_files
from llama_edge.core.errors import CheckpointError
from llama_edge.core.progress import SilentProgress
from llama_edge.gate.check_bundle import check_bundle


@pytest.fixture
def travelled(debug_bundles: Mapping[str, Bundle], tmp_path: Path) -> Path:
    """A copy of the ONNX bundle, to be changed."""
    folder = tmp_path / "travelled"
    shutil.copytree(debug_bundles["onnx"].root, folder)
    return folder


def rehash(folder: Path) -> None:
    """Make the manifest agree with changed files, as a forger would."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    first = [entry["path"] for entry in manifest["files"]]
    manifest["files"] = [
        {"path": entry.path, "size_bytes": entry.size_bytes, "sha256": entry.sha256}
        for entry in list_files(folder, first)
    ]
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize("target", ["android", "onnx"])
def test_passes_and_measures_fidelity_against_the_source(
    debug_bundles: Mapping[str, Bundle], debug_folder: Path, target: str
) -> None:
    outcome = check_bundle(debug_bundles[target].root, str(debug_folder), SilentProgress())
    assert outcome.passed, outcome.reason
    manifest = debug_bundles[target].manifest
    assert outcome.parity_summary() == manifest.parity
    assert outcome.fidelity_summary() == manifest.fidelity


def test_fidelity_is_not_measured_without_the_source(
    debug_bundles: Mapping[str, Bundle],
) -> None:
    outcome = check_bundle(debug_bundles["onnx"].root, None, SilentProgress())
    assert outcome.passed, outcome.reason
    assert outcome.fidelity_summary() is None


def test_another_model_is_refused(debug_bundles: Mapping[str, Bundle]) -> None:
    with pytest.raises(CheckpointError, match="give the model that the bundle was exported from"):
        check_bundle(debug_bundles["onnx"].root, "smollm2-135m", SilentProgress())


def test_a_flipped_byte_fails_with_the_file_named(travelled: Path) -> None:
    path = travelled / "model.onnx.data"
    data = bytearray(path.read_bytes())
    data[5000] ^= 0x11
    path.write_bytes(data)
    outcome = check_bundle(travelled, None, SilentProgress())
    assert outcome.reason is not None
    assert "model.onnx.data" in outcome.reason


def test_swapped_codes_are_found_even_when_the_hashes_agree(travelled: Path) -> None:
    path = travelled / "model.onnx.data"
    data = bytearray(path.read_bytes())
    data[5000] ^= 0x11
    path.write_bytes(data)
    rehash(travelled)
    outcome = check_bundle(travelled, None, SilentProgress())
    assert outcome.reason is not None
    assert "read back from the artifact" in outcome.reason


def test_a_missing_end_token_is_found_even_when_the_hashes_agree(travelled: Path) -> None:
    path = travelled / "genai_config.json"
    config = json.loads(path.read_text())
    config["model"]["eos_token_id"] = [0]
    path.write_text(json.dumps(config))
    rehash(travelled)
    outcome = check_bundle(travelled, None, SilentProgress())
    assert outcome.reason is not None
    assert "[2]" in outcome.reason


def test_the_tokenizer_of_another_model_is_found(travelled: Path) -> None:
    path = travelled / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:-2]
    path.write_text(json.dumps(tokenizer))
    rehash(travelled)
    outcome = check_bundle(travelled, None, SilentProgress())
    assert outcome.reason is not None
    assert outcome.reason.startswith("contract: tokenizer.json: tokenizer.json is not the file")
