import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from llama_edge.bundle.folder import Bundle
from tests.cli.conftest import Program

KEYS = {"name", "shape", "bits", "group_size", "codes_sha256", "scales_sha256"}


@pytest.fixture
def broken(debug_bundles: Mapping[str, Bundle], tmp_path: Path) -> Path:
    """A bundle with one bit flipped in its weights."""
    folder = tmp_path / "broken"
    shutil.copytree(debug_bundles["android"].root, folder)
    data = bytearray((folder / "model.pte").read_bytes())
    data[-100] ^= 1
    (folder / "model.pte").write_bytes(data)
    return folder


def test_inspect_lists_every_matrix(program: Program, debug_bundles: Mapping[str, Bundle]) -> None:
    tables = []
    for target in ("android", "onnx"):
        tensors = program("inspect", debug_bundles[target].root, "--json").json["tensors"]
        assert all(set(tensor) == KEYS for tensor in tensors)
        tables.append(tensors)
    assert tables[0] == tables[1]
    assert tables[0][1]["name"] == "model.layers.0.self_attn.q_proj.weight"
    text = program("inspect", debug_bundles["onnx"].root).out
    assert tables[0][1]["codes_sha256"][:12] in text


def test_compare_shows_bundles_side_by_side(
    program: Program, debug_bundles: Mapping[str, Bundle]
) -> None:
    roots = [bundle.root for bundle in debug_bundles.values()]
    result = program("compare", *roots)
    assert result.code == 0
    for word in ("android", "onnx", "graph parity", "fidelity", "14 int4", "next"):
        assert word in result.out
    assert program("compare", *roots, "--json").json["same_codes"] is True


def test_parity_passes(
    program: Program, debug_bundles: Mapping[str, Bundle], debug_folder: Path
) -> None:
    result = program("parity", debug_bundles["onnx"].root, "--against", debug_folder, "--json")
    assert result.code == 0
    assert result.json["passed"] is True
    assert result.json["fidelity"]["passed"] is True


def test_parity_of_a_changed_bundle_exits_1_and_names_the_file(
    program: Program, broken: Path
) -> None:
    result = program("parity", broken)
    assert result.code == 1
    assert "model.pte" in result.out
    as_json = program("parity", broken, "--json")
    assert as_json.code == 1
    assert as_json.json["passed"] is False


def test_a_changed_bundle_does_not_run(program: Program, broken: Path) -> None:
    result = program("run", broken, "hello")
    assert result.code == 1
    assert "SHA-256" in result.err


def test_run_streams_text_or_prints_json(
    program: Program, debug_bundles: Mapping[str, Bundle]
) -> None:
    root = debug_bundles["onnx"].root
    text = program("run", root, "the rain", "--max-new-tokens", 8)
    assert text.code == 0
    result = program("run", root, "the rain", "--max-new-tokens", 8, "--json").json
    assert result["text"] + "\n" == text.out
    assert 0 < result["new_tokens"] <= 8


def test_a_bundle_that_failed_its_gate_says_so(
    program: Program, debug_bundles: Mapping[str, Bundle], tmp_path: Path
) -> None:
    folder = tmp_path / "x.failed"
    shutil.copytree(debug_bundles["onnx"].root, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"verdict": "failed"}))
    result = program("run", folder, "the rain", "--max-new-tokens", 2)
    assert "failed its gate" in result.err


def test_quantize_writes_a_folder_that_inspect_reads(
    program: Program, debug_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "q"
    result = program("quantize", debug_folder, "--out", out)
    assert result.code == 0
    assert f"next: llama-edge inspect {out}" in result.out
    again = program("quantize", debug_folder, "--out", out)
    assert again.code == 3
    assert "--force" in again.err
    assert program("quantize", debug_folder, "--out", out, "--force", "--json").code == 0
    assert program("inspect", out).code == 0
