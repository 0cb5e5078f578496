"""Each check, with answers that pass it and answers that do not."""

import msgspec
import pytest

from llama_edge.suites.checks import AnyCheck, Asked
from llama_edge.suites.suite import KINDS
from llama_edge.suites.tools import Tool

TIMER = {
    "type": "function",
    "function": {
        "name": "set_timer",
        "description": "Start a countdown.",
        "parameters": {
            "type": "object",
            "properties": {
                "minutes": {"type": "integer", "minimum": 1},
                "label": {"type": "string"},
            },
            "required": ["minutes"],
        },
    },
}
#: Kind, its limits, language, an answer that passes, and one that does not.
CASES = [
    ("words", {"at_most": 3}, "en", "Read it - now!", "Read it to me now"),
    ("words", {"at_least": 2}, "hi", "हिन्दी भाषा", "हिन्दी"),
    ("words", {"at_most": 3}, "en", "Yes", " - "),
    ("characters", {"at_most": 4}, "th", "ครั บ", "ครับผม"),
    ("sentences", {"at_least": 2, "at_most": 2}, "en", 'He said "No!" I left.', "One. Two. Three."),
    ("sentences", {"at_most": 1}, "hi", "यह एक वाक्य है।", "यह एक है। यह दूसरा है।"),
    ("sentences", {"at_least": 2}, "de", "Ja. Nein", "Es kostet 3.50 Euro."),
    ("paragraphs", {"at_least": 2, "at_most": 2}, "en", "One\n\n \nTwo\n", "One\nTwo"),
    ("bullets", {"at_least": 2, "at_most": 2}, "en", "- one\n* two", "- one\n- two\n3. three"),
    ("bullets", {}, "en", "1) one", "-one"),
    ("contains", {"phrases": ["Müller", "art"]}, "de", "Mu\u0308LLERS KARTE", "Muller, art"),
    ("omits", {"phrases": ["body"]}, "en", "The mind rests.", "Everybody rests."),
    ("omits", {"phrases": ["body"]}, "en", "Rest.", " "),
    ("ends_with", {"phrase": "See you!"}, "en", "Thanks. see you!\n", "See you! Bye"),
    ("lower_case", {}, "fr", "été à paris, 3 fois", "été à Paris"),
    ("lower_case", {}, "fr", "été", "123"),
    ("language", {}, "de", "Das ist nicht für mich.", "This is not for me."),
    ("language", {}, "th", "สวัสดีครับ ABC", "Hello, this is Thai."),
    ("json_object", {"keys": ["a", "b"]}, "en", '{"b": 1, "a": {}}', '{"a": 1}'),
    ("json_object", {"keys": ["a"]}, "en", '```json\n{"a": 1}\n```', 'Here: {"a": 1}'),
    ("json_object", {"keys": ["a"]}, "en", '{"a": null}', "[" * 100_000),
]
CALLS = [
    ({"name": "set_timer"}, '{"name": "set_timer", "parameters": {"minutes": 5}}', "5 minutes"),
    ({"name": "set_timer"}, "[set_timer(minutes=5)]", "[set_timer(minutes='5')]"),
    ({"name": "set_timer"}, "[set_timer(minutes=1)]", "[set_timer(minutes=0)]"),
    ({"name": "set_timer"}, "[set_timer(minutes=1, label='tea')]", "[set_timer(minutes=1, x=2)]"),
    (
        {"name": "set_timer"},
        "[set_timer(minutes=1)]",
        "[set_timer(minutes=1), set_timer(minutes=2)]",
    ),
    ({"name": "set_timer"}, "[set_timer(minutes=1)]", "[set_alarm(minutes=1)]"),
    ({"name": "set_timer"}, "[set_timer(minutes=1)]", "[set_timer("),
    (
        {"name": "set_timer", "arguments": {"minutes": 5, "label": "Tea"}},
        "[set_timer(minutes=5, label='tea ')]",
        "[set_timer(minutes=6, label='tea')]",
    ),
]


def check(kind: str, **limits: object) -> AnyCheck:
    found: AnyCheck = msgspec.convert({"kind": kind, **limits}, AnyCheck)
    return found


@pytest.mark.parametrize(("kind", "limits", "language", "good", "bad"), CASES)
def test_a_check_passes_and_fails(
    kind: str, limits: dict[str, object], language: str, good: str, bad: str
) -> None:
    asked = Asked(language=language)
    checked = check(kind, **limits)
    assert checked.why_not(asked) is None
    assert checked.passes(good, asked)
    assert not checked.passes(bad, asked)


@pytest.mark.parametrize(("wanted", "good", "bad"), CALLS)
def test_a_call_is_checked_against_its_tool(wanted: dict[str, object], good: str, bad: str) -> None:
    asked = Asked(language="en", tools=(msgspec.convert(TIMER, Tool),))
    checked = check("tool_call", **wanted)
    assert checked.why_not(asked) is None
    assert checked.passes(good, asked)
    assert not checked.passes(bad, asked)


def test_every_kind_has_a_case() -> None:
    assert {case[0] for case in CASES} | {"tool_call"} == set(KINDS)


@pytest.mark.parametrize("kind", sorted({*KINDS} - {"omits", "tool_call"}))
def test_no_answer_at_all_passes_nothing(kind: str) -> None:
    limits: dict[str, dict[str, object]] = {
        "contains": {"phrases": ["a"]},
        "ends_with": {"phrase": "a"},
        "json_object": {"keys": ["a"]},
    }
    assert not check(kind, **limits.get(kind, {})).passes("", Asked(language="en"))


@pytest.mark.parametrize(
    ("kind", "language", "message"),
    [
        ("words", "th", "th is written without spaces; count characters"),
        ("sentences", "ja", "ja is written without spaces"),
        ("lower_case", "hi", "hi has no capital letters"),
        ("lower_case", "th", "th has no capital letters"),
        ("language", "nl", "are told apart, not nl"),
    ],
)
def test_what_a_language_has_not_is_not_checked(kind: str, language: str, message: str) -> None:
    why_not = check(kind).why_not(Asked(language=language))
    assert why_not is not None
    assert message in why_not
