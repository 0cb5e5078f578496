"""Byte-level BPE tokenizers in the `tokenizers` library's form, from a vocabulary and merges."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final

from llama_edge.core.errors import TokenizerError
from llama_edge.text.native import AddedToken, Changes, NativeTokenizer, open_tokenizer

#: Llama 3's split pattern. Source: `pat_str` in llama_models' `llama3/tokenizer.py`.
LLAMA3_PATTERN: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """Tokens in id order (byte-level alphabet), merges in rank order, and the tokens kept whole.

    A tokenizer of it is refused where a token is there twice, or a merge makes none of the tokens.
    """

    #: None: an id without a token
    tokens: Sequence[str | None]
    merges: Sequence[tuple[str, str]]
    #: id -> whether it is a control token (True) or merely never split (False)
    added: Mapping[int, bool]


_GPT2_ALPHABET: Final = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
}
_LLAMA3_SPLIT: Final = {
    "type": "Sequence",
    "pretokenizers": [
        {
            "type": "Split",
            "pattern": {"Regex": LLAMA3_PATTERN},
            "behavior": "Isolated",
            "invert": False,
        },
        {**_GPT2_ALPHABET, "use_regex": False},
    ],
}
#: Digits one by one, then GPT-2's own split.
_SMOLLM_SPLIT: Final = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Digits", "individual_digits": True},
        {**_GPT2_ALPHABET, "use_regex": True},
    ],
}


def llama3_tokenizer(vocabulary: Vocabulary, bos: str | None) -> NativeTokenizer:
    """Llama 3's: a token that is a whole word wins over the merges, as in tiktoken.

    Raises:
        TokenizerError: See `Vocabulary`.
    """
    return _byte_level_bpe(vocabulary, _LLAMA3_SPLIT, bos, ignore_merges=True)


def smollm_tokenizer(vocabulary: Vocabulary, bos: str | None) -> NativeTokenizer:
    """SmolLM's: digits one by one, then GPT-2's split.

    Raises:
        TokenizerError: See `Vocabulary`.
    """
    return _byte_level_bpe(vocabulary, _SMOLLM_SPLIT, bos, ignore_merges=False)


def _byte_level_bpe(
    vocabulary: Vocabulary, pre_tokenizer: object, bos: str | None, *, ignore_merges: bool
) -> NativeTokenizer:
    tokens = {number: token for number, token in enumerate(vocabulary.tokens) if token is not None}
    ids = {token: number for number, token in tokens.items()}
    if len(ids) != len(tokens):
        raise TokenizerError(
            f"the vocabulary of {len(tokens)} tokens has only {len(ids)} different ones"
        )
    # Added tokens at the end stay out of the BPE's own table, as in Llama 3's tokenizer.json:
    # with ignore_merges, plain text that spells one must not become it.
    size = len(vocabulary.tokens)
    while size and (size - 1 in vocabulary.added or size - 1 not in tokens):
        size -= 1
    model_ids = {token: number for token, number in ids.items() if number < size}
    for merge in vocabulary.merges:
        if any(token not in model_ids for token in (*merge, "".join(merge))):
            raise TokenizerError(f"the merge {merge!r} names or makes a token that does not exist")
    value = {
        "version": "1.0",
        "added_tokens": [
            {"id": number, **asdict(_added(tokens[number], special=special))}
            for number, special in sorted(vocabulary.added.items())
        ],
        "pre_tokenizer": pre_tokenizer,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True},
        "model": {
            "type": "BPE",
            "ignore_merges": ignore_merges,
            "vocab": model_ids,
            "merges": list(vocabulary.merges),
        },
    }
    changes = Changes(begin=None if bos is None else (bos,), canonical=True)
    tokenizer = open_tokenizer("the vocabulary", json.dumps(value, ensure_ascii=False), changes)
    for number in vocabulary.added:
        if number not in tokenizer.added:
            raise TokenizerError(f"the token {tokens[number]!r} cannot have the id {number}")
    return tokenizer


def _added(content: str, *, special: bool) -> AddedToken:
    return AddedToken(content=content, special=special)
