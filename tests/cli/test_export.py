import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llama_edge.core.checkpoint import Checkpoint
from llama_edge.formats.quantized_checkpoint import read_quantized_checkpoint
from tests.checkpoint_writers import write_huggingface
from tests.cli.conftest import Program
from tests.conftest import DEBUG_CONFIG, MemoryWeights
from tests.suites.tiny import write_tiny


@pytest.mark.executorch
@pytest.mark.parametrize("command", [["quantize"], ["export", "--target", "android"]])
@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--recipe", "w4a8-rtn", "--device", "cuda"], 2, "w4a8-rtn does not calibrate"),
        (["--recipe", "w4a8-spinquant", "--device", "tpu"], 2, "'tpu' is not one of"),
        pytest.param(
            ["--recipe", "w4a8-spinquant", "--device", "cuda"],
            4,
            "PyTorch finds no CUDA device on this machine",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="needs to lack a GPU"),
        ),
    ],
)
def test_a_device_that_cannot_be_used(
    program: Program,
    command: list[str],
    options: list[str],
    code: int,
    message: str,
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    result = program(*command, "smollm2-135m", *options, "--out", out)
    assert result.code == code
    assert message in " ".join(result.err.replace("│", " ").split())
    assert not out.exists()


@pytest.mark.onnx
@pytest.mark.parametrize("command", [["quantize"], ["export", "--target", "onnx"]])
@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--recipe", "w5"], 2, "recipe 'w5' is unknown; choose from: w4a8-rtn"),
        (["--recipe", "w5"], 2, "or give the path of a recipe file, which ends in .json"),
        (["--recipe", "absent.json"], 3, "absent.json: the file is missing"),
        (["--recipe", "WRONG"], 3, "wrong.json: group_size is 33; needed: an even integer"),
        (["--recipe", "w4a8-rtn", "--seed", "1"], 2, "--seed 1: recipe w4a8-rtn rounds to near"),
        (["--seed", "-1"], 2, "--seed -1: an integer from 0 to 9007199254740991 is needed"),
        (["--seed", "x"], 2, "unable to parse string as an integer"),
        (["--recipe", "w4a8-rtn", "--text-cache", "t"], 2, "rounds to nearest and reads no text"),
        (["--text-cache", "t", "--calibration", "c"], 2, "--text-cache t: keeps the text that"),
        (["--text-cache", "WRONG"], 3, "wrong.json: is no safetensors file"),
    ],
)
def test_a_recipe_seed_or_text_that_cannot_be_used(
    program: Program,
    command: list[str],
    options: list[str],
    code: int,
    message: str,
    debug_folder: Path,
    tmp_path: Path,
) -> None:
    wrong = tmp_path / "wrong.json"
    wrong.write_text('{"base": "w4a8-mixed", "name": "mine", "group_size": 33}')
    given = [str(wrong) if option == "WRONG" else option for option in options]
    context = ["--max-context", "512"] if "export" in command else []
    result = program(*command, debug_folder, *given, *context, "--out", tmp_path / "out")
    assert result.code == code
    assert message in " ".join(result.err.replace("│", " ").split())
    assert [path.name for path in tmp_path.iterdir()] == ["wrong.json"]


@pytest.mark.onnx
def test_a_bundle_of_a_recipe_of_one_s_own(
    program: Program, debug_folder: Path, tmp_path: Path
) -> None:
    """Every command that opens it takes the recipe from the manifest; the file may be gone."""
    recipe, out = tmp_path / "own.json", tmp_path / "bundle"
    recipe.write_text('{"base": "w4a8-rtn", "name": "mine", "rotations": ["R1", "R2"]}')
    options = ("--recipe", recipe, "--seed", 11)
    target = ("--target", "onnx", "--max-context", 512, "--out", out)
    made = program("export", debug_folder, *target, *options, "--json").json["manifest"]
    assert (made["recipe"]["name"], made["recipe"]["seed"]) == ("mine", 11)
    assert made["recipe"]["summary"] == "as w4a8-rtn, with other rotations"
    recipe.unlink()
    for command in ("inspect", "parity", "doctor"):
        result = program(command, out)
        assert result.code == 0, result.err
    key = tmp_path / "key"
    assert program("keygen", key).code == 0
    assert program("sign", out, "--key", key).code == 0
    assert program("verify", out, "--public-key", f"{key}.pub").code == 0
    # The manifest's recipe is a recipe file.
    recipe.write_text(json.dumps(made["recipe"]))
    again = program("quantize", debug_folder, *options, "--out", tmp_path / "q", "--json").json
    assert again["recipe"] == made["recipe"]


def test_a_text_is_kept_and_used(
    program: Program, debug_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    config = replace(DEBUG_CONFIG, max_position_embeddings=48)
    weights = MemoryWeights(config).tensors
    model = write_huggingface(tmp_path / "model", config, weights, debug_checkpoint.text)
    text = tmp_path / "text"
    options = ("--recipe", "w4a8-gptq", "--seed", 4, "--text-cache", text)
    for place in ("first", "second"):
        result = program("quantize", model, *options, "--out", tmp_path / place)
        assert result.code == 0, result.err
    found = read_quantized_checkpoint(tmp_path / "second")
    digest = hashlib.sha256(text.read_bytes()).hexdigest()
    assert found.recipe.seed == 4
    assert found.calibration is not None
    assert found.calibration.origin.startswith(
        f"text cache with SHA-256 {digest}: self-generated, seed 4, by model "
    )
    result = program("quantize", model, *options[:2], *options[4:], "--out", tmp_path / "third")
    assert result.code == 3
    assert "was written with seed 4, and the recipe's is 0; give --seed 4" in result.err


@pytest.mark.onnx
def test_a_suite_that_is_missed_fails_the_export(
    program: Program, debug_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    options = ("--target", "onnx", "--recipe", "w4a8-rtn", "--max-context", 512, "--out", out)
    suite = ("--suite", write_tiny(tmp_path), "--per-task", 1, "--require", "checks=0.9")
    result = program("export", debug_folder, *options, *suite)
    assert result.code == 1
    assert "suite tiny: checks in all prompts is 0.5000; at least 0.9 is required" in result.err
    assert (tmp_path / "bundle.failed" / "suite.json").is_file()
    assert not out.exists()
