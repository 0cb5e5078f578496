"""The prompts are many, different, balanced, short, and unlike what quality is measured on."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

import pytest

from llama_edge.core.checkpoint import Checkpoint
from llama_edge.gate.prompt_texts import GATE_TEXTS, MORE_TEXTS
from llama_edge.quantize.calibration import LENGTH, begin_sequence
from llama_edge.quantize.calibration_prompts import PROMPTS, CalibrationPrompt
from llama_edge.suites.suite import BUILTIN_SUITES, load_suite
from llama_edge.text.tokenizer import Tokenizer

LANGUAGES = ("en", "de", "fr", "it", "pt", "hi", "es", "th")
USES = (
    "summary",
    "rewriting",
    "search query",
    "tool call",
    "chat",
    "translation",
    "explanation",
    "list",
)
RUN = 8


def group(prompt: CalibrationPrompt) -> str:
    """Requests and three groups of documents."""
    if prompt.is_request:
        return "request"
    family = prompt.kind.split(":")[0]
    return family if family in ("code", "data") else "text"


def imbalance(
    chosen: Sequence[CalibrationPrompt], key: Callable[[CalibrationPrompt], str]
) -> float:
    """How many prompts the most wrongly represented group has too many or too few."""
    found, wanted = Counter(map(key, chosen)), Counter(map(key, PROMPTS))
    share = len(chosen) / len(PROMPTS)
    gaps: list[float] = [abs(found[name] - count * share) for name, count in wanted.items()]
    return max(gaps)


def worst_imbalance(prompts: Sequence[CalibrationPrompt]) -> float:
    """Over prefixes and even spreads, in thirds of the square root of their length."""
    prefixes = [prompts[:count] for count in range(8, len(prompts))]
    spreads = [prompts[::step] for step in range(2, 19)]
    return max(
        imbalance(chosen, key) / max(1, math.sqrt(len(chosen)) / 3)
        for chosen in prefixes + spreads
        for key in (group, lambda prompt: prompt.language)
    )


def word_runs(texts: Iterable[str]) -> set[tuple[str, ...]]:
    """Each run of eight words. Vowel signs divide Hindi and Thai into shorter pieces than words."""
    runs = set()
    for text in texts:
        words = re.findall(r"\w+", text.lower())
        runs |= {tuple(words[start : start + RUN]) for start in range(len(words) - RUN + 1)}
    return runs


def measured_texts() -> Iterator[str]:
    """What the gate and the suites say to a model."""
    for text in (*GATE_TEXTS, *MORE_TEXTS):
        yield " ".join([text.system, *text.request, text.answer])
    for name in BUILTIN_SUITES:
        for prompt in load_suite(name).prompts:
            yield from (message.content for message in prompt.messages)


def is_held_out(text: str) -> bool:
    """Whether it begins like a docstring or a manual page."""
    marks = (
        r"^(NAME|SYNOPSIS|DESCRIPTION|Parameters|Args:|Returns?\b|Raises\b)|\"\"\"|----$|^\s+--?\w"
    )
    return re.search(marks, text, re.MULTILINE) is not None


def test_every_language_has_requests_and_many_kinds_of_documents() -> None:
    assert len(PROMPTS) == 144
    assert 0.3 < sum(prompt.is_request for prompt in PROMPTS) / len(PROMPTS) < 0.36
    assert {prompt.language for prompt in PROMPTS} == set(LANGUAGES)
    for language in LANGUAGES:
        mine = [prompt for prompt in PROMPTS if prompt.language == language]
        assert 16 <= len(mine) <= 40
        assert sum(prompt.is_request for prompt in mine) >= 5
        assert len({prompt.kind for prompt in mine if not prompt.is_request}) >= 11
    uses = Counter(prompt.kind for prompt in PROMPTS if prompt.is_request)
    assert min(uses[use] for use in USES) >= 5
    groups = Counter(map(group, PROMPTS))
    assert min(groups["code"], groups["data"]) >= 9


def test_prefixes_and_even_spreads_are_balanced() -> None:
    assert worst_imbalance(PROMPTS) <= 2


@pytest.mark.parametrize("key", [group, lambda prompt: prompt.language])
def test_sorted_prompts_are_not_balanced(key: Callable[[CalibrationPrompt], str]) -> None:
    assert worst_imbalance(sorted(PROMPTS, key=key)) > 4


def test_no_two_prompts_say_the_same() -> None:
    seen = Counter(run for prompt in PROMPTS for run in word_runs([prompt.text]))
    assert max(seen.values()) == 1
    assert len({prompt.text for prompt in PROMPTS}) == len(PROMPTS)
    assert len({prompt.text[:12] for prompt in PROMPTS}) >= len(PROMPTS) - 3


def test_every_prompt_leaves_half_of_its_sequence(smollm2: Checkpoint) -> None:
    tokenizer = Tokenizer(smollm2.text)
    lengths = [len(begin_sequence(tokenizer, prompt)) for prompt in PROMPTS]
    assert max(lengths) <= LENGTH // 2
    assert len(tokenizer.encode("ภาษาไทย" * 20)) > LENGTH // 2


def test_no_document_ends_with_a_space_that_belongs_to_the_next_word() -> None:
    assert all(not prompt.text.endswith(" ") for prompt in PROMPTS)


def test_no_run_of_words_is_shared_with_what_quality_is_measured_on() -> None:
    measured = word_runs(measured_texts())
    assert not measured & word_runs(prompt.text for prompt in PROMPTS)
    assert measured & word_runs([f"Now: {GATE_TEXTS[0].request[0]}"])
    assert measured & word_runs([load_suite("on-device").prompts[0].messages[-1].content])


def test_docstrings_and_manual_pages_are_held_out() -> None:
    assert [prompt.text for prompt in PROMPTS if is_held_out(prompt.text)] == []
    assert is_held_out("Returns the index of the first item.\n\nParameters\n----------\n")
    assert is_held_out("NAME\n    backup - copy files\n\nSYNOPSIS\n    backup [OPTION]...")
