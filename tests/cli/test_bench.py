"""`bench` from the command line: this machine's columns, and a phone that is a script."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from llama_edge.bench.phone import parse_report
from llama_edge.bundle.folder import Bundle
from tests.cli.conftest import Program

SPREADS = ("decode_tokens_per_s", "time_to_first_token_s", "prefill_tokens_per_s")
OPTIONS = ("--new-tokens", 2, "--repeats", 2, "--threads", 1)
REPORT = (
    'PyTorchObserver {"prompt_tokens":9,"generated_tokens":20,"model_load_start_ms":0,'
    '"model_load_end_ms":900,"inference_start_ms":1000,"inference_end_ms":1600,'
    '"prompt_eval_end_ms":1100,"first_token_ms":1120,"aggregate_sampling_time_ms":5,'
    '"SCALING_FACTOR_UNITS_PER_SECOND":1000}'
)
RSS = "I 00:00:01 executorch:stats.h:131] RSS after finishing text generation: 512.5 MiB (0 if not)"
#: Knows what `bench` says to adb, and writes it down; `$REPORT` is the runner's output.
FAKE_ADB = """#!/bin/sh
[ "$1" = -s ] && { [ "$2" = R5CT ] || exit 1; shift 2; }
echo "$*" >> "$ADB_LOG"
case "$1 $2" in
"devices ") printf 'List of devices attached\\n%b' "$ADB_DEVICES";;
"shell getprop"*) echo "Fake Phone 9";;
"push "*) test -f "$2" || exit 1; echo "1 file pushed";;
"shell cd"*) echo "$ADB_REPORT"; exit "${ADB_EXIT:-0}";;
esac
"""


@pytest.fixture
def adb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH on which `adb` is the script; returns the file of its calls."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "adb"
    script.write_text(FAKE_ADB)
    script.chmod(0o755)
    log = tmp_path / "adb.log"
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("ADB_LOG", str(log))
    monkeypatch.setenv("ADB_DEVICES", "R5CT\\tdevice\\n")
    monkeypatch.setenv("ADB_REPORT", f"{RSS}\n{REPORT}")
    monkeypatch.delenv("ANDROID_SERIAL", raising=False)
    return log


@pytest.fixture
def runner(tmp_path: Path) -> Path:
    path = tmp_path / "llama_main"
    path.write_text("a program for the phone")
    return path


def test_bundles_are_measured_side_by_side(
    program: Program, debug_bundles: Mapping[str, Bundle]
) -> None:
    roots = [debug_bundles[target].root for target in ("android", "onnx")]
    result = program(
        "bench", *roots, "--prompt-tokens", 4, "--prompt-tokens", 8, *OPTIONS, "--json"
    )
    assert result.code == 0, result.err
    rows = result.json["rows"]
    asked = [(row["bundle"], row["prompt_tokens"]) for row in rows]
    assert asked == [("android", 4), ("android", 8), ("onnx", 4), ("onnx", 8)]
    assert result.json["memory_bandwidth_gb_per_s"] > 0
    for row in rows:
        for name in SPREADS:
            spread = row[name]
            assert 0 < spread["lowest"] <= spread["median"] <= spread["highest"]
        assert row["rss_mib"] >= row["rss_before_load_mib"] > 1
        assert 0 < row["bandwidth_share"] < 1
        assert row["threads"] == 1
    sizes = [Path(root, "model.pte").stat().st_size for root in roots[:1]]
    assert rows[0]["file_mib"] == sizes[0] / 2**20


def test_the_table_says_what_was_not_measured(
    program: Program, debug_bundles: Mapping[str, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llama_edge.runtimes.speed.EnergyCounter.find", lambda: None)
    shown = program("bench", debug_bundles["android"].root, *OPTIONS).out
    for word in ("decode tok/s", "first token s", "prefill tok/s", "file MiB", "RSS MiB"):
        assert word in shown
    assert "threads: 1" in shown


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--repeats", 0), "--repeats is 0"),
        (("--threads", 0), "--threads is 0"),
        (("--prompt-tokens", -1), "--prompt-tokens is -1"),
        (("--prompt-tokens", 600), "its context is 512"),
        (("--runner", "x"), "add --adb"),
        (("--adb",), "needs --runner"),
    ],
)
def test_what_makes_no_sense_is_refused(
    program: Program,
    debug_bundles: Mapping[str, Bundle],
    options: tuple[object, ...],
    word: str,
) -> None:
    result = program("bench", debug_bundles["android"].root, *options)
    assert result.code == 2
    assert word in result.err


def test_a_phone_gives_the_same_columns(
    program: Program, debug_bundles: Mapping[str, Bundle], adb: Path, runner: Path
) -> None:
    root = debug_bundles["android"].root
    result = program("bench", root, "--adb", "--runner", runner, *OPTIONS, "--json")
    assert result.code == 0, result.err
    (row,) = result.json["rows"]
    assert row["runtime"] == "stock runner on Fake Phone 9"
    assert row["decode_tokens_per_s"]["median"] == 40.0
    assert row["prefill_tokens_per_s"]["median"] == 90.0
    assert row["time_to_first_token_s"]["median"] == 0.12
    assert row["rss_mib"] == 512.5
    assert row["bandwidth_share"] is None
    calls = adb.read_text().splitlines()
    assert [call.split()[0] for call in calls].count("push") == 3
    assert sum("--cpu_threads=1" in call and "--seq_len=66" in call for call in calls) == 2
    assert calls[-1].startswith("shell rm -rf /data/local/tmp/")
    shown = program("bench", root, "--adb", "--runner", runner, *OPTIONS).out
    assert "Fake Phone 9" in shown


def test_without_adb_or_phone_a_component_is_missing(
    program: Program,
    debug_bundles: Mapping[str, Bundle],
    adb: Path,
    runner: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ("bench", debug_bundles["android"].root, "--adb", "--runner", runner)
    monkeypatch.setenv("ADB_DEVICES", "R5CT\\tunauthorized\\n")
    result = program(*command)
    assert result.code == 4
    assert "R5CT is unauthorized" in result.err
    monkeypatch.setenv("ADB_DEVICES", "A\\tdevice\\nB\\tdevice\\n")
    assert program(*command).code == 2
    assert "push" not in adb.read_text()
    monkeypatch.setenv("PATH", str(shutil.which("sh") or "")[:-3])
    shutil.rmtree(adb.parent / "bin")
    result = program(*command)
    assert result.code == 4
    assert "adb is not on the PATH" in result.err
    absent = runner.with_name("absent")
    assert program(*command[:-1], absent).code == 4


@pytest.mark.parametrize("output", ["Segmentation fault", 'PyTorchObserver {"prompt_tokens":1}'])
def test_a_runner_without_a_report_is_an_error(
    program: Program,
    debug_bundles: Mapping[str, Bundle],
    adb: Path,
    runner: Path,
    monkeypatch: pytest.MonkeyPatch,
    output: str,
) -> None:
    monkeypatch.setenv("ADB_REPORT", output)
    command = ("bench", debug_bundles["android"].root, "--adb", "--runner", runner)
    result = program(*command)
    assert result.code == 3
    assert output in result.err
    monkeypatch.setenv("ADB_EXIT", "139")
    assert "exit code 139" in program(*command).err
    assert adb.read_text().splitlines()[-1].startswith("shell rm -rf")


def test_an_onnx_bundle_is_not_for_the_phone(
    program: Program, debug_bundles: Mapping[str, Bundle], adb: Path, runner: Path
) -> None:
    root = debug_bundles["onnx"].root
    result = program("bench", root, "--adb", "--runner", runner)
    assert result.code == 2
    assert "android target" in result.err
    assert not adb.exists()


def test_memory_that_the_runner_cannot_tell_is_unknown() -> None:
    silent = parse_report(REPORT)
    assert silent.rss_mib is None
    assert parse_report(f"{REPORT}\nRSS after finishing text generation: 0.0 MiB").rss_mib is None
