"""A suite in `export`, and full precision's answers, which are made once."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import pytest
from torch import Tensor

from llama_edge.bundle.folder import open_bundle
from llama_edge.bundle.manifest import Verdict
from llama_edge.core.checkpoint import Checkpoint, Weights
from llama_edge.core.errors import CheckFailedError, UnknownNameError, UsageError
from llama_edge.core.progress import SilentProgress
from llama_edge.gate.full_answers import FullAnswers
from llama_edge.models.reference import Reference
from llama_edge.models.sources import CachedSource, FullPrecisionSource
from llama_edge.models.weight_names import EMBEDDING
from llama_edge.pipeline import suite as pipeline_suite
from llama_edge.pipeline.cache import cache_folder
from llama_edge.pipeline.export import ExportRequest, export_model
from llama_edge.pipeline.suite import OpenSuite
from llama_edge.runtimes.eager import EagerSession
from llama_edge.suites.request import SuiteRequest
from llama_edge.suites.scores import SuiteReport
from llama_edge.suites.suite import load_suite
from tests.conftest import MemoryWeights, debug_request
from tests.suites.tiny import TINY, write_tiny


@pytest.fixture
def tiny(tmp_path: Path) -> SuiteRequest:
    return SuiteRequest(suite=str(write_tiny(tmp_path)))


def request(model: Path, out: Path, suite: SuiteRequest) -> ExportRequest:
    return replace(debug_request(model, "onnx", out), suite=suite)


@pytest.mark.onnx
def test_a_bundle_that_reaches_it_holds_the_scores(
    debug_folder: Path, tiny: SuiteRequest, tmp_path: Path
) -> None:
    asked = replace(tiny, require=("agreement.every=0.2", "checks=0.5", "checks_loss.th=0"))
    out = tmp_path / "bundle"
    bundle = export_model(request(debug_folder, out, asked), SilentProgress())
    assert "suite.json" in {entry.path for entry in bundle.manifest.files}
    assert open_bundle(out).manifest.verdict is Verdict.PASSED
    scores = json.loads((out / "suite.json").read_text())
    assert (scores["passed"], scores["suite"], scores["missed"]) == (True, "tiny", [])
    assert scores["require"] == list(asked.require)
    assert [group["name"] for group in scores["groups"]] == [None, "en", "th", "summary"]
    assert 0.2 < scores["groups"][0]["metrics"]["agreement"]["value"] <= 1
    assert scores["groups"][0]["metrics"]["checks"]["value"] == 0.5
    assert len(scores["results"]) == len(TINY["prompts"])
    # The path of the suite is this machine's, and no business of the bundle's.
    assert str(tmp_path) not in (out / "suite.json").read_text()


@pytest.mark.onnx
def test_a_bundle_that_misses_it_is_not_put_in_place(
    debug_folder: Path, tiny: SuiteRequest, tmp_path: Path
) -> None:
    asked = replace(tiny, require=("checks.every=0.9",))
    out = tmp_path / "bundle"
    message = r"suite tiny: checks in en is 0\.5000; at least 0\.9 is required \(and 2 more\)"
    with pytest.raises(CheckFailedError, match=message):
        export_model(request(debug_folder, out, asked), SilentProgress())
    assert not out.exists()
    failed = open_bundle(tmp_path / "bundle.failed")
    assert failed.manifest.verdict is Verdict.FAILED
    scores = json.loads((failed.root / "suite.json").read_text())
    assert not scores["passed"]
    assert len(scores["missed"]) == 3


@pytest.mark.onnx
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"suite": "no-such"}, UnknownNameError, "no suite 'no-such'"),
        ({"require": ("agreement.de=0.5",)}, UsageError, "no group 'de'"),
        ({"suite": "on-device"}, UsageError, "takes .* tokens with its answer, .* holds 512"),
    ],
)
def test_what_cannot_be_measured_is_said_before_the_work(
    debug_folder: Path,
    tiny: SuiteRequest,
    tmp_path: Path,
    changes: dict[str, object],
    error: type[Exception],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("llama_edge.pipeline.export.output_folder", None)
    asked = replace(tiny, **changes)  # type: ignore[arg-type]
    with pytest.raises(error, match=message):
        export_model(request(debug_folder, tmp_path / "bundle", asked), SilentProgress())


def measure(
    checkpoint: Checkpoint, suite: SuiteRequest, full: Checkpoint | None = None
) -> SuiteReport:
    source = CachedSource(FullPrecisionSource(checkpoint.config, checkpoint.weights))
    with EagerSession(Reference(checkpoint.config, source), 2048) as session:
        opened = OpenSuite.of(suite)
        return opened.measure(session, checkpoint.text, full or checkpoint, SilentProgress())


def test_full_precision_answers_once(
    debug_checkpoint: Checkpoint,
    tiny: SuiteRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LLAMA_EDGE_CACHE", str(tmp_path / "cache"))
    first = measure(debug_checkpoint, tiny)
    [entry] = (cache_folder() / "answers").iterdir()

    class Refused(FullAnswers):
        def answer(self, *given: object) -> list[int]:
            raise AssertionError(f"asked again: {given}")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline_suite, "FullAnswers", Refused)
        assert measure(debug_checkpoint, tiny) == first
        # Of another model, nothing is known.
        weights = MemoryWeights(debug_checkpoint.config, seed=1)
        with pytest.raises(AssertionError, match="asked again"):
            measure(debug_checkpoint, tiny, replace(debug_checkpoint, weights=weights))
    # What somebody changed is made again.
    (entry / "answers.json").write_text('{"answers": []}')
    assert measure(debug_checkpoint, tiny) == first


def test_fewer_prompts_are_the_first_ones(debug_checkpoint: Checkpoint, tiny: SuiteRequest) -> None:
    report = measure(debug_checkpoint, replace(tiny, per_task=2))
    assert [result.id for result in report.results] == ["en-0", "th-0", "en-1", "th-1"]


@dataclass(frozen=True)
class _Mixed:
    """`Weights` with some rows of the embedding in another order."""

    weights: Weights
    rows: list[int]

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.weights.shape(name)

    def read(self, name: str) -> Tensor:
        tensor = self.weights.read(name)
        if name != EMBEDDING:
            return tensor
        mixed = tensor.clone()
        mixed[self.rows] = tensor[[*self.rows[1:], self.rows[0]]]
        return mixed


@pytest.mark.slow
def test_a_model_that_lost_one_language_misses_it(smollm2: Checkpoint, tmp_path: Path) -> None:
    """The rows of tokens that only Thai needs are mixed up: Thai fails, and English does not."""
    suite = load_suite("on-device").first(1)
    path = tmp_path / "two.json"
    value = json.loads(
        resources.files("llama_edge.suites").joinpath("on_device.json").read_text("utf-8")
    )
    ids = {prompt.id for prompt in suite.prompts if prompt.language in ("en", "th")}
    value["prompts"] = [prompt for prompt in value["prompts"] if prompt["id"] in ids]
    value["max_new_tokens"] = 24
    path.write_text(json.dumps(value))
    require = ("agreement.en=0.99", "agreement.th=0.9")
    request = SuiteRequest(suite=str(path), require=require)
    assert measure(smollm2, request).missed == ()
    questions = OpenSuite.of(request).encode(smollm2.text, 2048)
    used = {"en": set[int](), "th": set[int]()}
    for question in questions:
        used[question.prompt.language] |= {*question.tokens}
    rows = sorted(used["th"] - used["en"])
    hurt = replace(smollm2, weights=_Mixed(smollm2.weights, rows))
    [missed] = measure(hurt, request, smollm2).missed
    assert missed.startswith("agreement in th is 0.")
