"""A tiny guard in the shape of the pruned release: Meta's real tokenizer, a head of 20 rows.

Its weights make each token follow from the one before, so that it answers `unsafe`, S1 and S9 to
everything, with a probability that is known.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from llama_edge.core.text_assets import TextAssets
from llama_edge.models.weight_names import EMBEDDING, LM_HEAD
from llama_edge.text.guard_prompt import GUARD_TEMPLATE
from tests.checkpoint_writers import (
    LLAMA32_CONFIG,
    llama3_text,
    random_weights,
    write_huggingface,
)

#: The tokens of all answers on thirteen categories, with Meta's tokenizer: twenty.
ROWS: Final[Mapping[str, int]] = {
    "\n\n": 271,
    "safe": 19193,
    "unsafe": 39257,
    "\n": 198,
    "S": 50,
    ",S": 21861,
    **{str(digit): 15 + digit for digit in range(1, 10)},
    "10": 605,
    "11": 806,
    "12": 717,
    "13": 1032,
    "<|eot_id|>": 128009,
}
CONFIG: Final = replace(
    LLAMA32_CONFIG, tie_word_embeddings=False, output_rows=tuple(ROWS.values())
)
_HEADER_ENDS: Final = 128007
#: token, the one that follows, and how strongly
_FOLLOWS: Final = (
    (_HEADER_ENDS, "\n\n", 2.0),
    (ROWS["\n\n"], "unsafe", 2.0),
    (ROWS["\n\n"], "safe", 1.9),
    (ROWS["unsafe"], "\n", 2.0),
    (ROWS["safe"], "<|eot_id|>", 2.0),
    (ROWS["\n"], "S", 2.0),
    (ROWS["S"], "1", 2.0),
    (ROWS["1"], ",S", 2.0),
    (ROWS[",S"], "9", 2.0),
    (ROWS["9"], "<|eot_id|>", 2.0),
)
#: A norm makes a single value of `hidden_size` ones as large as the root of their number, 8; safe
#: and unsafe differ by a tenth of that.
UNSAFE_PROBABILITY: Final = 0.69


def guard_text(template: str = GUARD_TEMPLATE) -> TextAssets:
    return replace(llama3_text(), chat_template=template)


def write_guard(folder: Path, template: str = GUARD_TEMPLATE) -> Path:
    """A Hugging Face folder."""
    weights = random_weights(CONFIG)
    for name, weight in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight *= 0.01
        elif name.endswith("norm.weight"):
            weight.fill_(1)
    head, embedding = weights[LM_HEAD], weights[EMBEDDING]
    head *= 0.05
    places = {token: place for place, token in enumerate(dict.fromkeys(t for t, _, _ in _FOLLOWS))}
    for token, place in places.items():
        embedding[token] = 0
        embedding[token, place] = 1
        head[:, place] = 0
    for token, following, strength in _FOLLOWS:
        head[list(ROWS).index(following), places[token]] = strength
    return write_huggingface(folder, CONFIG, weights, guard_text(template))
