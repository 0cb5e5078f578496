"""The text half of the contract: tokenizer, template and end tokens are the checkpoint's."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from llama_edge.bundle.finding_codes import ContractFinding
from llama_edge.bundle.manifest import MANIFEST_FILE
from llama_edge.text.contract import GOLDEN_TEXTS, GoldenTokens, TextContract
from llama_edge.text.special_tokens import TOKENIZER_CONFIG_FILE
from llama_edge.text.text_assets import (
    GENERATION_CONFIG_FILE,
    TOKENIZER_FILE,
)

#: Where a bundle's end tokens are listed first of all.
END_TOKENS_PLACE: Final = f"{GENERATION_CONFIG_FILE}: eos_token_id"
TEMPLATE_PLACE: Final = f"{TOKENIZER_CONFIG_FILE}: chat_template"
#: Characters of a text that a finding shows.
_SHOWN: Final = 24


def check_end_tokens(
    expected: Sequence[int], found: Sequence[int], where: str
) -> tuple[ContractFinding, ...]:
    """Every EOS id of the checkpoint must be one of the artifact's, and the other way round.

    A missing one lets the model talk on for ever; a foreign one cuts its answers off.
    """
    missing = sorted(set(expected) - set(found))
    foreign = sorted(set(found) - set(expected))
    wanted = f"the ids {sorted(set(expected))}"
    findings = []
    for code, ids, word in (("eos.missing", missing, "without"), ("eos.foreign", foreign, "with")):
        if ids:
            said = f"{sorted(set(found))}, {word} {ids}"
            findings.append(ContractFinding(code=code, where=where, expected=wanted, found=said))
    return tuple(findings)


def check_contract(
    expected: TextContract, found: TextContract, vocab_size: int
) -> tuple[ContractFinding, ...]:
    """What a bundle's text files make of the golden texts against what the checkpoint's make.

    Args:
        expected: Built from the checkpoint, or read from a manifest.
        found: Built from the files in the bundle, over the same texts.
        vocab_size: Rows of the embedding.
    """
    return (
        *check_end_tokens(expected.eos_token_ids, found.eos_token_ids, END_TOKENS_PLACE),
        *check_text(expected, found, vocab_size),
    )


def check_text(
    expected: TextContract, found: TextContract, vocab_size: int
) -> Iterator[ContractFinding]:
    """`check_contract` without the end tokens, which stand in more than one file."""
    yield from check_tokenizer(expected, found)
    yield from check_ids([*_golden_ids(found), *found.eos_token_ids], vocab_size)
    yield from _check_languages(expected)
    yield from check_defaults(expected, found)
    yield from check_template_source(expected.chat_template, found.chat_template)
    if found.golden_chats:  # none where the template is absent or cannot be rendered
        yield from check_golden_chats(expected, found)


def check_tokenizer(expected: TextContract, found: TextContract) -> Iterator[ContractFinding]:
    """The tokenizer's bytes, its begin token, and what it makes of the golden texts."""
    if expected.tokenizer_sha256 != found.tokenizer_sha256:
        yield ContractFinding(
            code="tokenizer.sha256",
            where=TOKENIZER_FILE,
            expected=f"SHA-256 {expected.tokenizer_sha256}",
            found=found.tokenizer_sha256,
        )
    for name, key in (("bos_token_id", "bos_token"), ("add_bos", "add_bos_token")):
        wanted, got = getattr(expected, name), getattr(found, name)
        if wanted != got:
            yield ContractFinding(
                code="tokenizer.bos",
                where=f"{TOKENIZER_CONFIG_FILE}: {key}",
                expected=f"{name} {wanted}",
                found=str(got),
            )
    yield from _check_golden_tokens(expected.golden_tokens, found.golden_tokens)


def check_template_source(expected: str | None, found: str | None) -> Iterator[ContractFinding]:
    """The chat template is the same text on both sides, or absent from both."""
    if expected == found:
        return
    if found is None:
        yield ContractFinding(
            code="template.missing", where=TEMPLATE_PLACE, expected="a template", found="none"
        )
        return
    wanted, got = ("none", "one") if expected is None else first_difference(expected, found)
    yield ContractFinding(code="template.source", where=TEMPLATE_PLACE, expected=wanted, found=got)


def _check_languages(expected: TextContract) -> Iterator[ContractFinding]:
    """A manifest that shows fewer languages proves less than it must."""
    wanted = {language for language, _ in GOLDEN_TEXTS}
    missing = sorted(wanted - {golden.language for golden in expected.golden_tokens})
    if missing:
        yield ContractFinding(
            code="tokenizer.golden_tokens",
            where=f"{MANIFEST_FILE}: text.golden_tokens",
            expected=f"sample texts in {', '.join(sorted(wanted))}",
            found=f"none in {', '.join(missing)}",
        )


def _check_golden_tokens(
    expected: Sequence[GoldenTokens], found: Sequence[GoldenTokens]
) -> Iterator[ContractFinding]:
    by_text = {golden.text: golden.tokens for golden in found}
    for index, golden in enumerate(expected):
        tokens = by_text.get(golden.text)
        if tokens != golden.tokens:
            wanted, got = first_difference(golden.tokens, tokens or ())
            yield ContractFinding(
                code="tokenizer.golden_tokens",
                where=f"{TOKENIZER_FILE}: golden_tokens[{index}] ({golden.language})",
                expected=f"{wanted} of {golden.text[:_SHOWN]!r}",
                found=got,
            )


def check_golden_chats(expected: TextContract, found: TextContract) -> Iterator[ContractFinding]:
    """How the template gets a dialog, and what it and the tokenizer make of the golden ones."""
    if expected.content_parts is not found.content_parts:
        yield ContractFinding(
            code="template.text",
            where=f"{MANIFEST_FILE}: text.content_parts",
            expected=str(found.content_parts),
            found=str(expected.content_parts),
        )
    golden_chats, rendered = expected.golden_chats, found.golden_chats
    if len(golden_chats) != len(rendered):
        yield ContractFinding(
            code="template.text",
            where=f"{MANIFEST_FILE}: text.golden_chats",
            expected=f"{len(rendered)} sample dialogs",
            found=str(len(golden_chats)),
        )
    for index, (golden, got) in enumerate(zip(golden_chats, rendered, strict=False)):
        place = f"{TEMPLATE_PLACE}, golden_chats[{index}]"
        if golden.text != got.text:
            wanted, seen = first_difference(golden.text, got.text)
            yield ContractFinding(code="template.text", where=place, expected=wanted, found=seen)
        elif golden.tokens != got.tokens:
            wanted, seen = first_difference(golden.tokens, got.tokens)
            yield ContractFinding(code="template.tokens", where=place, expected=wanted, found=seen)


def check_defaults(expected: TextContract, found: TextContract) -> Iterator[ContractFinding]:
    """The sampling that the model's authors advise."""
    wanted, got = expected.generation_defaults, found.generation_defaults
    for key in sorted({*wanted, *got}):
        if wanted.get(key) != got.get(key):
            yield ContractFinding(
                code="text.generation_defaults",
                where=f"{GENERATION_CONFIG_FILE}: {key}",
                expected=str(wanted.get(key, "no value")),
                found=str(got.get(key, "no value")),
            )


def check_ids(ids: Iterable[int], vocab_size: int) -> Iterator[ContractFinding]:
    """No token id may be without a row in the embedding."""
    largest = max(ids)
    if largest >= vocab_size:
        yield ContractFinding(
            code="tokenizer.vocabulary",
            where=TOKENIZER_FILE,
            expected=f"token ids below the model's {vocab_size} rows",
            found=f"id {largest}",
        )


def _golden_ids(contract: TextContract) -> Iterator[int]:
    return (token for golden in contract.golden_tokens for token in golden.tokens)


def first_difference(expected: str | Sequence[int], found: str | Sequence[int]) -> tuple[str, str]:
    """In words, the first place at which two texts, or two lists of tokens, part."""
    shared = zip(expected, found, strict=False)
    places = (index for index, (want, have) in enumerate(shared) if want != have)
    place = next(places, min(len(expected), len(found)))
    if isinstance(expected, str):
        begin = max(0, place - _SHOWN // 2)
        want, have = expected[begin : place + _SHOWN], found[begin : place + _SHOWN]
        return f"{want!r} at character {place}", repr(have)
    wanted = str(expected[place]) if place < len(expected) else "the end"
    got = str(found[place]) if place < len(found) else "the end"
    return f"{wanted} as token {place}", got
