"""A tokenizer in Llama 3's form with a made-up vocabulary: Meta's own may not be shipped.

Control tokens have Llama 3's names, at the ids where Llama 3 has them; text comes back byte for
byte; only the choice of the other tokens is nobody's.
"""

from collections.abc import Iterator
from itertools import islice, product
from typing import Final

from llama_edge.checkpoints.bpe import Vocabulary, llama3_tokenizer
from llama_edge.checkpoints.tiktoken import (
    LLAMA3_BEGIN,
    LLAMA3_ENDS,
    LLAMA3_NAMED,
    LLAMA3_SPECIALS,
    LLAMA3_TEMPLATE,
)
from llama_edge.core.errors import ConfigError
from llama_edge.core.text_assets import TextAssets
from llama_edge.text.text_assets import build_text_assets
from llama_edge.text.token_bytes import byte_letters

#: How English uses its letters, the most frequent first: what gets the longer tokens.
_BY_FREQUENCY: Final = "etaoinshrdlucmfwypvbgkjqxz"
_SPACE: Final = byte_letters()[0x20]
#: The published generation_config.json of the instruct models.
_GENERATION: Final = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}

SMALLEST_VOCABULARY: Final = 256 + len(LLAMA3_SPECIALS)


def synthetic_text(vocab_size: int) -> TextAssets:
    """Tokenizer, dialog format and end tokens of a model with `vocab_size` rows.

    Raises:
        ConfigError: Fewer than the 256 bytes and the 256 control tokens.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise ConfigError(
            f"vocab_size is {vocab_size}; a tokenizer in Llama 3's form has at least "
            f"{SMALLEST_VOCABULARY}"
        )
    letters = list(byte_letters().values())
    merges = list(islice(_merges(letters), vocab_size - SMALLEST_VOCABULARY))
    tokens = [*letters, *("".join(merge) for merge in merges)]
    first = len(tokens)
    vocabulary = Vocabulary(
        tokens=[*tokens, *LLAMA3_SPECIALS],
        merges=merges,
        added={first + place: True for place in range(len(LLAMA3_SPECIALS))},
    )
    return build_text_assets(
        llama3_tokenizer(vocabulary, LLAMA3_BEGIN),
        LLAMA3_TEMPLATE,
        named=LLAMA3_NAMED,
        ends=[first + LLAMA3_SPECIALS.index(end) for end in LLAMA3_ENDS],
        generation_defaults=_GENERATION,
    )


def _merges(letters: list[str]) -> Iterator[tuple[str, str]]:
    """All pairs of bytes, then words of three letters, then of four: 65,536 + 18,252 + 456,976."""
    yield from product(letters, letters)
    starts = _SPACE + _BY_FREQUENCY
    pairs = ["".join(pair) for pair in product(_BY_FREQUENCY, _BY_FREQUENCY)]
    for start, letter in product(starts, _BY_FREQUENCY):
        yield from ((start + letter, last) for last in _BY_FREQUENCY)
    yield from product(pairs, pairs)
