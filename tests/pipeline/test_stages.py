"""What a killed export had finished is taken up by the next one, if it is the same export."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from llama_edge.backends.base import LowerOptions
from llama_edge.bundle.folder import open_bundle
from llama_edge.core.progress import SilentProgress, Steps
from llama_edge.gate.gate import GateOutcome, GateSubject
from llama_edge.pipeline.export import ExportRequest, export_model
from llama_edge.pipeline.stages import Stages
from tests.conftest import debug_request

pytestmark = pytest.mark.onnx

QUANTIZE, LOWER = "quantize (w4a8-rtn)", "lower (onnx)"


class Said(SilentProgress):
    def __init__(self) -> None:
        self.stages: list[str] = []
        self.remarks: list[str] = []

    def start(self, stage: str, steps: Steps, done: int = 0) -> None:
        self.stages.append(stage)

    def remark(self, text: str) -> None:
        self.remarks.append(text)

    def slow(self) -> Sequence[str]:
        return [stage for stage in self.stages if stage in (QUANTIZE, LOWER)]


@pytest.fixture
def model(debug_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in debug_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.fixture
def killed_in_the_gate(model: Path, tmp_path: Path) -> ExportRequest:
    """A request whose first run has left what a kill in the gate leaves."""
    request = debug_request(model, "onnx", tmp_path / "bundles" / "out")
    with pytest.MonkeyPatch.context() as patch:

        def interrupt(subject: GateSubject, progress: SilentProgress) -> GateOutcome:
            raise KeyboardInterrupt

        patch.setattr("llama_edge.pipeline.export.run_gate", interrupt)
        patch.setattr("llama_edge.core.unfinished._remove", lambda _: None)
        with pytest.raises(KeyboardInterrupt):
            export_model(request, SilentProgress())
    return request


@pytest.fixture(autouse=True)
def easy_gate(killed_in_the_gate: ExportRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read back is still compared; nothing is run."""
    passed = GateOutcome(parity=None, fidelity=None, reason=None)
    monkeypatch.setattr("llama_edge.pipeline.export.run_gate", lambda *_: passed)


def bundle_of(request: ExportRequest, said: Said) -> dict[str, bytes]:
    export_model(request, said)
    assert request.out is not None
    assert [path.name for path in request.out.parent.iterdir()] == [request.out.name]
    open_bundle(request.out)
    return {path.name: path.read_bytes() for path in request.out.iterdir()}


def test_the_same_export_goes_on(killed_in_the_gate: ExportRequest) -> None:
    said, plain = Said(), Said()
    resumed = bundle_of(killed_in_the_gate, said)
    assert said.slow() == []
    assert "read values back" in said.stages
    undisturbed = bundle_of(replace(killed_in_the_gate, force=True), plain)
    assert plain.slow() == [QUANTIZE, LOWER]
    assert resumed == undisturbed


def test_other_options_begin_anew(killed_in_the_gate: ExportRequest) -> None:
    said = Said()
    bundle_of(replace(killed_in_the_gate, options=LowerOptions(max_context=500)), said)
    assert said.slow() == [QUANTIZE, LOWER]


def test_other_weights_begin_anew(killed_in_the_gate: ExportRequest, model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * 2
    save_file(weights, model / "model.safetensors")
    said = Said()
    bundle_of(killed_in_the_gate, said)
    assert said.slow() == [QUANTIZE, LOWER]


def swap_rows(place: Path) -> None:
    weights = load_file(place / "quantized/weights.safetensors")
    table = weights["model.embed_tokens.weight.codes"]
    table[[10, 20]] = table[[20, 10]]
    save_file(weights, place / "quantized/weights.safetensors")


def add_template(place: Path) -> None:
    (lowered,) = (path for path in place.glob("lowered-*") if path.is_dir())
    (lowered / "chat_template.jinja").write_text("lies")


def cut_model(place: Path) -> None:
    (model,) = place.glob("lowered-*/model.onnx.data")
    model.write_bytes(model.read_bytes()[:-1] + b"\xff")


@pytest.mark.parametrize(
    ("change", "made_again"),
    [(swap_rows, [QUANTIZE]), (add_template, [LOWER]), (cut_model, [LOWER])],
)
def test_a_stage_that_was_changed_is_made_again(
    killed_in_the_gate: ExportRequest, change: Callable[[Path], None], made_again: list[str]
) -> None:
    out = killed_in_the_gate.out
    assert out is not None
    change(out.parent / ".out.unfinished")
    said = Said()
    resumed = bundle_of(killed_in_the_gate, said)
    assert said.slow() == made_again
    (remark,) = said.remarks
    assert "is not as it was left; this stage of an earlier run is made again" in remark
    assert resumed == bundle_of(replace(killed_in_the_gate, force=True), Said())


def test_half_a_stage_does_not_count(tmp_path: Path) -> None:
    def stages(key: str = "key") -> Stages:
        return Stages(tmp_path, key, SilentProgress())

    (stages().begin("quantized") / "half").touch()
    assert stages().finished("quantized") is None
    assert list(stages().begin("quantized").iterdir()) == []
    assert stages().finish("quantized") == stages().finished("quantized")
    assert stages("another").finished("quantized") is None
