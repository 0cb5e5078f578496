"""A suite's file is somebody else's: what is wrong in it is named with its place."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from llama_edge.core.errors import TextError, UnknownNameError, UsageError
from llama_edge.suites.languages import LANGUAGES
from llama_edge.suites.suite import MAX_SUITE_BYTES, load_suite, parse_suite
from tests.suites.test_checks import TIMER

SMALL: dict[str, Any] = {
    "name": "small",
    "max_new_tokens": 8,
    "prompts": [
        {
            "id": "one",
            "language": "th",
            "task": "summary",
            "messages": [{"role": "user", "content": "?"}],
            "tools": [TIMER],
            "checks": [{"kind": "characters", "at_most": 9}],
        }
    ],
}


def test_the_built_in_suite() -> None:
    suite = load_suite("on-device")
    assert sorted(suite.languages) == sorted(LANGUAGES)
    tasks = ("summary", "rewriting", "retrieval_query", "tool_call", "constraints")
    assert suite.tasks == tasks
    counts = {
        (task, language): sum(p.task == task and p.language == language for p in suite.prompts)
        for task in tasks
        for language in LANGUAGES
    }
    assert set(counts.values()) == {3}
    assert all(bool(prompt.tools) == (prompt.task == "tool_call") for prompt in suite.prompts)
    assert len(suite.first(1).prompts) == len(counts)


def test_a_suite_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "small.json"
    path.write_text(json.dumps(SMALL))
    [prompt] = load_suite(str(path)).prompts
    assert (prompt.id, prompt.tools[0].name) == ("one", "set_timer")


def test_none_of_that_name() -> None:
    with pytest.raises(UnknownNameError, match="no suite 'no-such': on-device is built in"):
        load_suite("no-such")


@pytest.mark.parametrize("count", [0, -1])
def test_a_count_below_one(count: int) -> None:
    with pytest.raises(UsageError, match="per_task is"):
        load_suite("on-device").first(count)


def change(path: list[str | int], value: object) -> Callable[[dict[str, Any]], None]:
    def apply(suite: Any) -> None:  # noqa: ANN401
        for key in path[:-1]:
            suite = suite[key]
        suite[path[-1]] = value

    return apply


PROMPT: list[str | int] = ["prompts", 0]
PARAMETERS: list[str | int] = [*PROMPT, "tools", 0, "function", "parameters"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            change([*PROMPT, "checks"], [{"kind": "wrds"}]),
            r"'wrds' - at .*checks\[0\].kind.*words, ",
        ),
        (change([*PROMPT, "checks"], [{"kind": "words"}]), "without spaces; count characters"),
        (change([*PROMPT, "checks", 0, "at_most"], 0), r"at_most is 0.*prompts\[0\].checks\[0\]"),
        (change([*PROMPT, "checks", 0, "at_most"], "9"), r"Expected `int.*checks\[0\].at_most"),
        (change([*PROMPT, "checks", 0, "exactly"], 9), "unknown field `exactly`"),
        (change([*PROMPT, "checks"], []), r"length >= 1.*prompts\[0\].checks"),
        (change([*PROMPT, "checks"], [{"kind": "tool_call", "name": "f"}]), "no tool 'f'"),
        (change([*PROMPT, "language"], "Thai"), r"regex.*prompts\[0\].language"),
        (change([*PROMPT, "task"], "th"), r"regex.*prompts\[0\].task"),
        (change([*PROMPT, "task"], "every"), "which means all of them"),
        (change([*PROMPT, "messages", 0, "role"], "assistant"), "not of 'user'"),
        (change([*PROMPT, "messages", 0, "content"], "x" * 20_000), "length <= 16000"),
        (change([*PARAMETERS, "required"], ["hours"]), "names 'hours'"),
        (change([*PARAMETERS, "properties", "label"], {"$ref": "http://x"}), "field `\\$ref`"),
        (change(["max_new_tokens"], 10**9), "Expected `int` <= 1024"),
        (change(["prompts"], []), "length >= 1"),
        (change(["prompts"], SMALL["prompts"] * 2), "the id 'one' is there 2 times"),
        (change(["prompts"], SMALL["prompts"] * 5001), "length <= 5000"),
        (change(["name"], "../x"), "regex"),
    ],
)
def test_what_is_wrong_is_named(changed: Callable[[dict[str, Any]], None], message: str) -> None:
    value = deepcopy(SMALL)
    changed(value)
    with pytest.raises(TextError, match=f"mine.json: .*{message}"):
        parse_suite(json.dumps(value).encode(), "mine.json")


@pytest.mark.parametrize("source", [b"", b"[]", b"\xff", b'{"name": "x"}'])
def test_what_is_no_suite(source: bytes) -> None:
    with pytest.raises(TextError, match=r"mine.json"):
        parse_suite(source, "mine.json")


def test_a_huge_file_and_a_folder(tmp_path: Path) -> None:
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(MAX_SUITE_BYTES + 1)
    for name in ("huge", "."):
        with pytest.raises(TextError):
            load_suite(str(tmp_path / name))
