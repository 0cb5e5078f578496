"""The ios target, the whole way; and faults in really written packages that the gate must catch."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb  # noqa: N813
from coremltools.converters.mil.mil import Var
from torch import Tensor

from llama_edge.backends import get_exporter
from llama_edge.backends.base import LowerOptions
from llama_edge.backends.coreml.graph import Cache, Call, Graph
from llama_edge.bundle.examine import examine
from llama_edge.bundle.folder import Bundle
from llama_edge.bundle.manifest import Verdict
from llama_edge.core.artifact import KVCacheDtype, PrefillLengths
from llama_edge.core.errors import CheckFailedError, MissingComponentError, UsageError
from llama_edge.core.model_config import ModelConfig
from llama_edge.core.progress import SilentProgress
from llama_edge.core.quantized import QuantizedCheckpoint
from llama_edge.debug.inspect import inspect
from llama_edge.evaluate.evaluate import evaluate
from llama_edge.evaluate.report import EvalRequest
from llama_edge.gate.check_bundle import check_bundle
from llama_edge.gate.prompts import PromptPlan
from llama_edge.gate.tolerances import Tolerances
from llama_edge.generate.assistant import AnswerConfig
from llama_edge.generate.run import PromptRequest, Run
from llama_edge.models import rope
from llama_edge.models.reference import Reference
from llama_edge.models.sources import DequantizedSource
from llama_edge.pipeline.export import export_model
from llama_edge.runtimes import get_runtime
from tests.conftest import debug_request
from tests.gate.test_planted_faults import (
    Fault,
    FaultyExporter,
    interleaved_queries,
    larger_scale,
    swapped_nibbles,
)

#: Enough to find a planted fault, in a quarter of the time.
ONE_PROMPT = PromptPlan(gate=1, fidelity=1)

Export = Callable[..., str]


@pytest.fixture(scope="module")
def fixed_bundle(debug_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Two functions of fixed sizes."""
    out = tmp_path_factory.mktemp("ios") / "fixed"
    options = LowerOptions(max_context=512, prefill=PrefillLengths.FIXED)
    request = replace(debug_request(debug_folder, "ios", out), options=options)
    return export_model(request, SilentProgress())


@pytest.fixture(scope="module")
def bundles(debug_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """By recipe: no rotation; R1, R2, R4 and a head's rotation; the same, weight-only."""
    place = tmp_path_factory.mktemp("ios")
    return {
        recipe: export_model(
            replace(debug_request(debug_folder, "ios", place / recipe), recipe=recipe),
            SilentProgress(),
        )
        for recipe in ("w4a8-rtn", "w4-hadamard")
    }


def test_the_whole_gate_is_exact_end_to_end(bundles: dict[str, Bundle]) -> None:
    for recipe, bundle in bundles.items():
        manifest = bundle.manifest
        assert manifest.verdict is Verdict.PASSED
        assert examine(bundle.root, None, SilentProgress()).findings == ()
        assert manifest.backend == "coreml"
        assert manifest.artifact.activation_quantization == "none", "whatever the recipe"
        assert manifest.artifact.kv_cache == "float16"
        assert manifest.parity["top1_agreement"] == 1
        assert manifest.parity["mean_kl"] < Tolerances().weight_only_mean_kl
        assert manifest.model.config.head_rotation == (recipe == "w4-hadamard")
        assert manifest.files[0].path == "model.mlpackage/Manifest.json"


def test_codes_are_those_of_every_other_target(
    bundles: dict[str, Bundle], debug_bundles: dict[str, Bundle], tmp_path: Path
) -> None:
    root = bundles["w4a8-rtn"].root
    package = (root / "model.mlpackage").rename(tmp_path / "alone.mlpackage")
    found = inspect(package, SilentProgress())
    package.rename(root / "model.mlpackage")
    assert found.kind == "coreml"
    assert found.tensors == inspect(root, SilentProgress()).tensors
    for target in ("android", "onnx"):
        assert found.tensors == inspect(debug_bundles[target].root, SilentProgress()).tensors


def test_fixed_sizes_pass_the_same_gate(fixed_bundle: Bundle, bundles: dict[str, Bundle]) -> None:
    manifest = fixed_bundle.manifest
    assert manifest.verdict is Verdict.PASSED
    assert manifest.parity["top1_agreement"] == 1
    assert manifest.parity["mean_kl"] < Tolerances().weight_only_mean_kl
    assert manifest.artifact.interface.inputs[0].shape == (1, "1 or 64")
    assert manifest.tensors == bundles["w4a8-rtn"].manifest.tensors
    sizes = [one.manifest.files[2].size_bytes for one in (fixed_bundle, bundles["w4a8-rtn"])]
    assert sizes[0] == sizes[1], "no weight is stored twice"


def test_a_fault_of_the_prefill_alone_is_found(
    debug_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its mask lets the last token of a call be seen by those before it."""
    begin = Graph.begin_call

    def looks_ahead(self: Graph, tokens: Var, position: Var, tables: Any) -> Call:  # noqa: ANN401
        call = begin(self, tokens, position, tables)
        if tokens.shape[1] == 1:
            return call
        return replace(call, mask=mb.mul(x=call.mask, y=np.float16(0)))

    monkeypatch.setattr(Graph, "begin_call", looks_ahead)
    request = debug_request(debug_folder, "ios", tmp_path / "out")
    options = LowerOptions(max_context=512, prefill=PrefillLengths.FIXED)
    with pytest.raises(CheckFailedError, match=r"layers\.0\.attention \(prefill\)"):
        export_model(replace(request, options=options, prompts=ONE_PROMPT), SilentProgress())


def test_another_format_of_the_target(
    debug_folder: Path,
    debug_bundles: dict[str, Bundle],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    request = replace(debug_request(debug_folder, "ios", tmp_path), format="executorch", out=None)
    bundle = export_model(request, SilentProgress())
    assert bundle.root == Path("bundles/tiny-llama-ios-executorch")
    assert (bundle.manifest.target, bundle.manifest.backend) == ("ios", "executorch")
    assert bundle.manifest.verdict is Verdict.PASSED
    android = debug_bundles["android"].manifest
    assert bundle.manifest.files[0] == android.files[0], "the same .pte, byte for byte"


@pytest.mark.parametrize(
    ("target", "asked", "message"),
    [
        ("android", "coreml", "--format coreml: the target android is written as executorch"),
        ("ios", "onnx", "--format onnx: the target ios is written as coreml or executorch"),
    ],
)
def test_a_format_that_the_target_does_not_have(
    target: str, asked: str, message: str, debug_folder: Path, tmp_path: Path
) -> None:
    request = replace(debug_request(debug_folder, target, tmp_path / "out"), format=asked)
    with pytest.raises(UsageError, match=message):
        export_model(request, SilentProgress())


@pytest.mark.parametrize(
    ("target", "form"), [("android", None), ("ios", "executorch"), ("onnx", None)]
)
def test_prefill_lengths_are_core_mls(
    target: str, form: str | None, debug_folder: Path, tmp_path: Path
) -> None:
    options = LowerOptions(prefill=PrefillLengths.FLEXIBLE)
    request = debug_request(debug_folder, target, tmp_path / "out")
    with pytest.raises(UsageError, match="--prefill flexible belongs to Core ML"):
        export_model(replace(request, format=form, options=options), SilentProgress())


def test_a_bundle_that_travelled_passes_again(bundles: dict[str, Bundle]) -> None:
    assert check_bundle(bundles["w4-hadamard"].root, None, SilentProgress()).passed


def test_a_bundle_runs_on_the_runtime_that_is_asked_for(bundles: dict[str, Bundle]) -> None:
    root = bundles["w4a8-rtn"].root
    asked = PromptRequest(
        prompt="hello", raw=True, config=AnswerConfig(max_new_tokens=4), runtime="coreml-fp16"
    )
    answer = Run(root, asked)
    list(answer)
    assert 0 < answer.new_tokens <= 4
    with pytest.raises(UsageError, match="--runtime onnx: the artifact's backend is coreml"):
        Run(root, replace(asked, runtime="onnx"))
    with pytest.raises(MissingComponentError, match="a part of macOS"):
        list(Run(root, replace(asked, runtime="coreml-apple")))


def test_a_bundle_is_evaluated_on_the_runtime_that_is_asked_for(
    bundles: dict[str, Bundle], tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the man on the bridge began to hear the bell again " * 8)
    request = EvalRequest(
        subjects=(str(bundles["w4a8-rtn"].root),),
        texts=(text,),
        window=32,
        max_windows=2,
        runtime="coreml-fp16",
    )
    (subject,) = evaluate(request, SilentProgress()).subjects
    assert subject.runtime == "coreml-fp16"
    assert subject.results[0].metrics["perplexity"].value > 1


def test_caches_of_another_width_than_the_manifest_says_are_refused(
    bundles: dict[str, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "llama_edge.backends.coreml.reader.read_cache_dtype", lambda _: KVCacheDtype.FLOAT32
    )
    outcome = check_bundle(bundles["w4a8-rtn"].root, None, SilentProgress())
    assert not outcome.passed
    assert "kv_cache" in str(outcome.to_json())


@pytest.fixture
def export(debug_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Export:
    """Export with a planted fault; the reason why it failed."""

    def run(fault: Fault = lambda _, tensor: tensor) -> str:
        exporter = FaultyExporter(get_exporter("coreml"), fault)
        monkeypatch.setattr("llama_edge.pipeline.export.get_exporter", lambda _: exporter)
        with pytest.raises(CheckFailedError) as caught:
            request = debug_request(debug_folder, "ios", tmp_path / "out")
            export_model(replace(request, prompts=ONE_PROMPT), SilentProgress())
        assert not (tmp_path / "out").exists()
        return str(caught.value)

    return run


@pytest.mark.parametrize(
    ("fault", "place"),
    [
        (swapped_nibbles, "layers.1.mlp"),
        (larger_scale, "layers.1.mlp"),
        (interleaved_queries, "layers.1.attention"),
    ],
)
def test_wrong_weights_are_named(fault: Fault, place: str, export: Export) -> None:
    assert f"blocks: {place} (prefill and decode)" in export(fault)


def test_a_wrong_rope_theta(export: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong_tables(config: ModelConfig, start: int, length: int) -> tuple[Tensor, Tensor]:
        wrong = replace(config, rope_theta=2 * config.rope_theta)
        return rope.rope_tables(wrong, start, length)

    monkeypatch.setattr("llama_edge.backends.coreml.lower.rope_tables", wrong_tables)
    assert "blocks: layers.0.attention" in export()


def test_a_mask_that_hides_nothing(export: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llama_edge.backends.coreml.graph._MASKED", np.float16(0))
    assert "layers.0.attention" in export()


def test_a_cache_written_one_place_off_fails_in_decode_only(
    export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the second call on, every row lands one place before where it belongs."""
    write = Cache.write

    def one_off(self: Cache, layer: int, rows: Var, call: Call) -> Var:
        step = mb.minimum(x=call.start, y=np.array([1], np.int32))
        moved = replace(call, start=mb.sub(x=call.start, y=step), end=mb.sub(x=call.end, y=step))
        return write(self, layer, rows, moved)

    monkeypatch.setattr(Cache, "write", one_off)
    assert "attention (decode)" in export()


@pytest.fixture
def one_read_per_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    write = Cache.write

    def with_its_own_read(self: Cache, layer: int, rows: Var, call: Call) -> Var:
        self.live = mb.read_state(input=self.state)
        return write(self, layer, rows, call)

    monkeypatch.setattr(Cache, "write", with_its_own_read)
    # The passes may also rename values; here the gate is to find what they compute.
    monkeypatch.setattr("llama_edge.backends.coreml.lower._require_names", lambda *_: None)


@pytest.mark.usefixtures("one_read_per_layer")
def test_one_read_of_a_state_per_layer_is_right_as_built(
    debug_quantized: QuantizedCheckpoint, tmp_path: Path
) -> None:
    """The control of the next test: it is the passes that make the fault."""
    options = LowerOptions(max_context=64)
    artifact = get_exporter("coreml").lower(debug_quantized, tmp_path, options, SilentProgress())
    tokens = [(7 * place * place + 3 * place) % 256 for place in range(20)]
    with get_runtime("coreml").open(artifact) as session:
        rows = [session.prefill(tokens[:12]), *map(session.decode, tokens[12:])]
    source = DequantizedSource(debug_quantized.weights)
    network = Reference(debug_quantized.config, source)
    expected = network.logits(torch.tensor(tokens)).numpy()[11:]
    np.testing.assert_allclose(np.stack(rows), expected, atol=2e-5)


@pytest.mark.usefixtures("one_read_per_layer")
def test_a_program_that_default_passes_miscompiled_fails_in_decode_only(
    export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llama_edge.backends.coreml.lower.PASSES", ct.PassPipeline.DEFAULT)
    assert "attention (decode)" in export()
