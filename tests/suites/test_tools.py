"""Tools in a user's message."""

import json

import msgspec

from llama_edge.suites.tools import Tool, offer
from tests.suites.test_checks import TIMER


def test_tools_come_before_the_question_as_they_were_given() -> None:
    text = offer([msgspec.convert(TIMER, Tool)], "Five minutes, please.")
    preface, _, rest = text.partition("Do not use variables.\n\n")
    assert preface.startswith("Given the following functions, please respond with a JSON")
    assert rest == json.dumps(TIMER, indent=4) + "\n\nFive minutes, please."
