"""The text contract: a missing EOS or a foreign tokenizer is named."""

from dataclasses import replace

import pytest

from llama_edge.bundle.contract import check_contract, check_end_tokens, first_difference
from llama_edge.core.checkpoint import Checkpoint
from llama_edge.text.contract import build_text_contract

TEMPLATE = "tokenizer_config.json: chat_template"


def places(checkpoint: Checkpoint, **changes: object) -> list[tuple[str, str]]:
    """What `check_contract` finds where, after the debug model's text was changed."""
    expected = build_text_contract(checkpoint.text)
    found = build_text_contract(replace(checkpoint.text, **changes))  # type: ignore[arg-type]
    return [(finding.code, finding.where) for finding in check_contract(expected, found, 256)]


def test_the_same_text_holds(debug_checkpoint: Checkpoint) -> None:
    assert places(debug_checkpoint) == []


def test_a_missing_second_eos_is_named(debug_checkpoint: Checkpoint) -> None:
    expected = build_text_contract(debug_checkpoint.text)
    found = replace(expected, eos_token_ids=(0,))
    (finding,) = check_contract(expected, found, 256)
    assert finding.code == "eos.missing"
    assert finding.where == "generation_config.json: eos_token_id"
    assert "Expected the ids [0, 2]; found [0], without [2]." in finding.message


def test_end_tokens_of_an_artifact() -> None:
    assert check_end_tokens((0, 2), (2, 0), "model.pte") == ()
    missing, foreign = check_end_tokens((0, 2), (0, 7), "model.pte")
    assert missing.where == "model.pte"
    assert (missing.code, foreign.code) == ("eos.missing", "eos.foreign")
    assert "without end" in missing.message
    assert "Expected the ids [0, 2]; found [0, 7], with [7]." in foreign.message


def test_a_tokenizer_of_another_model_is_named(
    debug_checkpoint: Checkpoint, smollm2: Checkpoint
) -> None:
    found = places(debug_checkpoint, tokenizer_json=smollm2.text.tokenizer_json)
    assert ("tokenizer.sha256", "tokenizer.json") in found
    assert ("tokenizer.golden_tokens", "tokenizer.json: golden_tokens[6] (hi)") in found
    assert ("template.tokens", f"{TEMPLATE}, golden_chats[0]") in found
    assert ("tokenizer.vocabulary", "tokenizer.json") in found


@pytest.mark.parametrize(
    ("field", "value", "code", "place"),
    [
        ("chat_template", "{{ messages[0]['content'] }}", "template.source", TEMPLATE),
        ("chat_template", None, "template.missing", TEMPLATE),
        ("bos_token_id", 1, "tokenizer.bos", "tokenizer_config.json: bos_token"),
        ("add_bos", True, "tokenizer.bos", "tokenizer_config.json: add_bos_token"),
        (
            "generation_defaults",
            {"temperature": 0.7, "top_p": 0.9},
            "text.generation_defaults",
            "generation_config.json: temperature",
        ),
    ],
)
def test_each_part_counts(
    debug_checkpoint: Checkpoint, field: str, value: object, code: str, place: str
) -> None:
    assert (code, place) in places(debug_checkpoint, **{field: value})


def test_the_first_difference_is_shown() -> None:
    assert first_difference((1, 2, 3), (1, 2)) == ("3 as token 2", "the end")
    assert first_difference((1,), (1, 4)) == ("the end as token 1", "4")
    wanted, found = first_difference("a line\nand more", "a line and more")
    assert wanted == r"'a line\nand more' at character 6"
    assert found == "'a line and more'"
