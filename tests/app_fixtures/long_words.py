# ruff: noqa: RUF001 (letters of several scripts within one word)
"""Long words over merges that compete: what an app's own byte-pair merging gets wrong or slow.

The ids are those of Hugging Face's `tokenizers`, called directly.
"""

import random
from collections.abc import Iterator
from itertools import count
from typing import Final

from tokenizers import Tokenizer

from llama_edge.checkpoints.bpe import Vocabulary, smollm_tokenizer
from llama_edge.text.token_bytes import byte_letters
from tests.app_fixtures.files import Case, Files

_PATH: Final = "tokenizers/long-words.json"
_LETTERS: Final = "abcбв中é"
#: Has no token: the library leaves it out before it merges, so its neighbours may merge.
_MISSING: Final = "q"
_MERGES: Final = 160
_LONGEST_TOKEN: Final = 24


def _pick(numbers: random.Random, count: int) -> int:
    """`randrange`, whose sequence may change between versions of Python; `random`'s does not."""
    return int(numbers.random() * count)


def _vocabulary() -> Vocabulary:
    """Merges in an order that no training gives: a longer token may go before its parts."""
    numbers = random.Random(12)
    alphabet = byte_letters()
    letters = [letter for byte, letter in alphabet.items() if chr(byte) != _MISSING]
    used = [alphabet[byte] for byte in sorted(set(_LETTERS.encode()))]
    tokens = list(dict.fromkeys(used))
    merges = [("a" * half, "a" * half) for half in (1, 2, 4, 8, 16, 32)]
    merges += [("aa", "a"), ("a", "aa"), ("a", "b"), ("b", "a"), ("ab", "a"), ("a", "ba")]
    tokens += ["".join(merge) for merge in merges if "".join(merge) not in tokens]
    while len(merges) < _MERGES:
        merge = (tokens[_pick(numbers, len(tokens))], tokens[_pick(numbers, len(tokens))])
        token = "".join(merge)
        if merge in merges or len(token) > _LONGEST_TOKEN:
            continue
        merges.insert(_pick(numbers, len(merges) + 1), merge)
        if token not in tokens:
            tokens.append(token)
    every = dict.fromkeys([*letters, *tokens])
    return Vocabulary(tokens=list(every), merges=merges, added={})


def _words() -> Iterator[tuple[str, str]]:
    numbers = random.Random(34)

    def word(letters: str, length: int) -> str:
        return "".join(letters[_pick(numbers, len(letters))] for _ in range(length))

    yield "one-letter", "a" * 4096
    yield "one-letter-odd", "a" * 4095
    yield "two-letters-in-turn", "ab" * 2048
    yield "two-letters", word("ab", 4096)
    yield "mixed-scripts", word(_LETTERS, 1024)
    yield "one-without-a-token", word(f"aab{_MISSING}", 256)
    for letters, number in zip(("ab", "abc", "aab", _LETTERS) * 6, count()):
        yield f"random-{number}", word(letters, 1 + _pick(numbers, 120))


def long_word_cases() -> Iterator[tuple[Case, Files]]:
    """Each word to ids, and the ids back to text."""
    source = smollm_tokenizer(_vocabulary(), None).tokenizer_json
    reference: Tokenizer = Tokenizer.from_str(source)
    files = {_PATH: source.encode()}
    for name, text in _words():
        tokens = reference.encode(text, add_special_tokens=False).ids
        case: Case = {
            "kind": "tokens",
            "name": f"long-word-{name}",
            "tokenizer": _PATH,
            "text": text,
            "control_tokens": False,
            "tokens": tokens,
            "decoded": reference.decode(tokens),
        }
        yield case, files
