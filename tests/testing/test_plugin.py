"""The plugin in a test run of somebody else's."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from llama_edge.bundle.folder import Bundle
from llama_edge.testing import assert_contract, assert_parity
from tests.faults.table import DOCTOR

pytest_plugins = ["pytester"]

TEST = """
from llama_edge.testing import assert_contract

def test_contract(llama_edge_bundle):
    assert_contract(llama_edge_bundle)
"""


@pytest.fixture
def damaged(debug_bundles: Mapping[str, Bundle], tmp_path: Path) -> Path:
    folder = tmp_path / "damaged"
    shutil.copytree(debug_bundles["onnx"].root, folder)
    next(fault for fault in DOCTOR if fault.name == "one nibble pair swapped in ONNX").into(folder)
    return folder


def test_each_bundle_is_tested_and_a_damaged_one_fails_with_its_findings(
    pytester: pytest.Pytester, debug_bundles: Mapping[str, Bundle], damaged: Path
) -> None:
    pytester.makepyfile(TEST)
    bundles = [f"--llama-edge-bundle={path}" for path in (debug_bundles["onnx"].root, damaged)]
    result = pytester.runpytest_subprocess("-p", "llama_edge.testing.plugin", *bundles)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*codes.sha256: model.onnx*", "*1 failed, 1 passed*"])


def test_a_gate_that_is_shown_nothing_fails(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(TEST)
    result = pytester.runpytest_subprocess("-p", "llama_edge.testing.plugin")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*no bundle is given*"])


def test_the_assertions_alone(debug_bundles: Mapping[str, Bundle], damaged: Path) -> None:
    assert assert_contract(debug_bundles["onnx"].root).passed
    with pytest.raises(AssertionError, match=r"codes\.sha256: model\.onnx: model\.layers\.1"):
        assert_contract(damaged)
    with pytest.raises(AssertionError, match="down_proj"):
        assert_parity(damaged)
