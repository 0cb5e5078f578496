from pathlib import Path

import pytest
import torch

from tests.cli.conftest import Program
from tests.suites.tiny import write_tiny


@pytest.mark.executorch
@pytest.mark.parametrize("command", [["quantize"], ["export", "--target", "android"]])
@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--recipe", "w4a8-rtn", "--device", "cuda"], 2, "w4a8-rtn learns nothing"),
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
