"""Every planted fault is found, under its code and at its place; good bundles have no findings."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import pytest

from llama_edge.bundle.examination import Diagnosis
from llama_edge.bundle.examine import examine
from llama_edge.bundle.finding_codes import finding_codes
from llama_edge.bundle.folder import Bundle
from llama_edge.core.errors import ArtifactError, MissingComponentError
from llama_edge.core.progress import SilentProgress
from llama_edge.pipeline.export import export_model
from tests.conftest import debug_request
from tests.faults.fault import Fault
from tests.faults.forging import edit_manifest, put
from tests.faults.table import DOCTOR


def examined(path: Path) -> Diagnosis:
    return examine(path, None, SilentProgress())


@pytest.fixture(scope="module")
def good(
    debug_bundles: Mapping[str, Bundle],
    debug_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Mapping[str, Path]:
    out = tmp_path_factory.mktemp("doctor") / "ios"
    ios = export_model(debug_request(debug_folder, "ios", out), SilentProgress())
    return {**{target: bundle.root for target, bundle in debug_bundles.items()}, "ios": ios.root}


@pytest.mark.parametrize("target", ["android", "ios", "onnx"])
def test_a_good_bundle_has_no_findings(good: Mapping[str, Path], target: str) -> None:
    diagnosis = examined(good[target])
    assert diagnosis.findings == ()
    assert len(diagnosis.checked) == 17
    assert diagnosis.notes == ()


@pytest.mark.parametrize("fault", DOCTOR, ids=lambda fault: fault.name)
def test_a_planted_fault_is_found(fault: Fault, good: Mapping[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(good[fault.target], folder)
    fault.into(folder)
    findings = examined(folder).findings
    assert (fault.code, fault.where) in [(found.code, found.where) for found in findings]
    if fault.lies != "nothing":
        assert not [found for found in findings if found.code.startswith("files.")]


def test_the_table_plants_what_the_catalog_knows() -> None:
    names = [fault.name for fault in DOCTOR]
    assert len(names) == len(set(names)) >= 25
    not_planted = set(finding_codes()) - {fault.code for fault in DOCTOR} - {"state.values"}
    areas = {code.partition(".")[0] for code in not_planted}
    # Signatures have tests of their own; the gate's codes, and `state.values`, are for what runs.
    assert areas <= {"signature", "parity", "runtime", "artifact", "examination"}, not_planted


def test_all_findings_are_collected(good: Mapping[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(good["onnx"], folder)
    wanted = {"two merged ids swapped", "one nibble pair swapped in ONNX", "failed verdict"}
    for fault in DOCTOR:
        if fault.name in wanted:
            fault.into(folder)
    codes = {found.code for found in examined(folder).findings}
    assert codes >= {
        "tokenizer.sha256",
        "tokenizer.golden_tokens",
        "codes.sha256",
        "verdict.failed",
    }


def test_findings_name_no_folder_of_this_machine(good: Mapping[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(good["android"], folder)
    next(fault for fault in DOCTOR if fault.name == "program cut off").into(folder)
    (found, *_) = examined(folder).findings
    assert str(tmp_path) not in str(found.to_json())


def test_a_missing_backend_is_a_finding(
    good: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> NoReturn:
        raise MissingComponentError(f"backend {name}: pip install 'llama-edge[{name}]'")

    monkeypatch.setattr("llama_edge.bundle.doctor_bundle.get_exporter", absent)
    (found,) = examined(good["android"]).findings
    assert found.code == "runtime.missing"
    assert "pip install" in found.found


def test_a_backend_that_nobody_knows(good: Mapping[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(good["onnx"], folder)
    edit_manifest(folder, lambda found: put(found, "backend", "qnn"))
    assert [found.code for found in examined(folder).findings] == ["target.backend"]


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="there is no such file"):
        examined(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match="not a bundle"):
        examined(tmp_path)
