"""All cases and all files, in one order."""

from importlib import resources
from itertools import chain

from tests.app_fixtures.bundles import bundle_cases
from tests.app_fixtures.files import INDEX, SHARED_RESOURCES, Case, Files, index_json
from tests.app_fixtures.long_words import long_word_cases
from tests.app_fixtures.sampling import sampling_cases
from tests.app_fixtures.text_cases import (
    guard_cases,
    more_chat_token_cases,
    stop_cases,
    template_cases,
    tokenizer_cases,
    tool_call_cases,
    trim_cases,
    utf8_cases,
)


def fixture_files() -> Files:
    """What `app_fixtures/` holds: the index and every file that it names."""
    cases: list[Case] = []
    files: Files = {}
    for case, added in chain(
        bundle_cases(),
        tokenizer_cases(),
        more_chat_token_cases(),
        long_word_cases(),
        sampling_cases(),
        template_cases(),
        tool_call_cases(),
        guard_cases(),
        utf8_cases(),
        stop_cases(),
        trim_cases(),
    ):
        cases.append(case)
        files |= added
    return {INDEX: index_json(cases), **files}


def resource_files() -> Files:
    """The catalog of findings and the manifest's schema, as the apps carry them."""
    folder = resources.files("llama_edge.bundle")
    return {name: folder.joinpath(name).read_bytes() for name in SHARED_RESOURCES}
