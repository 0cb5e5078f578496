"""R4 in blocks of 16, the whole way to each target's file; and a wrong one, which is found."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from torch import Tensor

from llama_edge.bundle.examine import examine
from llama_edge.bundle.folder import Bundle
from llama_edge.bundle.manifest import Verdict
from llama_edge.core.errors import CheckFailedError, ConfigError
from llama_edge.core.hadamard import hadamard
from llama_edge.core.json_files import read_json_object
from llama_edge.core.progress import SilentProgress
from llama_edge.core.recipe import Rotation
from llama_edge.debug.bisect import Place, bisect, first_place
from llama_edge.debug.bisect_repro import write_bisection
from llama_edge.gate.prompts import PromptPlan
from llama_edge.gate.tolerances import Tolerances
from llama_edge.pipeline.export import ExportRequest, export_model
from llama_edge.quantize import W4A8_RTN
from tests.conftest import debug_request
from tests.debug.test_bisect import run_repro

pytestmark = [pytest.mark.executorch, pytest.mark.onnx, pytest.mark.coreml]

BLOCKS = replace(W4A8_RTN, name="blocks", rotations=tuple(Rotation), r4_block=16)
#: Where each target's lowering takes the matrix from.
MATRIX = {
    "android": "llama_edge.backends.executorch.weights.hadamard",
    "onnx": "llama_edge.backends.onnx.graph.hadamard",
    "ios": "llama_edge.backends.coreml.graph.hadamard",
}


def recipe_file(folder: Path, block: int) -> Path:
    path = folder / f"{block}.json"
    written = BLOCKS.to_json() | {"base": "w4a8-rtn", "r4_block": block}
    path.write_text(json.dumps(written))
    return path


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with R4 in blocks of 16, which no recipe by name has."""
    return recipe_file(tmp_path_factory.mktemp("recipe"), 16)


def request_for(model: Path, target: str, out: Path, recipe: Path) -> ExportRequest:
    prompts = PromptPlan(gate=1, fidelity=1)
    return replace(debug_request(model, target, out), recipe=str(recipe), prompts=prompts)


@pytest.fixture(scope="module")
def bundles(
    debug_folder: Path, blocks: Path, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Bundle]:
    place = tmp_path_factory.mktemp("blocks")
    requests = {
        target: request_for(debug_folder, target, place / target, blocks) for target in MATRIX
    }
    return {target: export_model(request, SilentProgress()) for target, request in requests.items()}


def test_every_target_passes_the_gate_with_the_same_codes(bundles: Mapping[str, Bundle]) -> None:
    for bundle in bundles.values():
        assert bundle.manifest.verdict is Verdict.PASSED
        assert examine(bundle.root, None, SilentProgress()).findings == ()
    assert len({bundle.manifest.tensors for bundle in bundles.values()}) == 1
    assert bundles["ios"].manifest.parity["mean_kl"] < Tolerances().weight_only_mean_kl


def test_the_manifest_says_so(bundles: Mapping[str, Bundle]) -> None:
    for bundle in bundles.values():
        written = read_json_object(bundle.root / "manifest.json")
        assert written["recipe"]["r4_block"] == 16
        assert written["model"]["config"]["down_proj_rotation"] == [16]
        assert bundle.manifest.recipe == BLOCKS


@pytest.mark.parametrize("target", [pytest.param("android", marks=pytest.mark.slow), "onnx"])
def test_bisect_knows_the_operator(
    target: str, bundles: Mapping[str, Bundle], debug_folder: Path
) -> None:
    found = bisect(bundles[target].root, str(debug_folder), SilentProgress())
    assert found.passed
    assert min(row.operator_db for row in found.rows) > 110


def other_signs(order: int) -> Tensor:
    """As orthogonal as the right matrix; one of its rows has the other sign."""
    matrix = hadamard(order).clone()
    matrix[3] = -matrix[3]
    return matrix


@pytest.mark.parametrize(
    "target",
    [
        pytest.param("android", marks=pytest.mark.slow),
        pytest.param("ios", marks=pytest.mark.slow),
        "onnx",
    ],
)
def test_a_wrong_matrix_is_refused(
    target: str,
    debug_folder: Path,
    blocks: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(MATRIX[target], other_signs)
    with pytest.raises(CheckFailedError, match=r"layers\.\d\.mlp"):
        export_model(request_for(debug_folder, target, tmp_path / "out", blocks), SilentProgress())
    assert not (tmp_path / "out").exists()
    if target == "onnx":
        found = bisect(tmp_path / "out.failed", str(debug_folder), SilentProgress())
        assert first_place(found) == Place(layer=0, operator="down_rotation")
        (tmp_path / "bisected").mkdir()
        write_bisection(found, tmp_path / "bisected")
        run_repro(tmp_path / "bisected" / "repro", fails=True)


def test_a_block_that_no_rotation_fits_is_refused_before_any_work(
    debug_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_: object) -> None:
        raise AssertionError("the model was quantized")

    monkeypatch.setattr("llama_edge.pipeline.export.quantize_with_cache", work)
    path = recipe_file(tmp_path, 64)
    request = request_for(debug_folder, "onnx", tmp_path / "out", path)
    with pytest.raises(ConfigError, match="r4_block is 64"):
        export_model(request, SilentProgress())
    assert list(tmp_path.iterdir()) == [path]
