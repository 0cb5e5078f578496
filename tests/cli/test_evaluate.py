import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from llama_edge.bundle.folder import Bundle
from tests.cli.conftest import Program
from tests.suites.tiny import write_tiny


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "rain.txt"
    path.write_text("The rain in the north is nothing like the rain at sea. " * 9)
    return path


def test_json_of_two_subjects(
    program: Program, debug_bundles: Mapping[str, Bundle], debug_folder: Path, text: Path
) -> None:
    root = debug_bundles["onnx"].root
    options = ("--text", text, "--window", 64, "--against", debug_folder, "--json")
    result = program("eval", debug_folder, root, *options)
    assert result.code == 0
    assert set(result.json) == {"window", "subjects", "difference"}
    totals = []
    for subject, runtime in zip(result.json["subjects"], (None, "onnx"), strict=True):
        assert set(subject) == {"name", "runtime", "against", "results", "tasks", "suite"}
        assert subject["runtime"] == runtime
        assert [found["text"] for found in subject["results"]] == [str(text), "total"]
        assert set(subject["results"][0]) == {"text", "windows", "metrics"}
        totals.append(subject["results"][-1]["metrics"])
    assert set(totals[1]["mean_kl"]) == {"value", "low", "high"}
    [found] = {*result.json["difference"][-1]["metrics"]}
    assert found == "perplexity"
    difference = result.json["difference"][-1]["metrics"]["perplexity"]["value"]
    expected = totals[1]["perplexity"]["value"] - totals[0]["perplexity"]["value"]
    assert difference == pytest.approx(expected, abs=0.3)  # both have four digits


def test_the_table_says_what_is_missing(
    program: Program, debug_bundles: Mapping[str, Bundle], text: Path
) -> None:
    result = program("eval", debug_bundles["onnx"].root, "--text", text, "--window", 64)
    assert result.code == 0
    for word in ("perplexity", "rain.txt", "total", "95% intervals", "no KL", "--against"):
        assert word in result.out
    assert "mean KL" not in result.out


def test_tasks_run_through_the_bundle_beside_its_model(
    program: Program, debug_bundles: Mapping[str, Bundle], debug_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "rain.jsonl").write_text('{"sky": "It rains"}\n{"sky": "It snows"}\n')
    task = tmp_path / "rain.yaml"
    task.write_text(
        "task: rain\ndataset_path: json\ndataset_kwargs: {data_files: {test: rain.jsonl}}\n"
        "test_split: test\noutput_type: loglikelihood_rolling\ndoc_to_text: ''\n"
        "doc_to_target: '{{sky}}'\nmetric_list: [{metric: bits_per_byte}]\n"
    )
    subjects = (debug_bundles["onnx"].root, debug_folder)
    result = program("eval", *subjects, "--tasks", task, "--json")
    assert result.code == 0
    [bundle], [model] = (subject["tasks"] for subject in result.json["subjects"])
    assert (bundle["task"], bundle["metric"], bundle["samples"]) == (
        "rain",
        "bits_per_byte,none",
        2,
    )
    assert bundle["value"] == pytest.approx(model["value"], rel=0.1)
    assert bundle["value"] != model["value"]
    assert result.json["difference"] == []
    table = program("eval", *subjects, "--tasks", task).out
    assert "bits_per_byte" in table
    assert "perplexity" not in table


def test_tasks_need_lm_eval(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "llama_edge.evaluate.tasks", raising=False)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    result = program("eval", "smollm2-135m", "--tasks", "rain.yaml")
    assert (result.code, result.out) == (4, "")
    assert "pip install 'llama-edge[eval]'" in result.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["eval", "smollm2-135m"], 2, "--text or --tasks"),
        (
            ["eval", "smollm2-135m", "--tasks", "nowhere.yaml"],
            3,
            "nowhere.yaml: the file is missing",
        ),
        (["eval", "nowhere/at-all.gguf", "--text", "RAIN"], 3, "nowhere/at-all.gguf"),
        (["eval", "smollm2-135m", "--text", "nowhere.txt"], 3, "nowhere.txt: the file is missing"),
        (["eval", "smollm2-135m", "--text", "RAIN", "--window", "8000"], 3, "smaller --window"),
        (["eval", "smollm2-135m", "--text", "RAIN", "--window", "9000"], 2, "holds 8192 tokens"),
        (["eval", "smollm2-135m", "--text", "RAIN", "--max-windows", "0"], 2, "max_windows is 0"),
    ],
)
def test_errors_have_a_code_and_a_message(
    program: Program, text: Path, arguments: list[str], code: int, message: str
) -> None:
    result = program(*(str(text) if argument == "RAIN" else argument for argument in arguments))
    assert (result.code, result.out) == (code, "")
    assert message in result.err.replace("\n", " ")


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny(tmp_path)


def test_a_suite_shows_each_language_and_task(
    program: Program, debug_bundles: Mapping[str, Bundle], debug_folder: Path, tiny: Path
) -> None:
    roots = [debug_bundles[target].root for target in ("onnx", "android")]
    options = ("--suite", tiny, "--against", debug_folder, "--require", "checks.th=0.5")
    result = program("eval", *roots, *options)
    assert result.code == 0
    for word in ("agreement", "checks, of full", "all", "en", "th", "summary", "50.0%, 50.0%"):
        assert word in result.out
    assert "missed" not in result.out


@pytest.mark.parametrize("as_json", [False, True])
def test_a_suite_that_is_missed_is_a_failed_check(
    program: Program,
    debug_bundles: Mapping[str, Bundle],
    debug_folder: Path,
    tiny: Path,
    as_json: bool,
) -> None:
    root = debug_bundles["onnx"].root
    options = ("--suite", tiny, "--against", debug_folder, "--require", "checks.th=0.9")
    result = program("eval", root, *options, *(["--json"] if as_json else []))
    assert result.code == 1
    missed = "checks in th is 0.5000; at least 0.9 is required"
    if not as_json:
        assert f"missed: {missed}" in result.out
        return
    suite = result.json["subjects"][0]["suite"]
    assert suite["missed"] == [missed]
    assert len(suite["results"]) == 6
    assert suite["groups"][2]["name"] == "th"
    assert suite["groups"][2]["metrics"]["checks"]["value"] == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--require", "agreement=1"), "--require is about a suite; name one with --suite"),
        (("--per-task", 1), "--per-task is about a suite"),
        (("--suite", "tiny", "--require", "agreement=2"), "no suite 'tiny'"),
        (("--suite", "on-device", "--require", "agreement=2"), "'2' is no number from 0 to 1"),
        (("--suite", "on-device"), "name that with --against"),
    ],
)
def test_a_wrong_suite_is_bad_usage(
    program: Program,
    debug_bundles: Mapping[str, Bundle],
    options: tuple[object, ...],
    message: str,
) -> None:
    result = program("eval", debug_bundles["onnx"].root, *options)
    assert result.code == 2
    assert message in result.err


def test_a_model_alone_has_nothing_to_be_compared_with(
    program: Program, debug_folder: Path, tiny: Path
) -> None:
    result = program("eval", debug_folder, "--suite", tiny)
    assert result.code == 2
    assert "name a bundle" in result.err
