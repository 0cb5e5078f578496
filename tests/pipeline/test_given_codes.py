"""Meta's own codes through the whole pipeline: kept to the bit, their cost in bfloat16 measured."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from llama_edge.bundle.examine import examine
from llama_edge.bundle.folder import Bundle, open_bundle
from llama_edge.bundle.full_precision import load_full_precision
from llama_edge.bundle.manifest import Verdict
from llama_edge.cli.app import app
from llama_edge.core.checkpoint import OWN_CODES, Checkpoint
from llama_edge.core.errors import ArtifactError, CheckFailedError, CheckpointError, UsageError
from llama_edge.core.packing import QuantizedTensor
from llama_edge.core.progress import SilentProgress
from llama_edge.core.text_assets import TextAssets
from llama_edge.debug.inspect import inspect
from llama_edge.formats.quantized_checkpoint import read_quantized_checkpoint
from llama_edge.gate.check_bundle import check_bundle
from llama_edge.models.weight_names import EMBEDDING, LM_HEAD, block_weight
from llama_edge.pipeline.export import export_model
from llama_edge.pipeline.given_codes import measure_scale_rounding, open_model
from llama_edge.pipeline.quantize import QuantizeRequest, quantize_model
from llama_edge.quantize import DEFAULT_RECIPE
from tests.checkpoint_writers import in_their_layout, random_weights, write_huggingface
from tests.conftest import debug_request, debug_text
from tests.meta_quantized_writer import META_CONFIG, meta_int4_state, write_meta_int4

pytestmark = [pytest.mark.executorch, pytest.mark.onnx]

W2 = "layers.0.feed_forward.w2"
SPINQUANT = "w4a8-meta-spinquant"


@pytest.fixture(scope="module")
def text() -> TextAssets:
    return debug_text()


@pytest.fixture(autouse=True)
def _small_tokenizer(monkeypatch: pytest.MonkeyPatch, text: TextAssets) -> None:
    """Meta's has 128256 tokens; its own way is in tests/pipeline/test_llama32_shaped.py."""
    monkeypatch.setattr("llama_edge.checkpoints.meta.read_meta_text", lambda _: text)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return meta_int4_state(META_CONFIG)


@pytest.fixture(scope="module")
def folder(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("meta") / "Llama-int4"
    return write_meta_int4(place, META_CONFIG, state, spinquant=True)


@pytest.fixture(scope="module")
def bundles(
    folder: Path, text: TextAssets, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Bundle]:
    place = tmp_path_factory.mktemp("bundles")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llama_edge.checkpoints.meta.read_meta_text", lambda _: text)
        return {
            target: export_model(
                replace(debug_request(folder, target, place / target), recipe=None),
                SilentProgress(),
            )
            for target in ("android", "onnx")
        }


def source_hashes(state: Mapping[str, Tensor]) -> dict[str, str]:
    """SHA-256 of codes as they are in the .pth; Q and K rows moved back by the tests' own table."""
    names = {EMBEDDING: "tok_embeddings", LM_HEAD: "output"}
    parts = {"o_proj": "wo", "v_proj": "wv", "q_proj": "wq", "k_proj": "wk"}
    for layer in range(META_CONFIG.num_hidden_layers):
        names[block_weight(layer, "mlp.down_proj")] = f"layers.{layer}.feed_forward.w2"
        for ours, theirs in parts.items():
            names[block_weight(layer, f"self_attn.{ours}")] = f"layers.{layer}.attention.{theirs}"
    hashes = {}
    for name, theirs in names.items():
        codes = state[f"{theirs}.weight"]
        # The writer's own table says where each row went; its inverse brings it back.
        moved = in_their_layout(META_CONFIG, name, torch.arange(len(codes))[:, None])[:, 0]
        codes = codes[moved.argsort()]
        hashes[name] = hashlib.sha256(codes.contiguous().numpy().tobytes()).hexdigest()
    return hashes


@pytest.mark.parametrize("target", ["android", "onnx"])
def test_every_backend_holds_the_codes_of_the_pth(
    target: str, bundles: Mapping[str, Bundle], state: dict[str, Tensor], folder: Path
) -> None:
    manifest = bundles[target].manifest
    assert manifest.verdict is Verdict.PASSED
    assert manifest.parity["passed"] is True
    found = {entry.name: entry.codes_sha256 for entry in manifest.tensors}
    expected = source_hashes(state)
    assert len(expected) == 2 + 2 * 5
    assert {name: found[name] for name in expected} == expected
    # Gate and up too: `inspect` reads the same hashes out of the source and out of the file.
    source, written = (inspect(path, SilentProgress()) for path in (folder, bundles[target].root))
    assert source.tensors == written.tensors == manifest.tensors
    assert source.kind == f"checkpoint with codes ({SPINQUANT})"


@pytest.mark.parametrize("target", ["android", "onnx"])
def test_the_bundle_says_what_it_was_measured_against(
    target: str, bundles: Mapping[str, Bundle]
) -> None:
    assert examine(bundles[target].root, None, SilentProgress()).findings == ()
    manifest = open_bundle(bundles[target].root).manifest
    assert manifest.recipe.name == SPINQUANT
    assert manifest.model.config.down_proj_rotation == (16, 16)
    assert manifest.calibration is None
    assert manifest.fidelity is not None
    assert manifest.fidelity["against"] == OWN_CODES
    assert 0 < manifest.fidelity["mean_kl"] < manifest.fidelity["limit_kl"]
    rounding = manifest.scale_rounding
    assert rounding is not None
    assert rounding.raised == 0
    assert 0.9 < rounding.rounded / rounding.scales <= 1
    assert 2**-11 < rounding.rms_relative_error < rounding.max_relative_error <= 2**-8
    assert 0 < rounding.mean_kl < 1e-3
    parity = json.loads((bundles[target].root / "parity.json").read_text())
    assert parity["fidelity"]["against"] == OWN_CODES


def test_it_is_held_against_its_checkpoint_or_the_unquantized_release(
    bundles: Mapping[str, Bundle], folder: Path, text: TextAssets, tmp_path: Path
) -> None:
    bundle = bundles["onnx"]
    outcome = check_bundle(bundle.root, str(folder), SilentProgress())
    assert outcome.passed
    assert outcome.fidelity_summary() == bundle.manifest.fidelity
    tied = replace(META_CONFIG, tie_word_embeddings=True)
    release = write_huggingface(tmp_path / "hf", tied, random_weights(tied), text)
    found = load_full_precision(bundle.manifest, str(release))
    assert found is not None
    assert (found.config, found.precision) == (tied, "full precision")
    other = replace(tied, rope_theta=10000.0)
    stranger = write_huggingface(tmp_path / "other", other, random_weights(other), text)
    with pytest.raises(CheckpointError, match="give the model that the bundle was exported from"):
        load_full_precision(bundle.manifest, str(stranger))


def test_quantize_keeps_codes_and_prints_the_cost(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "q"
    arguments = ["quantize", str(folder), "--out", str(out), "--recipe", SPINQUANT]
    printed = CliRunner().invoke(app, arguments)
    assert printed.exit_code == 0
    assert "rounded to bfloat16; relative error" in " ".join(printed.stdout.split())
    found = read_quantized_checkpoint(out)
    assert found.recipe.name == SPINQUANT
    assert found.scale_rounding is not None
    again = CliRunner().invoke(app, [*arguments, "--force", "--json"])
    assert json.loads(again.stdout)["scale_rounding"] == found.scale_rounding.to_json()
    assert inspect(out, SilentProgress()).tensors == inspect(folder, SilentProgress()).tensors


def test_a_lost_code_is_found_before_anything_is_put_in_place(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = tmp_path / "q"
    write = "llama_edge.pipeline.given_codes.QuantizedEntry"

    def one_code_off(name: str, value: QuantizedTensor | Tensor) -> object:
        from llama_edge.formats.quantized_checkpoint import QuantizedEntry

        if name == block_weight(1, "mlp.up_proj") and isinstance(value, QuantizedTensor):
            value.codes[3, 4] ^= 1
        return QuantizedEntry(name, value)

    monkeypatch.setattr(write, one_code_off)
    request = QuantizeRequest(model=str(folder), out=hidden)
    with pytest.raises(CheckFailedError, match=r"layers\.1\.mlp\.up_proj.*codes_sha256"):
        quantize_model(request, SilentProgress())
    assert not hidden.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": "w4a8-rtn"}, r"came with codes of its own \(w4a8-meta-spinquant\).*leave"),
        ({"recipe": "w4a8-meta-qat"}, "came with codes of its own"),
        ({"recipe": "nonsense"}, "choose from"),
        ({"calibration": (Path("x.txt"),)}, "keeps its codes and reads no text"),
    ],
)
def test_what_would_change_codes_is_refused(
    changes: dict[str, object], message: str, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    request = QuantizeRequest(model=str(folder), out=out, **changes)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=message) as caught:
        quantize_model(request, SilentProgress())
    assert caught.value.exit_code == 2
    export = replace(debug_request(folder, "onnx", out), recipe=None)
    with pytest.raises(UsageError, match=message):
        export_model(replace(export, **changes), SilentProgress())  # type: ignore[arg-type]
    assert not out.exists()


@pytest.mark.parametrize("recipe", [SPINQUANT, "w4a8-meta-qat"])
def test_weights_have_no_codes_to_keep(recipe: str, debug_folder: Path) -> None:
    with pytest.raises(UsageError, match="holds weights; choose another recipe"):
        open_model(str(debug_folder), recipe)
    assert open_model(str(debug_folder), None)[1].name == DEFAULT_RECIPE


def rounding_of(state: dict[str, Tensor], place: Path) -> tuple[Checkpoint, object]:
    checkpoint = open_model(str(write_meta_int4(place, META_CONFIG, state)), None)[0]
    assert checkpoint.codes is not None
    return checkpoint, measure_scale_rounding(checkpoint, checkpoint.codes, SilentProgress())


def test_scales_that_are_bfloat16_cost_nothing(state: dict[str, Tensor], tmp_path: Path) -> None:
    exact = {k: v.bfloat16() if k.endswith("scales") else v for k, v in state.items()}
    exact[f"{W2}.weight"] = exact[f"{W2}.weight"].clone()
    exact[f"{W2}.weight"][0, :32] = 0
    exact[f"{W2}.scales"][0, 0] = 0  # a group of zeros may have any scale
    _, found = rounding_of(exact, tmp_path / "exact")
    assert found.mean_kl == found.max_relative_error == found.rounded == found.raised == 0  # type: ignore[attr-defined]
    exact[f"{W2}.scales"][1, :4] = 1e-6  # of codes: raising it changes values
    _, found = rounding_of(exact, tmp_path / "raised")
    assert (found.raised, found.rounded) == (4, 0)  # type: ignore[attr-defined]
    assert found.mean_kl > 0  # type: ignore[attr-defined]


def test_coarser_scales_cost_more(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The measurement sees what it is there for: scales off by 5 % are not taken for rounding."""
    checkpoint = open_model(str(folder), None)[0]
    codes = checkpoint.codes
    assert codes is not None
    right = measure_scale_rounding(checkpoint, codes, SilentProgress())
    quantized = codes.quantized
    monkeypatch.setattr(
        type(codes),
        "quantized",
        lambda _, name: replace(quantized(name), scales=quantized(name).scales * 1.05),
    )
    wrong = measure_scale_rounding(checkpoint, codes, SilentProgress())
    assert wrong.max_relative_error > 0.04
    assert wrong.mean_kl > 20 * right.mean_kl


def test_merged_adapter_go_the_ordinary_way_and_say_so(tmp_path: Path) -> None:
    state = meta_int4_state(META_CONFIG, lora=True)
    folder = write_meta_int4(tmp_path / "meta", META_CONFIG, state, lora=True)
    bundle = export_model(debug_request(folder, "onnx", tmp_path / "bundle"), SilentProgress())
    manifest = open_bundle(bundle.root).manifest
    assert manifest.recipe.name == "w4a8-rtn"  # the request's; the checkpoint does not choose it
    assert manifest.model.note is not None
    assert manifest.model.note.startswith("LoRA adapters (rank 4, scale 2) merged")
    assert manifest.scale_rounding is None
    assert manifest.fidelity is not None
    assert manifest.fidelity["against"] == "full precision"
    with pytest.raises(ArtifactError, match="whose adapters must be merged"):
        inspect(folder, SilentProgress())
