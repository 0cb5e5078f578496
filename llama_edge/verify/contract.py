"""The text half of the gate: tokenizer, template and end tokens are the checkpoint's."""

from collections.abc import Sequence

from llama_edge.core.manifest import TextContract
from llama_edge.verify.findings import Finding


def _finding(where: str, message: str) -> Finding:
    return Finding(check="contract", where=where, message=message)


def check_end_tokens(
    expected: Sequence[int], found: Sequence[int], where: str
) -> tuple[Finding, ...]:
    """Every EOS id of the checkpoint must be one of the artifact's, and the other way round.

    A missing one lets the model talk on for ever; a foreign one cuts its answers off.
    """
    missing = sorted(set(expected) - set(found))
    foreign = sorted(set(found) - set(expected))
    findings = []
    if missing:
        findings.append(
            _finding(
                where,
                f"end token ids {missing} of the model are missing from {sorted(found)}; "
                "generation would not stop there",
            )
        )
    if foreign:
        findings.append(
            _finding(
                where,
                f"end token ids {foreign} are not the model's {sorted(expected)}; "
                "answers would be cut off",
            )
        )
    return tuple(findings)


def check_contract(
    expected: TextContract, found: TextContract, vocab_size: int
) -> tuple[Finding, ...]:
    """What a bundle's text files make of the golden texts against what the checkpoint's make.

    Args:
        expected: Built from the checkpoint.
        found: Built from the files in the bundle.
        vocab_size: Rows of the embedding.
    """
    findings = list(check_end_tokens(expected.eos_token_ids, found.eos_token_ids, "eos_token_ids"))
    for field in ("tokenizer_sha256", "chat_template", "bos_token_id", "add_bos"):
        wanted, got = getattr(expected, field), getattr(found, field)
        if wanted != got:
            findings.append(_finding(field, f"{_short(got)} differs from {_short(wanted)}"))
    findings.extend(
        _finding(
            f"golden_tokens ({golden.language})",
            f"{golden.text!r} becomes other tokens; it is the tokenizer of another model",
        )
        for golden in expected.golden_tokens
        if golden not in found.golden_tokens
    )
    if expected.golden_chats != found.golden_chats:
        findings.append(_finding("golden_chats", "the chat template renders another dialog"))
    ids = [token for golden in found.golden_tokens for token in golden.tokens]
    if max([*ids, *found.eos_token_ids]) >= vocab_size:
        findings.append(
            _finding("vocabulary", f"token ids reach beyond the model's {vocab_size} rows")
        )
    return tuple(findings)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 70 else f"{text[:67]}..."
