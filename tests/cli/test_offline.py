"""Commands that need no download open no network socket, in no process, and leave no device id."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import pytest

from llama_edge.bundle.folder import Bundle
from llama_edge.bundle.signing import new_key
from tests.cli.no_network import is_supported

pytestmark = pytest.mark.skipif(
    not is_supported(), reason="the filter that ends a process is Linux's, on x86-64 and AArch64"
)

_TASK: Final = """task: rain
dataset_path: json
dataset_kwargs: {data_files: {test: rain.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ''
doc_to_target: '{{sky}}'
metric_list: [{metric: bits_per_byte}]
"""

#: Each with its exit code; in order, since some make what others read.
COMMANDS: Final[tuple[tuple[int, str], ...]] = (
    (0, "--version"),
    (0, "models"),
    (0, "targets"),
    (0, "recipes"),
    (0, "plan smollm2-135m"),
    (0, "quantize model --recipe w4a8-rtn --out quantized"),
    (0, "export model --target onnx --recipe w4a8-rtn --max-context 512 --out onnx"),
    (0, "export model --target android --recipe w4a8-rtn --max-context 512 --out android"),
    (0, "export model --target ios --recipe w4a8-rtn --max-context 512 --out ios"),
    (0, "sign onnx --key key"),
    (0, "verify onnx --public-key key.pub"),
    (0, "doctor onnx --public-key key.pub"),
    (0, "doctor ios"),
    (0, "doctor model"),
    (0, "run onnx hi --max-new-tokens 2"),
    (0, "run android hi --max-new-tokens 2"),
    (0, "run ios hi --max-new-tokens 2"),
    (0, "serve onnx --stdio"),
    (0, "eval onnx model --text text.txt --window 16 --tasks rain.yaml"),
    (0, "bench onnx --new-tokens 1 --prompt-tokens 2 --repeats 1"),
    (0, "parity onnx --against model"),
    (0, "inspect android"),
    (0, "compare onnx android ios"),
    (0, "diff onnx android"),
    (0, "bisect onnx --against model --out bisected"),
    (0, "report onnx --out page.html"),
    (4, "push android"),
)


@pytest.fixture
def place(debug_folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(debug_folder, tmp_path / "model")
    (tmp_path / "home").mkdir()
    (tmp_path / "text.txt").write_text("the rain in Spain stays mainly in the plain " * 8)
    (tmp_path / "rain.jsonl").write_text('{"sky": "It rains"}\n{"sky": "It snows"}\n')
    (tmp_path / "rain.yaml").write_text(_TASK)
    new_key(tmp_path / "key")
    return tmp_path


#: What a user's environment does not have. With any but the first three, onnxruntime takes the
#: machine for a build server and sends nothing, so the tests would pass on it whatever we do.
_DROPPED: Final = frozenset(
    [
        "ORT_DISABLE_TELEMETRY",
        "XDG_CACHE_HOME",
        "HF_HUB_OFFLINE",
        "ORT_RUNNING_UNIT_TESTS",
        "CI",
        "TF_BUILD",
        "GITHUB_ACTIONS",
        "GITLAB_CI",
        "CIRCLECI",
        "TRAVIS",
        "JENKINS_URL",
        "CODEBUILD_BUILD_ID",
        "BUILDKITE",
        "TEAMCITY_VERSION",
        "APPVEYOR",
        "BITBUCKET_BUILD_NUMBER",
    ]
)


def environment(place: Path) -> dict[str, str]:
    """The user's, with a home of its own, no adb, and nothing that a test has switched off."""
    root = Path(__file__).parents[2]
    kept = {name: value for name, value in os.environ.items() if name not in _DROPPED}
    return {
        **kept,
        "HOME": str(place / "home"),
        "LLAMA_EDGE_CACHE": str(place / "cache"),
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(root),
    }


def without_network(place: Path, commands: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.cli.no_network"],
        input=json.dumps([command.split() for command in commands]),
        capture_output=True,
        text=True,
        check=False,
        cwd=place,
        env=environment(place),
    )


def test_no_command_opens_a_network_socket(place: Path) -> None:
    done = without_network(place, [command for _, command in COMMANDS])
    codes = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"command"')]
    found = [(entry["code"], " ".join(entry["command"])) for entry in codes]
    assert found == list(COMMANDS), done.stderr[-4000:]
    assert done.returncode == 0
    written = [path.relative_to(place / "home") for path in (place / "home").rglob("*")]
    assert [path for path in written if "onnxruntime" in str(path)] == []


@pytest.mark.parametrize(
    "program",
    [
        "import socket; socket.socket(socket.AF_INET)",
        "import socket; socket.getaddrinfo('example.org', 80)",
        "import subprocess, sys; sys.exit(-subprocess.call("
        "[sys.executable, '-c', 'import socket; socket.socket(socket.AF_INET6)']))",
    ],
)
def test_a_socket_would_be_seen(place: Path, program: str) -> None:
    start = "from tests.cli.no_network import forbid_network; forbid_network()\n"
    done = subprocess.run(
        [sys.executable, "-c", start + program], check=False, env=environment(place), cwd=place
    )
    assert signal.SIGSYS in (done.returncode, -done.returncode)


def test_telemetry_would_be_seen(place: Path, debug_bundles: Mapping[str, Bundle]) -> None:
    """What onnxruntime does where it is loaded without us; one day it may not any more."""
    program = "import sys, onnxruntime; onnxruntime.InferenceSession(sys.argv[1])"
    model = debug_bundles["onnx"].root / "model.onnx"
    subprocess.run(
        [sys.executable, "-c", program, model], check=True, env=environment(place), cwd=place
    )
    assert [path for path in (place / "home").rglob("*") if "onnxruntime" in str(path)]
