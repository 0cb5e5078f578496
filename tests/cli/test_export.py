from pathlib import Path

import pytest
import torch

from tests.cli.conftest import Program


@pytest.mark.executorch
@pytest.mark.parametrize("command", [["quantize"], ["export", "--target", "android"]])
@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--recipe", "w4a8-rtn", "--device", "cuda"], 2, "w4a8-rtn learns no rotations"),
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
