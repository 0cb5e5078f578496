import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.conftest import Program

COMMANDS = (
    *("export", "quantize", "parity", "run", "eval", "inspect", "compare"),
    *("models", "targets", "recipes"),
)


def test_every_command_documents_json_and_help(program: Program) -> None:
    listed = program("--help").out
    for command in COMMANDS:
        assert command in listed
        help_text = program(command, "--help").out
        assert "--json" in help_text, command


@pytest.mark.onnx
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["export", "smollm2-135m", "--target", "toaster"], 2, "choose from: android, ios, onnx"),
        (["quantize", "smollm2-135m", "--recipe", "w1"], 2, "choose from: w4a8-rtn"),
        (["export", "smollm2-135m"], 2, "--target"),
        (
            ["export", "smollm2-135m", "--target", "onnx", "--kv-cache", "int8"],
            2,
            "belongs to another target",
        ),
        (["export", "smollm2-135m", "--target", "android", "--kv-cache", "int4"], 2, "'int4'"),
        (["export", "nowhere/at-all.gguf", "--target", "onnx"], 3, "nowhere/at-all.gguf"),
        (["fly"], 2, "fly"),
        (["inspect", "nowhere"], 3, "nowhere: there is no such file"),
        (["parity", "nowhere"], 3, "not a llama-edge bundle"),
        (["compare", "nowhere"], 3, "not a llama-edge bundle"),
        (["run", "nowhere", "hello"], 3, "not a llama-edge bundle"),
        (["run", "nowhere", "hello", "--temperature", "-1"], 2, "temperature is -1"),
        (["run", "nowhere", "hello", "--max-new-tokens", "0"], 2, "max_new_tokens is 0"),
    ],
)
def test_errors_have_a_code_a_message_and_leave_nothing(
    program: Program,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = program(*arguments)
    assert (result.code, result.out) == (code, "")
    assert message in result.err.replace("\n", " ")
    as_json = program(*arguments, "--json")
    assert as_json.code == code
    assert as_json.json["error"]["exit_code"] == code
    assert list(tmp_path.iterdir()) == []


def test_a_backend_that_is_not_installed_is_named_with_the_remedy(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "llama_edge.backends.onnx.exporter", None)
    result = program("export", "smollm2-135m", "--target", "onnx")
    assert result.code == 4
    assert "pip install" in result.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    arguments = ["export", "smollm2-135m", "--target", "onnx", "--recipe", "w4a8-rtn"]
    arguments += ["--out", "bundles/it", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-c", "from llama_edge.cli import main; main()", *arguments],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("bundles/.it*/**/weights.safetensors")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "interrupted" in err
    assert "Traceback" not in err
    assert json.loads(out)["error"]["exit_code"] == 130
    assert list(tmp_path.iterdir()) == []
