"""A tiny guard in the shape of the pruned release, whose head has a row for 20 tokens.

Its weights make each token follow from the one before, so that it answers `unsafe`, S1 and S9 to
everything, with a probability that is known.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Final

from llama_edge.checkpoints.bpe import Vocabulary, llama3_tokenizer
from llama_edge.core.model_config import ModelConfig
from llama_edge.core.text_assets import TextAssets
from llama_edge.models.weight_names import EMBEDDING, LM_HEAD
from llama_edge.text.guard_prompt import GUARD_TEMPLATE
from llama_edge.text.token_bytes import byte_letters
from llama_edge.text.tokenizer import Tokenizer
from tests.checkpoint_writers import LLAMA32_CONFIG, random_weights, write_huggingface

#: With Meta's tokenizer, the tokens of all answers on thirteen categories.
ANSWERED: Final = (
    *("\n\n", "safe", "unsafe", "\n", "S", ",S", "<|eot_id|>"),
    *(str(number) for number in range(1, 14)),
)
_HEADER_ENDS: Final = "<|end_header_id|>"
#: token, the one that follows, and how strongly
_FOLLOWS: Final = (
    (_HEADER_ENDS, "\n\n", 2.0),
    ("\n\n", "unsafe", 2.0),
    ("\n\n", "safe", 1.9),
    ("unsafe", "\n", 2.0),
    ("safe", "<|eot_id|>", 2.0),
    ("\n", "S", 2.0),
    ("S", "1", 2.0),
    ("1", ",S", 2.0),
    (",S", "9", 2.0),
    ("9", "<|eot_id|>", 2.0),
)
#: A norm makes a single one among 64 values as large as 8, so that the logits of unsafe and safe
#: are 0.8 apart; the other rows have little.
UNSAFE_PROBABILITY: Final = 0.69


@cache
def small_text(template: str = GUARD_TEMPLATE) -> TextAssets:
    """Llama 3's way to split, the control tokens of a dialog, and the words of an answer."""
    never_in_utf8 = {0xC0, 0xC1, *range(0xF5, 0x100)}
    letters = [letter for byte, letter in byte_letters().items() if byte not in never_in_utf8]
    words = ["ĊĊ", "safe", "unsafe", ",S", "10", "11", "12", "13"]
    special = ["<|begin_of_text|>", "<|start_header_id|>", _HEADER_ENDS, "<|eot_id|>"]
    first = len(letters) + len(words)
    vocabulary = Vocabulary(
        tokens=[*letters, *words, *special],
        merges=[],
        added=dict.fromkeys(range(first, first + len(special)), True),
    )
    return TextAssets(
        tokenizer_json=llama3_tokenizer(vocabulary, None).tokenizer_json,
        chat_template=template,
        special_tokens={"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
        bos_token_id=first,
        eos_token_ids=(first + 3,),
        add_bos=False,
        generation_defaults={},
    )


def rows_of(text: TextAssets) -> Mapping[str, int]:
    """Ids of the 20 tokens."""
    tokenizer = Tokenizer(text)
    return {word: _id(tokenizer, word) for word in ANSWERED}


def guard_config(text: TextAssets) -> ModelConfig:
    return replace(
        LLAMA32_CONFIG,
        vocab_size=Tokenizer(text).vocab_size,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        output_rows=tuple(rows_of(text).values()),
    )


def write_guard(folder: Path, text: TextAssets) -> Path:
    """A Hugging Face folder."""
    config, tokenizer = guard_config(text), Tokenizer(text)
    weights = random_weights(config)
    for name, weight in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight *= 0.01
        elif name.endswith("norm.weight"):
            weight.fill_(1)
    head, embedding = weights[LM_HEAD], weights[EMBEDDING]
    head *= 0.05
    places = {word: place for place, word in enumerate(dict.fromkeys(w for w, _, _ in _FOLLOWS))}
    for word, place in places.items():
        embedding[_id(tokenizer, word)] = 0
        embedding[_id(tokenizer, word), place] = 1
        head[:, place] = 0
    for word, following, strength in _FOLLOWS:
        head[ANSWERED.index(following), places[word]] = strength
    return write_huggingface(folder, config, weights, text)


def _id(tokenizer: Tokenizer, word: str) -> int:
    (number,) = tokenizer.encode_rendered(word)
    return number
