"""`bisect`, `diff` and `report` from the command line: what they print, and their exit codes."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from llama_edge.bundle.folder import Bundle
from tests.cli.conftest import Program
from tests.pipeline import damage


@pytest.fixture
def damaged(debug_bundles: Mapping[str, Bundle], tmp_path: Path) -> Path:
    folder = shutil.copytree(debug_bundles["onnx"].root, tmp_path / "damaged")
    damage.swap_nibbles(folder, 1)
    return folder


def test_diff(program: Program, damaged: Path, debug_bundles: Mapping[str, Bundle]) -> None:
    good = debug_bundles["onnx"].root
    result = program("diff", good, damaged)
    assert result.code == 1
    assert "2 of 15360 values differ" in result.out
    assert result.out.rstrip().endswith("different")
    found = program("diff", good, damaged, "--json")
    assert found.code == 1
    assert found.json["equal"] is False
    same = program("diff", good, debug_bundles["android"].root)
    assert same.code == 0
    assert same.out.rstrip().endswith("equal")


def test_bisect(program: Program, damaged: Path, tmp_path: Path) -> None:
    out = tmp_path / "found"
    result = program("bisect", damaged, "--out", out)
    assert result.code == 1
    assert "first wrong: layer 1, down_proj" in result.out
    assert (out / "repro" / "repro.py").is_file()
    assert program("bisect", damaged, "--out", out).code == 3, "exists already"
    again = program("bisect", damaged, "--out", out, "--force", "--json")
    assert again.json["first"]["layer"] == 1
    assert again.json["first"]["kind"] == "weights"


def test_bisect_of_nothing(program: Program, tmp_path: Path) -> None:
    assert program("bisect", tmp_path, "--out", tmp_path / "out").code == 3


def test_report(program: Program, debug_bundles: Mapping[str, Bundle], tmp_path: Path) -> None:
    root = debug_bundles["onnx"].root
    result = program("report", root, "--out", tmp_path / "page.html", "--json")
    assert result.code == 0
    written = (tmp_path / "page.html").read_bytes()
    assert result.json["size_bytes"] == len(written)
    assert written == (root / "report.html").read_bytes()
