import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from llama_edge.backends import TARGETS as ALL_TARGETS
from llama_edge.backends.base import LowerOptions
from llama_edge.bundle.folder import Bundle, open_bundle, read_manifest
from llama_edge.bundle.manifest import Verdict
from llama_edge.core.artifact import Artifact
from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.errors import (
    CheckFailedError,
    ConfigError,
    LlamaEdgeError,
    OutputError,
    QuantizeError,
    TokenizerError,
    UnknownNameError,
    UsageError,
)
from llama_edge.core.model_config import ModelConfig
from llama_edge.core.progress import SilentProgress
from llama_edge.core.unfinished import unfinished_folder
from llama_edge.pipeline.export import ExportRequest, export_model
from llama_edge.runtimes.child import ChildRuntime
from tests.checkpoint_writers import write_huggingface
from tests.conftest import DEBUG_CONFIG, MemoryWeights, debug_request

pytestmark = [pytest.mark.executorch, pytest.mark.onnx]

TARGETS = ("android", "onnx")


@pytest.mark.parametrize("target", TARGETS)
def test_bundle_is_whole_and_says_what_it_is(
    debug_bundles: Mapping[str, Bundle], target: str
) -> None:
    bundle = open_bundle(debug_bundles[target].root)
    manifest = bundle.manifest
    assert manifest.verdict is Verdict.PASSED
    assert manifest.model.source == "tiny-llama"
    assert manifest.parity["passed"] is True
    assert manifest.fidelity is not None
    assert manifest.text.eos_token_ids == (0, 2)
    assert len(manifest.text.golden_chats) == 2
    assert manifest.placement.linears == manifest.placement.linears_delegated
    assert {entry.path for entry in manifest.files} >= {"tokenizer.json", "parity.json"}


@pytest.mark.parametrize("target", TARGETS)
def test_manifest_names_no_place_and_no_time(
    debug_bundles: Mapping[str, Bundle], target: str
) -> None:
    root = debug_bundles[target].root
    for name in ("manifest.json", "parity.json"):
        text = (root / name).read_text()
        assert str(root.parent) not in text
        assert "/tmp" not in text
        assert str(Path.home()) not in text


def test_codes_are_the_same_in_both_bundles(debug_bundles: Mapping[str, Bundle]) -> None:
    android, onnx = debug_bundles["android"].manifest, debug_bundles["onnx"].manifest
    assert android.tensors == onnx.tensors
    assert android.model.source_sha256 == onnx.model.source_sha256


@pytest.mark.parametrize("target", TARGETS)
def test_same_input_gives_the_same_bytes(
    debug_bundles: Mapping[str, Bundle], debug_folder: Path, tmp_path: Path, target: str
) -> None:
    first = debug_bundles[target].root
    again = export_model(
        debug_request(debug_folder, target, tmp_path / "again"), SilentProgress()
    ).root
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in again.iterdir())
    for name in names:
        assert (first / name).read_bytes() == (again / name).read_bytes(), name


def test_an_existing_output_needs_force(debug_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    out.mkdir()
    (out / "precious").write_text("mine")
    with pytest.raises(OutputError, match="--force"):
        export_model(debug_request(debug_folder, "onnx", out), SilentProgress())
    assert (out / "precious").read_text() == "mine"
    with pytest.raises(OutputError, match="holds precious, which llama-edge did not write"):
        export_model(debug_request(debug_folder, "onnx", out, force=True), SilentProgress())
    assert (out / "precious").read_text() == "mine"
    (out / "precious").unlink()
    for _ in ("the empty folder", "the bundle"):
        request = debug_request(debug_folder, "onnx", out, force=True)
        assert export_model(request, SilentProgress()) == open_bundle(out)


def test_a_failed_gate_puts_nothing_in_place(
    debug_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = ChildRuntime.trace

    def one_layer_off(
        self: ChildRuntime, artifact: Artifact, calls: Sequence[Sequence[int]]
    ) -> object:
        found = trace(self, artifact, calls)
        attention = (found.attention[0] * 1.05, *found.attention[1:])
        return replace(found, attention=attention)

    monkeypatch.setattr(ChildRuntime, "trace", one_layer_off)
    out = tmp_path / "bundle"
    with pytest.raises(CheckFailedError, match=r"blocks: layers\.0\.attention"):
        export_model(debug_request(debug_folder, "onnx", out), SilentProgress())
    assert [path.name for path in tmp_path.iterdir()] == ["bundle.failed"]
    kept = open_bundle(tmp_path / "bundle.failed")
    with pytest.raises(CheckFailedError, match=r"blocks: layers\.0\.attention"):
        export_model(debug_request(debug_folder, "onnx", out), SilentProgress())  # replaces it
    assert [path.name for path in tmp_path.iterdir()] == ["bundle.failed"]
    assert kept.manifest.verdict is Verdict.FAILED
    assert kept.manifest.parity["passed"] is False
    assert json.loads((kept.root / "parity.json").read_text())["passed"] is False


def test_a_runtime_that_dies_is_a_failed_gate(
    debug_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(self: ChildRuntime, artifact: Artifact, calls: Sequence[Sequence[int]]) -> object:
        raise CheckFailedError("the runtime was killed by SIGSEGV")

    monkeypatch.setattr(ChildRuntime, "trace", die)
    with pytest.raises(CheckFailedError, match="SIGSEGV"):
        export_model(debug_request(debug_folder, "onnx", tmp_path / "bundle"), SilentProgress())
    manifest = read_manifest(tmp_path / "bundle.failed").manifest
    assert manifest.parity == {"passed": False, "reason": "the runtime was killed by SIGSEGV"}


def test_a_full_disk_is_found_before_the_work(
    debug_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OutputError, match="free some space"):
        export_model(debug_request(debug_folder, "onnx", tmp_path / "bundle"), SilentProgress())
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read for hashing, calibrated or quantized."""

    def work(*_: object) -> None:
        raise AssertionError("work was begun")

    monkeypatch.setattr("llama_edge.pipeline.export.quantize_with_cache", work)
    monkeypatch.setattr("llama_edge.pipeline.export.hash_weights", work)
    monkeypatch.setattr("llama_edge.pipeline.quantized.hash_weights", work)


@pytest.mark.parametrize("target", ALL_TARGETS)
def test_a_context_too_small_for_the_gate_is_refused_before_any_work(
    debug_folder: Path, tmp_path: Path, no_work: None, target: str
) -> None:
    request = replace(
        debug_request(debug_folder, target, tmp_path / "bundle"),
        options=LowerOptions(max_context=40),
    )
    with pytest.raises(ConfigError, match=r"max_context is 40; .*--max-context \d+ or more") as no:
        export_model(request, SilentProgress())
    assert no.value.exit_code == 3
    assert list(tmp_path.iterdir()) == []
    enough = int(str(no.value).rpartition("--max-context ")[2].split()[0])
    with pytest.raises(AssertionError, match="work was begun"):
        export_model(replace(request, options=LowerOptions(max_context=enough)), SilentProgress())


@pytest.mark.parametrize(
    ("recipe", "config", "error", "message"),
    [
        (
            "w4a8-gptq",
            replace(DEBUG_CONFIG, intermediate_size=176),
            QuantizeError,
            "176 is not divisible by group_si",
        ),
        (
            "w4a8-hadamard",
            replace(DEBUG_CONFIG, hidden_size=92),
            ConfigError,
            "no Hadamard matrix of order 92",
        ),
    ],
)
def test_a_width_that_does_not_fit_is_refused_before_any_work(
    debug_checkpoint: Checkpoint,
    tmp_path: Path,
    no_work: None,
    recipe: str,
    config: ModelConfig,
    error: type[LlamaEdgeError],
    message: str,
) -> None:
    weights = MemoryWeights(config).tensors
    model = write_huggingface(tmp_path / "m", config, weights, debug_checkpoint.text)
    request = replace(debug_request(model, "onnx", tmp_path / "bundle"), recipe=recipe)
    with pytest.raises(error, match=message):
        export_model(request, SilentProgress())
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_file_in_the_way_of_a_refused_bundle_is_told_before_any_work(
    debug_folder: Path, tmp_path: Path, no_work: None
) -> None:
    failed = tmp_path / "bundle.failed"
    failed.write_text("notes")
    request = debug_request(debug_folder, "onnx", tmp_path / "bundle", force=True)
    with pytest.raises(
        OutputError, match=r"bundle\.failed: is a file, .* refuses would be put there"
    ):
        export_model(request, SilentProgress())
    assert failed.read_text() == "notes"
    failed.unlink()
    failed.mkdir()
    (failed / "thesis.tex").write_text("mine")
    with pytest.raises(OutputError, match=r"bundle\.failed: holds thesis\.tex"):
        export_model(request, SilentProgress())
    assert (failed / "thesis.tex").read_text() == "mine"


def test_a_damaged_chat_template_is_refused_before_any_work(
    debug_folder: Path, tmp_path: Path, no_work: None
) -> None:
    model = shutil.copytree(debug_folder, tmp_path / "model")
    (model / "chat_template.jinja").write_text("{{ messages[0].nothing.nothing }}")
    with pytest.raises(TokenizerError, match="the chat template failed"):
        export_model(debug_request(model, "onnx", tmp_path / "bundle"), SilentProgress())


def test_calibration_text_and_the_cache_are_looked_at_before_any_work(
    debug_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_: object) -> None:
        raise AssertionError("work was begun")

    monkeypatch.setattr("llama_edge.pipeline.quantized.hash_weights", work)
    request = replace(debug_request(debug_folder, "onnx", tmp_path / "b"), recipe="w4a8-gptq")
    (tmp_path / "short").write_text("No.")
    for name, message in (("none", "the file is missing"), ("short", "tokens of calibration te")):
        own = replace(request, calibration=(tmp_path / name,))
        with pytest.raises(QuantizeError, match=message):
            export_model(own, SilentProgress())
    monkeypatch.setenv("LLAMA_EDGE_CACHE", str(tmp_path / "short"))
    with pytest.raises(OutputError, match="set LLAMA_EDGE_CACHE to a folder that can be"):
        export_model(request, SilentProgress())
    monkeypatch.setenv("LLAMA_EDGE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(AssertionError, match="work was begun"):
        export_model(request, SilentProgress())


def test_space_that_a_killed_run_holds_is_not_needed_again(
    debug_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = debug_request(debug_folder, "onnx", tmp_path / "bundle")
    usage = shutil.disk_usage(tmp_path)._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OutputError, match="free some space"):
        export_model(request, SilentProgress())
    left = tmp_path / ".bundle.unfinished"
    with pytest.raises(KeyboardInterrupt), unfinished_folder(left, keep=True):
        for name in ("output", "quantized"):
            (left / name).mkdir()
        (left / "quantized" / "model.safetensors").write_bytes(bytes(10**6))
        raise KeyboardInterrupt

    def begun(*_: object, **__: object) -> None:
        raise AssertionError("work was begun")

    monkeypatch.setattr("llama_edge.pipeline.export.Stages", begun)
    with pytest.raises(AssertionError, match="work was begun"):
        export_model(request, SilentProgress())


def test_unknown_names_list_the_choices(debug_folder: Path, tmp_path: Path) -> None:
    request = debug_request(debug_folder, "onnx", tmp_path / "b")
    for wrong in (replace(request, target="nonsense"), replace(request, recipe="nonsense")):
        with pytest.raises(UnknownNameError, match="choose from"):
            export_model(wrong, SilentProgress())


def test_an_option_of_another_backend_is_refused(debug_folder: Path, tmp_path: Path) -> None:
    request = ExportRequest(
        model=str(debug_folder),
        target="android",
        out=tmp_path / "bundle",
        options=LowerOptions(accuracy_level=4),
    )
    with pytest.raises(UsageError, match="accuracy-level"):
        export_model(request, SilentProgress())
    assert list(tmp_path.iterdir()) == []
