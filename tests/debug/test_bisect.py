"""Every numeric fault in a written file is named: the layer, and the operator in it."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from llama_edge.backends import get_exporter
from llama_edge.bundle.folder import Bundle, read_manifest, write_manifest
from llama_edge.core.artifact import KVCacheDtype
from llama_edge.core.errors import ArtifactError
from llama_edge.core.packing import tensor_sha256
from llama_edge.core.progress import SilentProgress
from llama_edge.core.regular import file_sha256
from llama_edge.debug.bisect import Bisection, Place, bisect, first_place
from llama_edge.debug.bisect_repro import bisection_json, write_bisection
from llama_edge.debug.bisect_weights import WeightFinding
from llama_edge.pipeline.export import export_model
from tests.conftest import debug_request
from tests.gate.test_planted_faults import write_cache_one_place_off
from tests.pipeline import damage

Copy = Callable[[str], Path]


def pte_cache_one_off(folder: Path, layer: int) -> None:
    assert layer == 0
    write_cache_one_place_off(folder / "model.pte")


#: target, fault, layer (None: the one that is asked for), operator
FAULTS: Mapping[str, tuple[str, damage.Damage, int | None, str]] = {
    "onnx: nibble pair": ("onnx", damage.swap_nibbles, None, "down_proj"),
    "onnx: scale step": ("onnx", damage.step_scale, None, "o_proj"),
    "onnx: transposed rope": ("onnx", damage.transpose_rope, None, "rope"),
    "onnx: epsilon of the first norm": ("onnx", damage.smaller_epsilon, 0, "input_layernorm"),
    "onnx: epsilon": ("onnx", damage.smaller_epsilon, None, "post_attention_layernorm"),
    "onnx: cache": ("onnx", damage.cache_one_off, 0, "kv_cache"),
    "onnx: unquantized": ("onnx", damage.leave_unquantized, None, "up_proj"),
    "onnx: float activations": ("onnx", damage.float_activations, None, "gate_proj"),
    "android: nibble pair": ("android", damage.swap_nibbles, None, "down_proj"),
    "android: scale step": ("android", damage.step_scale, None, "o_proj"),
    "android: transposed rope": ("android", damage.transpose_rope_pte, 0, "rope"),
    "android: epsilon": ("android", damage.smaller_epsilon_pte, 0, "input_layernorm"),
    "android: cache": ("android", pte_cache_one_off, 0, "kv_cache"),
}
#: On the debug model by default; the runtime of the others takes seconds to start.
QUICK = [name for name in FAULTS if name.startswith("onnx")]
QUICK += ["android: cache"]


@pytest.fixture
def copy(debug_bundles: Mapping[str, Bundle], tmp_path: Path) -> Copy:
    def make(target: str) -> Path:
        return shutil.copytree(debug_bundles[target].root, tmp_path / target)

    return make


def look(folder: Path, against: Path | str | None) -> Bisection:
    return bisect(folder, None if against is None else str(against), SilentProgress())


@pytest.mark.parametrize("name", QUICK)
def test_a_fault_is_named(name: str, copy: Copy, debug_folder: Path, tmp_path: Path) -> None:
    target, plant, layer, operator = FAULTS[name]
    folder = copy(target)
    plant(folder, 1 if layer is None else layer)
    found = look(folder, debug_folder)
    assert first_place(found) == Place(layer=1 if layer is None else layer, operator=operator)
    written = tmp_path / "written"
    written.mkdir()
    write_bisection(found, written)
    value = json.loads((written / "bisect.json").read_text())
    assert value["first"]["operator"] == operator
    assert not value["passed"]
    assert (written / "layers.png").read_bytes().startswith(b"\x89PNG")
    run_repro(written / "repro", fails=name != "onnx: epsilon")


def run_repro(folder: Path, *, fails: bool) -> None:
    """It runs alone, agrees with the reference, and shows the fault if a real input does."""
    done = subprocess.run(
        [sys.executable, "-I", folder / "repro.py"], capture_output=True, text=True, check=False
    )
    assert done.returncode == int(fails), done.stdout + done.stderr
    line = next(line for line in done.stdout.splitlines() if "against the reference" in line)
    assert float(line.split("relative error ")[1].split()[0]) < 2e-6, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_on_smollm2(
    name: str, android_bundle: Bundle, onnx_bundle: Bundle, tmp_path: Path
) -> None:
    target, plant, layer, operator = FAULTS[name]
    bundle = {"android": android_bundle, "onnx": onnx_bundle}[target]
    folder = shutil.copytree(bundle.root, tmp_path / target)
    plant(folder, 12 if layer is None else layer)
    wanted = Place(layer=12 if layer is None else layer, operator=operator)
    assert first_place(look(folder, None)) == wanted


@pytest.mark.slow
def test_no_alarm_on_smollm2(android_bundle: Bundle, onnx_bundle: Bundle) -> None:
    for bundle in (android_bundle, onnx_bundle):
        found = look(bundle.root, None)
        assert found.passed, bisection_json(found)
        assert sum(row.flips for row in found.rows) < 100


@pytest.mark.parametrize("target", ["android", "onnx"])
def test_no_alarm_on_a_good_bundle(
    target: str, debug_bundles: Mapping[str, Bundle], debug_folder: Path
) -> None:
    found = look(debug_bundles[target].root, debug_folder)
    assert found.passed
    assert first_place(found) is None
    assert [row.layer for row in found.rows] == [-1, 0, 1, 2]
    assert min(row.operator_db for row in found.rows) > 110
    streams = [row.stream_db for row in found.rows[1:3]]
    assert all(stream is not None and 5 < stream < 40 for stream in streams), "int4 costs something"


def test_no_alarm_on_a_good_core_ml_package(debug_folder: Path, tmp_path: Path) -> None:
    bundle = export_model(debug_request(debug_folder, "ios", tmp_path / "ios"), SilentProgress())
    found = look(bundle.root, debug_folder)
    assert found.passed, bisection_json(found)
    assert not found.aligned
    assert min(row.operator_db for row in found.rows) > 110


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "recipe", "kv_cache"),
    [
        ("ios", "w4-hadamard", None),
        ("onnx", "w4-hadamard", None),
        ("onnx", "w4a8-mixed", None),
        ("android", "w4a8-hadamard", None),
        ("android", "w4a8-hadamard", KVCacheDtype.INT8),
    ],
)
def test_no_alarm_behind_rotations(
    target: str, recipe: str, kv_cache: KVCacheDtype | None, debug_folder: Path, tmp_path: Path
) -> None:
    """R1 is taken out of the stream; R3, R4 and the head's rotation are operators of their own."""
    request = debug_request(debug_folder, target, tmp_path / "out")
    options = replace(request.options, kv_cache=kv_cache)
    request = replace(request, recipe=recipe, options=options)
    found = look(export_model(request, SilentProgress()).root, debug_folder)
    assert found.passed, bisection_json(found)
    assert found.aligned
    assert all(row.stream_db is not None and row.stream_db > 10 for row in found.rows[1:3])


def promise_what_is_there(folder: Path) -> None:
    """The manifest of somebody who wrote wrong codes from the start."""
    manifest = read_manifest(folder).manifest
    exporter = get_exporter(manifest.backend)
    weights = exporter.open(exporter.open(folder).artifact.path).weights()
    tensors = tuple(
        replace(
            entry,
            codes_sha256=tensor_sha256(weights.quantized(entry.name).codes),
            scales_sha256=tensor_sha256(weights.quantized(entry.name).scales),
        )
        for entry in manifest.tensors
    )
    files = tuple(replace(one, sha256=file_sha256(folder / one.path)) for one in manifest.files)
    write_manifest(folder, replace(manifest, tensors=tensors, files=files))


def test_codes_that_were_wrong_from_the_start(
    copy: Copy, debug_bundles: Mapping[str, Bundle], debug_folder: Path
) -> None:
    folder = copy("onnx")
    damage.swap_nibbles(folder, 1)
    assert first_place(look(folder, None)) is not None, "the manifest promises other codes"
    promise_what_is_there(folder)
    assert look(folder, None).passed, "the bundle alone cannot tell"
    for right in (debug_folder, debug_bundles["android"].root):
        found = look(folder, right)
        assert first_place(found) == Place(layer=1, operator="down_proj")
        assert isinstance(found.first, WeightFinding)
        assert "2 of 15360 values differ" in found.first.message


def test_another_models_bundle_is_no_reference(
    debug_bundles: Mapping[str, Bundle], tmp_path: Path, copy: Copy
) -> None:
    folder = copy("onnx")
    manifest = read_manifest(folder).manifest
    config = replace(manifest.model.config, rope_theta=500000.0)
    write_manifest(folder, replace(manifest, model=replace(manifest.model, config=config)))
    with pytest.raises(ArtifactError, match="config is not the bundle's"):
        look(debug_bundles["android"].root, folder)


def test_an_artifact_of_another_size_is_refused(copy: Copy) -> None:
    folder = copy("onnx")
    manifest = read_manifest(folder).manifest
    config = replace(manifest.model.config, num_hidden_layers=3)
    write_manifest(folder, replace(manifest, model=replace(manifest.model, config=config)))
    with pytest.raises(ArtifactError, match="num_hidden_layers is 2 and the manifest says 3"):
        look(folder, None)
