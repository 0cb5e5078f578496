import json
from dataclasses import replace
from pathlib import Path

import pytest

from llama_edge.backends import TARGETS
from llama_edge.bundle.folder import Bundle
from llama_edge.checkpoints.synthetic import write_synthetic
from llama_edge.core.progress import SilentProgress
from llama_edge.plan.plan import REPORTED, expected
from tests.cli.conftest import Program, Result
from tests.conftest import DEBUG_CONFIG

#: What a program reads of a plan for one recipe, target, device and context.
KEYS = (
    "file_mib",
    "kv_cache_mib",
    "rss_mib",
    "decode_tokens_per_s",
    "prefill_tokens_per_s",
    "time_to_first_token_s",
    "max_context",
    "host_memory_mib",
)
ONE = ("--recipe", "w4a8-rtn", "--target", "android", "--device", "oneplus-12")


def test_one_combination_is_one_flat_object(program: Program) -> None:
    result = program("plan", "llama-3.2-1b", *ONE, "--context", 4096, "--json")
    assert result.code == 0
    assert all(isinstance(result.json[key], (int, float)) for key in KEYS)
    assert result.json["kv_cache_mib"] == 256
    assert result.json["max_context"] > 4096
    assert result.json["plans"] == [
        {key: value for key, value in result.json.items() if key in result.json["plans"][0]}
    ]
    assert result.json["measured"] is False


@pytest.mark.parametrize(
    ("layout", "decode", "file_mib", "rss_mib"),
    [("bf16", 19.2, 2358, 3185), ("published-spinquant", 50.2, 1083, 1921)],
)
def test_metas_own_files_can_be_planned(
    program: Program, layout: str, decode: float, file_mib: float, rss_mib: float
) -> None:
    arguments = ("--recipe", layout, "--target", "android", "--device", "oneplus-12", "--json")
    found = program("plan", "llama-3.2-1b", *arguments).json
    assert found["decode_tokens_per_s"] == pytest.approx(decode, rel=0.1)
    assert found["file_mib"] == pytest.approx(file_mib, rel=0.01)
    assert found["rss_mib"] == pytest.approx(rss_mib, rel=0.15)
    assert found["host_memory_mib"] is None


def test_the_time_of_a_distillation_is_not_guessed(program: Program) -> None:
    arguments = ("--recipe", "w4a8-distilled", *ONE[2:], "--json")
    distilled = program("plan", "llama-3.2-1b", *arguments).json
    mixed = program("plan", "llama-3.2-1b", "--recipe", "w4a8-mixed", *arguments[2:]).json
    assert distilled["host_cpu_minutes"] is None
    assert mixed["host_cpu_minutes"] > 0
    assert distilled["file_mib"] == mixed["file_mib"]


def test_everything_for_people_and_for_programs(program: Program) -> None:
    result = program("plan", "llama-3.2-3b")
    assert result.code == 0
    for shown in (
        "w4a8-mixed",
        "OnePlus 12",
        "iPhone 16",
        "Planned, not measured",
        "of x86-64 cores",
        "next:",
    ):
        assert shown in result.out
    plans = program("plan", "llama-3.2-3b", "--json").json["plans"]
    combinations = {(plan["recipe"], plan["target"], plan["device"]) for plan in plans}
    assert len(combinations) == len(plans)
    # Weight-only recipes are not for android, and an iPhone runs no .pte of ours.
    assert ("w4-hadamard", "android", "oneplus-12") not in combinations
    assert ("w4-hadamard", "onnx", "oneplus-12") in combinations
    assert ("w4a8-rtn", "android", "iphone-16") not in combinations
    assert not any(plan["recipe"].startswith(("w4a8-meta", "published")) for plan in plans)


def test_an_int8_cache_leaves_room_for_more(program: Program) -> None:
    plain = program("plan", "llama-3.2-3b", *ONE, "--json").json
    int8 = program("plan", "llama-3.2-3b", *ONE, "--kv-cache", "int8", "--json").json
    assert int8["kv_cache_mib"] < 0.3 * plain["kv_cache_mib"]
    assert int8["max_context"] > 2 * plain["max_context"]


def test_a_context_that_does_not_fit_is_said_and_ends_with_1(program: Program) -> None:
    arguments = ("plan", "llama-3.2-3b", *ONE[:4], "--device", "galaxy-s22", "--context", 32768)
    result = program(*arguments)
    assert result.code == 1
    assert "galaxy-s22: a context of 32768 does not fit" in result.err
    found = program(*arguments, "--json")
    assert found.code == 1
    assert found.json["too_small"] == ["galaxy-s22"]
    longest = found.json["max_context"]
    assert f"the longest context is {longest}" in result.err
    assert program(*arguments[:-1], longest).code == 0
    assert program(*arguments[:-1], longest + 1).code == 1
    # Nobody asked for this device by name, so its row says it and the command is content.
    everywhere = program("plan", "llama-3.2-3b", *ONE[:4], "--context", 32768)
    assert everywhere.code == 0
    assert "NO" in everywhere.out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["llama-3.2-1b", "--device", "nokia-3310"], 2, "choose from: oneplus-12"),
        (["llama-3.2-1b", "--recipe", "w2"], 2, "choose from: w4a8-rtn"),
        (["llama-3.2-1b", "--target", "symbian"], 2, "choose from: android"),
        (["llama-3.2-1b", "--target", "android", "--recipe", "w4-hadamard"], 2, "go together"),
        (["llama-3.2-1b", "--target", "onnx", "--recipe", "w4-hadamard-small"], 2, "go together"),
        (["llama-3.2-1b", "--target", "onnx", "--kv-cache", "int8"], 2, "in float32"),
        (["llama-3.2-1b", "--prompt", "4096"], 2, "the context holds 2048 tokens"),
        (["llama-3.2-1b", "--context", "131073"], 3, "holds 1 to 131072 tokens"),
        (["no-such-model"], 3, "neither a built-in model"),
    ],
)
def test_what_cannot_be_planned(
    program: Program, arguments: list[str], code: int, message: str
) -> None:
    result = program("plan", *arguments)
    assert result.code == code
    assert message in " ".join(result.err.split())


def test_a_recipe_of_one_s_own_is_planned(program: Program, tmp_path: Path) -> None:
    own = tmp_path / "own.json"

    def plan(**change: object) -> Result:
        own.write_text(json.dumps({"base": "w4a8-rtn", "name": "mine", **change}))
        return program("plan", "llama-3.2-1b", "--recipe", own, *ONE[2:], "--json")

    known = program("plan", "llama-3.2-1b", *ONE, "--json").json
    assert plan().json["plans"][0] == {**known["plans"][0], "recipe": "mine"}
    assert plan(group_size=64).json["file_mib"] < known["file_mib"]
    assert "mine, prompt of" in program("plan", "llama-3.2-1b", "--recipe", own).out
    for change, code, message in (
        ({"group_size": 48}, 2, "go together"),  # XNNPACK takes multiples of 32
        ({"weight_bits": 8}, 2, "go together"),
        ({"group_size": 192}, 3, "2048 is not divisible by group_size 192"),
        ({"group_size": 33}, 3, "own.json: group_size is 33"),
    ):
        result = plan(**change)
        assert result.code == code, change
        assert message in " ".join(result.err.split())


def test_a_folder_is_planned_from_its_config_alone(program: Program, tmp_path: Path) -> None:
    write_synthetic(tmp_path, "debug", replace(DEBUG_CONFIG, vocab_size=512), 0, SilentProgress())
    for weights in tmp_path.glob("*.safetensors"):
        weights.unlink()
    result = program("plan", tmp_path, "--context", 64, "--json")
    assert result.code == 0
    # 160 = 8 x 20 has a Hadamard matrix; a width without one leaves the recipes that rotate out.
    assert {plan["recipe"] for plan in result.json["plans"]} > {"w4a8-rtn", "w4a8-mixed"}


def test_the_built_in_model_is_planned(program: Program) -> None:
    arguments = ("--recipe", "w4a8-rtn", "--target", "ios", "--device", "iphone-16", "--json")
    found = program("plan", "smollm2-135m", *arguments).json
    # docs/coreml.md: 89.6 MB.
    assert found["file_mib"] == pytest.approx(89.6e6 / 2**20, rel=0.01)


def test_a_bundle_tells_what_to_expect(debug_bundles: dict[str, Bundle]) -> None:
    assert set(REPORTED) == set(TARGETS)
    for target, bundle in debug_bundles.items():
        found = expected(bundle)
        assert [device.name for device, _ in found] == list(REPORTED[target])
        assert all(target in device.targets for device, _ in found)
        written = sum(file.size_bytes for file in bundle.manifest.files)
        assert 0.5 * written < found[0][1].file_mib * 2**20 < written
