"""`--adapter`: from a folder that PEFT saved to a bundle that passed the gate."""

import json
from pathlib import Path

import pytest

from llama_edge.checkpoints import load_checkpoint
from llama_edge.core.errors import CheckpointError
from llama_edge.pipeline.quantize import short_name, source_name
from llama_edge.quantize.stage import hash_weights
from tests.checkpoints.test_adapters import KINDS, peft_model, save
from tests.cli.conftest import Program

QUICK = ("--recipe", "w4a8-rtn", "--json")


@pytest.mark.onnx
def test_the_bundle_is_of_the_merged_model(
    program: Program, debug_folder: Path, tmp_path: Path
) -> None:
    adapter = save(peft_model(debug_folder, **KINDS["all"]), tmp_path / "lora")
    out = tmp_path / "bundle"
    result = program(
        *("export", debug_folder, "--adapter", adapter, "--target", "onnx", "--out", out, *QUICK)
    )
    assert result.code == 0, result.err
    model = result.json["manifest"]["model"]
    assert model["source"] == "tiny-llama+lora"
    assert model["note"] == "with the adapter lora"
    assert program("parity", out, "--against", f"{debug_folder}+{adapter}").code == 0
    merged, plain = (
        hash_weights(load_checkpoint(name).weights)
        for name in (f"{debug_folder}+{adapter}", str(debug_folder))
    )
    assert model["source_sha256"] == merged != plain


def test_an_adapter_of_another_model_is_refused_before_any_work(
    program: Program, debug_folder: Path, tmp_path: Path
) -> None:
    adapter = save(peft_model(debug_folder, **KINDS["all"]), tmp_path / "lora")
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "r": 9, "use_dora": True}))
    out = tmp_path / "out"
    result = program("quantize", debug_folder, "--adapter", adapter, "--out", out, *QUICK)
    assert (result.code, "use_dora is true" in result.err) == (3, True)
    assert not out.exists()
    result = program("plan", debug_folder, "--adapter", tmp_path / "none")
    assert (result.code, "there is no such folder" in result.err) == (3, True)


def test_a_revision_is_the_models(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(model: str, **_: object) -> Path:
        raise CheckpointError(f"asked for {model}")

    monkeypatch.setattr("llama_edge.checkpoints.hub.download", refuse)
    result = program("quantize", "a/b", "--revision", "v1", "--adapter", "lora")
    assert "asked for a/b@v1" in result.err
    result = program("diff", "a/b+lora", "smollm2-135m", "--revision", "v1")
    assert "asked for a/b@v1" in result.err


def test_names_of_folders(tmp_path: Path) -> None:
    for name in ("model", "one", "two"):
        (tmp_path / name).mkdir()
    model = f"{tmp_path / 'model'}+{tmp_path / 'one'}+{tmp_path / 'two'}"
    assert source_name(model) == "model+one+two"
    assert short_name(model) == "model-one-two"
    assert short_name(f"a/b:Q4@main+{tmp_path / 'one'}+c/d") == "b-Q4-main-one-d"
    assert source_name(f"a/b+{tmp_path / 'one'}+c/d") == "a/b+one+c/d"
