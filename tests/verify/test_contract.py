"""The text contract: a missing EOS or a foreign tokenizer is named."""

from dataclasses import replace

import pytest

from llama_edge.core.text_contract import build_text_contract
from llama_edge.core.types import Checkpoint
from llama_edge.verify.contract import check_contract, check_end_tokens


def places(checkpoint: Checkpoint, **changes: object) -> list[str]:
    """Where `check_contract` finds the debug model's text changed."""
    expected = build_text_contract(checkpoint.text)
    found = build_text_contract(replace(checkpoint.text, **changes))  # type: ignore[arg-type]
    return [finding.where for finding in check_contract(expected, found, 256)]


def test_the_same_text_holds(debug_checkpoint: Checkpoint) -> None:
    assert places(debug_checkpoint) == []


def test_a_missing_second_eos_is_named(debug_checkpoint: Checkpoint) -> None:
    expected = build_text_contract(debug_checkpoint.text)
    found = replace(expected, eos_token_ids=(0,))
    (finding,) = check_contract(expected, found, 256)
    assert finding.check == "contract"
    assert finding.where == "eos_token_ids"
    assert "[2] of the model are missing from [0]" in finding.message


def test_end_tokens_of_an_artifact() -> None:
    assert check_end_tokens((0, 2), (2, 0), "model.pte") == ()
    missing, foreign = check_end_tokens((0, 2), (0, 7), "model.pte")
    assert missing.where == "model.pte"
    assert "would not stop" in missing.message
    assert "[7] are not the model's [0, 2]" in foreign.message


def test_a_tokenizer_of_another_model_is_named(
    debug_checkpoint: Checkpoint, smollm2: Checkpoint
) -> None:
    found = places(debug_checkpoint, tokenizer_json=smollm2.text.tokenizer_json)
    assert "tokenizer_sha256" in found
    assert "golden_tokens (hi)" in found
    assert "golden_chats" in found
    assert "vocabulary" in found


@pytest.mark.parametrize(
    ("field", "value", "place"),
    [
        ("chat_template", "{{ messages[0]['content'] }}", "golden_chats"),
        ("chat_template", None, "chat_template"),
        ("bos_token_id", 1, "bos_token_id"),
        ("add_bos", True, "add_bos"),
    ],
)
def test_each_part_counts(
    debug_checkpoint: Checkpoint, field: str, value: object, place: str
) -> None:
    assert place in places(debug_checkpoint, **{field: value})
