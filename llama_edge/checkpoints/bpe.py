"""Byte-level BPE tokenizers in the `tokenizers` library's form, from a vocabulary and merges."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from llama_edge.core.errors import TokenizerError

#: Llama 3's split pattern. Source: `pat_str` in llama_models' `llama3/tokenizer.py`.
LLAMA3_PATTERN: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """Tokens in id order (byte-level alphabet), merges in rank order, and the tokens kept whole."""

    tokens: Sequence[str]
    merges: Sequence[tuple[str, str]]
    #: id -> whether it is a control token (True) or merely never split (False)
    added: Mapping[int, bool]


def byte_letters() -> dict[int, str]:
    """The printable letter that stands for each byte: itself, or one from U+0100 on.

    Source: `bytes_to_unicode` in GPT-2's `encoder.py`.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    letters |= {byte: chr(0x100 + place) for place, byte in enumerate(others)}
    return dict(sorted(letters.items()))


def llama3_tokenizer(vocabulary: Vocabulary, bos: str | None) -> Tokenizer:
    """Llama 3's: a token that is a whole word wins over the merges, as in tiktoken."""
    split = pre_tokenizers.Split(Regex(LLAMA3_PATTERN), behavior="isolated", invert=False)
    alphabet = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pre = pre_tokenizers.Sequence([split, alphabet])
    return _byte_level_bpe(vocabulary, pre, bos, ignore_merges=True)


def smollm_tokenizer(vocabulary: Vocabulary, bos: str | None) -> Tokenizer:
    """SmolLM's: digits one by one, then GPT-2's split."""
    digits = pre_tokenizers.Digits(individual_digits=True)
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    pre = pre_tokenizers.Sequence([digits, gpt2])
    return _byte_level_bpe(vocabulary, pre, bos, ignore_merges=False)


def _byte_level_bpe(
    vocabulary: Vocabulary,
    pre_tokenizer: pre_tokenizers.PreTokenizer,
    bos: str | None,
    *,
    ignore_merges: bool,
) -> Tokenizer:
    ids = {token: number for number, token in enumerate(vocabulary.tokens)}
    if len(ids) != len(vocabulary.tokens):
        raise TokenizerError(
            f"the vocabulary of {len(vocabulary.tokens)} tokens has only {len(ids)} different ones"
        )
    # Added tokens at the end stay out of the BPE's own table, as in Llama 3's tokenizer.json:
    # with ignore_merges, plain text that spells one must not become it.
    size = len(vocabulary.tokens)
    while size - 1 in vocabulary.added:
        size -= 1
    model_ids = {token: number for token, number in ids.items() if number < size}
    for merge in vocabulary.merges:
        if any(token not in model_ids for token in (*merge, "".join(merge))):
            raise TokenizerError(f"the merge {merge!r} names or makes a token that does not exist")
    tokenizer = Tokenizer(
        models.BPE(model_ids, list(vocabulary.merges), ignore_merges=ignore_merges)
    )
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    for number, special in sorted(vocabulary.added.items()):
        token = AddedToken(vocabulary.tokens[number], special=special, normalized=False)
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([token])
        if tokenizer.token_to_id(token.content) != number:
            raise TokenizerError(f"the token {token.content!r} cannot have the id {number}")
    if bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos}:0 $A:0",
            pair=f"{bos}:0 $A:0 {bos}:1 $B:1",
            special_tokens=[(bos, ids[bos])],
        )
    return tokenizer
