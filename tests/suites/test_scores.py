"""Scores of results that were made up."""

from dataclasses import replace

import pytest

from llama_edge.core.errors import UsageError
from llama_edge.suites.requirements import Requirement, missed
from llama_edge.suites.scores import Judged, PromptResult, group_scores
from llama_edge.suites.suite import load_suite

GOOD = Judged(text="yes", failed=(), valid_call=None)
BAD = Judged(text="no", failed=("words", "language"), valid_call=None)
RESULT = PromptResult(
    id="en-1",
    language="en",
    task="summary",
    checks=4,
    bundle=GOOD,
    full=GOOD,
    tokens=10,
    agreeing_tokens=10,
    common_tokens=10,
)
CALL = replace(
    RESULT,
    id="th-1",
    language="th",
    task="tool_call",
    bundle=replace(BAD, valid_call=False),
    full=replace(GOOD, valid_call=True),
    tokens=30,
    agreeing_tokens=15,
    common_tokens=3,
    constrained=replace(GOOD, valid_call=True),
)


def values(*results: PromptResult) -> dict[str | None, dict[str, float]]:
    return {
        group.name: {name: found.value for name, found in group.metrics.items()}
        for group in group_scores(results)
    }


def test_one_language_and_one_task_show_up() -> None:
    found = values(RESULT, CALL)
    assert list(found) == [None, "en", "th", "summary", "tool_call"]
    assert found["en"] == {
        "agreement": 1.0,
        "same_answer": 1.0,
        "prefix": 1.0,
        "checks": 1.0,
        "full_checks": 1.0,
        "checks_loss": 0.0,
    }
    assert found["th"] == found["tool_call"]
    assert found["th"] == {
        "agreement": 0.5,
        "same_answer": 0.0,
        "prefix": 0.1,
        "checks": 0.5,
        "full_checks": 1.0,
        "checks_loss": 0.5,
        "tool_call": 0.0,
        "full_tool_call": 1.0,
        "constrained_tool_call": 1.0,
        "tool_call_loss": 1.0,
    }
    # Tokens count, not prompts: 25 of 40. Tool calls count where tools are offered.
    assert found[None]["agreement"] == 25 / 40
    assert found[None]["checks"] == 6 / 8
    assert found[None]["tool_call"] == 0.0


def test_an_interval_needs_five_prompts() -> None:
    few, many = (group_scores([RESULT, CALL] * count)[0].metrics for count in (2, 3))
    assert few["agreement"].low is None
    low, high = many["agreement"].low, many["agreement"].high
    assert low is not None
    assert high is not None
    assert 0.5 <= low < many["agreement"].value < high <= 1


@pytest.mark.parametrize(
    ("requirement", "messages"),
    [
        ("agreement=0.625", []),
        ("agreement=0.63", ["agreement in all prompts is 0.6250; at least 0.63 is required"]),
        ("agreement.en=1", []),
        ("agreement.th=0.51", ["agreement in th is 0.5000; at least 0.51 is required"]),
        ("agreement.tool_call=0.51", ["agreement in tool_call is 0.5000"]),
        ("agreement.every=0.51", ["agreement in th is", "agreement in tool_call is"]),
        ("checks_loss=0.25", []),
        ("checks_loss.th=0.4", ["checks_loss in th is 0.5000; at most 0.4 is required"]),
        ("tool_call_loss.every=0", ["tool_call_loss in th", "tool_call_loss in tool_call"]),
        ("tool_call=0.1", ["tool_call in all prompts is 0.0000"]),
    ],
)
def test_a_requirement_that_is_missed_is_said(requirement: str, messages: list[str]) -> None:
    found = missed([Requirement.parse(requirement)] * 2, group_scores([RESULT, CALL]))
    assert len(found) == len(messages)
    for line, message in zip(found, messages, strict=True):
        assert line.startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("agreement", "is not METRIC=VALUE"),
        ("agreement.=0.5", "is not METRIC=VALUE"),
        ("agrement=0.5", "names no metric; these are: agreement, "),
        ("agreement=85", "'85' is no number from 0 to 1"),
        ("agreement=nan", "'nan' is no number from 0 to 1"),
        ("agreement=high", "'high' is no number"),
    ],
)
def test_a_requirement_of_another_form(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Requirement.parse(text)


@pytest.mark.parametrize("text", ["agreement.th=0.5", "tool_call.de=0.5", "checks_loss.every=0.1"])
def test_a_requirement_is_written_as_it_is_read(text: str) -> None:
    requirement = Requirement.parse(text)
    assert str(requirement) == text
    requirement.require_measured(load_suite("on-device"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("agreement.nl=0.5", "no group 'nl'; it has every, en, "),
        ("tool_call.summary=0.5", "no prompt in summary of on-device offers tools"),
    ],
)
def test_what_the_suite_does_not_measure_is_not_required(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Requirement.parse(text).require_measured(load_suite("on-device"))
