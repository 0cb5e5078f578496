"""Models that people take to phones: what each is, its licence's duties, and what was run of it.

Any model of these architectures is read; a row says what is known of one before it is downloaded.
Ids, sizes and layouts: `sku_list.py` in Meta's `llama-models`, and the models' own cards.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from llama_edge.core.errors import UnknownNameError


@dataclass(frozen=True, slots=True, kw_only=True)
class Licence:
    """What whoever ships a model owes; not legal advice."""

    name: str
    url: str
    #: to be shown to users, or empty
    shown: str = ""
    #: a line of a file NOTICE next to copies, or empty
    notice: str = ""
    #: what the name of a model that is derived from it begins with, or empty
    name_prefix: str = ""
    #: rules of use that go with it, or empty
    policy_url: str = ""


APACHE: Final = Licence(name="Apache-2.0", url="https://www.apache.org/licenses/LICENSE-2.0")
LLAMA_32: Final = Licence(
    name="Llama 3.2 Community License",
    url="https://www.llama.com/llama3_2/license/",
    shown="Built with Llama",
    notice=(
        "Llama 3.2 is licensed under the Llama 3.2 Community License, Copyright © Meta Platforms, "
        "Inc. All Rights Reserved."
    ),
    name_prefix="Llama",
    policy_url="https://www.llama.com/llama3_2/use-policy/",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """One row."""

    name: str
    #: on Hugging Face; what `export` takes as MODEL
    id: str
    #: layers x width, and parameters or what is special
    shape: str
    licence: Licence
    #: the form of a dialog
    template: str
    #: what ends an answer
    stop_tokens: tuple[str, ...]
    #: what was run here, and how to run it again
    verified: str


_LLAMA_3: Final = "Llama 3: headers and <|eot_id|>; pythonic and JSON tool calls"
_LLAMA_ENDS: Final = ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>")
_BASE: Final = "none: it completes text"
_CHATML: Final = "ChatML: <|im_start|> and <|im_end|>"
_BY_SHAPE: Final = (
    "by shape: random weights of this shape through all targets (benchmarks/scale.py), its "
    "tokenizer and dialogs against Meta's (tests/checkpoints); the weights themselves were not here"
)
_BY_LAYOUT: Final = (
    "by layout: random weights in Meta's file format against Meta's own loader "
    "(tests/checkpoints/test_meta_quantized.py); the weights themselves were not here"
)
_1B: Final = "16 layers of 2048, 1.24 billion, tied tables"
_3B: Final = "28 layers of 3072, 3.21 billion, tied tables"

_ROWS: Final = (
    KnownModel(
        name="llama-3.2-1b",
        id="meta-llama/Llama-3.2-1B",
        shape=_1B,
        licence=LLAMA_32,
        template=_BASE,
        stop_tokens=("<|end_of_text|>",),
        verified=_BY_SHAPE,
    ),
    KnownModel(
        name="llama-3.2-1b-instruct",
        id="meta-llama/Llama-3.2-1B-Instruct",
        shape=_1B,
        licence=LLAMA_32,
        template=_LLAMA_3,
        stop_tokens=_LLAMA_ENDS,
        verified=_BY_SHAPE,
    ),
    KnownModel(
        name="llama-3.2-1b-instruct-spinquant",
        id="meta-llama/Llama-3.2-1B-Instruct-SpinQuant_INT4_EO8",
        shape=f"{_1B}; int4 values of Meta's, which every target keeps",
        licence=LLAMA_32,
        template=_LLAMA_3,
        stop_tokens=_LLAMA_ENDS,
        verified=_BY_LAYOUT,
    ),
    KnownModel(
        name="llama-3.2-1b-instruct-qat-lora",
        id="meta-llama/Llama-3.2-1B-Instruct-QLORA_INT4_EO8",
        shape=f"{_1B}; int4 with adapters of rank 16, merged and rounded again",
        licence=LLAMA_32,
        template=_LLAMA_3,
        stop_tokens=_LLAMA_ENDS,
        verified=_BY_LAYOUT,
    ),
    KnownModel(
        name="llama-3.2-3b",
        id="meta-llama/Llama-3.2-3B",
        shape=_3B,
        licence=LLAMA_32,
        template=_BASE,
        stop_tokens=("<|end_of_text|>",),
        verified=_BY_SHAPE,
    ),
    KnownModel(
        name="llama-3.2-3b-instruct",
        id="meta-llama/Llama-3.2-3B-Instruct",
        shape=_3B,
        licence=LLAMA_32,
        template=_LLAMA_3,
        stop_tokens=_LLAMA_ENDS,
        verified=_BY_SHAPE,
    ),
    KnownModel(
        name="llama-3.2-3b-instruct-spinquant",
        id="meta-llama/Llama-3.2-3B-Instruct-SpinQuant_INT4_EO8",
        shape=f"{_3B}; int4 values of Meta's, which every target keeps",
        licence=LLAMA_32,
        template=_LLAMA_3,
        stop_tokens=_LLAMA_ENDS,
        verified=_BY_LAYOUT,
    ),
    KnownModel(
        name="llama-3.2-3b-instruct-qat-lora",
        id="meta-llama/Llama-3.2-3B-Instruct-QLORA_INT4_EO8",
        shape=f"{_3B}; int4 with adapters of rank 16, merged and rounded again",
        licence=LLAMA_32,
        template=_LLAMA_3,
        stop_tokens=_LLAMA_ENDS,
        verified=_BY_LAYOUT,
    ),
    KnownModel(
        name="llama-guard-3-1b",
        id="meta-llama/Llama-Guard-3-1B",
        shape="16 layers of 2048, 1.50 billion, a head of its own",
        licence=LLAMA_32,
        template="Llama Guard 3: one task with hazard categories; the answer is safe or unsafe",
        stop_tokens=_LLAMA_ENDS,
        verified="by shape: random weights of this shape are planned and written (synth, plan); "
        "its prompt as published, character by character; the weights themselves were not here",
    ),
    KnownModel(
        name="llama-guard-3-1b-int4",
        id="meta-llama/Llama-Guard-3-1B-INT4",
        shape="12 layers of 2048, feed-forward 6400, an output of 20 tokens; published as a .pte",
        licence=LLAMA_32,
        template="Llama Guard 3: one task with hazard categories; the answer is safe or unsafe",
        stop_tokens=_LLAMA_ENDS,
        verified="by shape: small checkpoints with a head of 20 tokens, through all targets, the "
        "gate and the guard command; Meta's file is a finished .pte, from which nothing is "
        "exported",
    ),
    KnownModel(
        name="smollm2-135m-instruct",
        id="HuggingFaceTB/SmolLM2-135M-Instruct",
        shape="30 layers of 576, 135 million, tied tables",
        licence=APACHE,
        template=_CHATML,
        stop_tokens=("<|im_end|>",),
        verified="with its weights, through all targets and the gate (make demo); it is the "
        "built-in smollm2-135m",
    ),
    KnownModel(
        name="smollm2-360m-instruct",
        id="HuggingFaceTB/SmolLM2-360M-Instruct",
        shape="32 layers of 960, 362 million, tied tables",
        licence=APACHE,
        template=_CHATML,
        stop_tokens=("<|im_end|>",),
        verified="not run here; the tokenizer and the architecture are those of the 135M",
    ),
    KnownModel(
        name="smollm2-1.7b-instruct",
        id="HuggingFaceTB/SmolLM2-1.7B-Instruct",
        shape="24 layers of 2048, 1.71 billion, tied tables",
        licence=APACHE,
        template=_CHATML,
        stop_tokens=("<|im_end|>",),
        verified="not run here; the tokenizer and the architecture are those of the 135M",
    ),
    KnownModel(
        name="qwen2.5-0.5b-instruct",
        id="Qwen/Qwen2.5-0.5B-Instruct",
        shape="24 layers of 896, 494 million, tied tables, biases of q, k and v",
        licence=APACHE,
        template=_CHATML,
        stop_tokens=("<|im_end|>", "<|endoftext|>"),
        verified="by architecture: random checkpoints against transformers, through all targets; "
        "the weights themselves were not here",
    ),
    KnownModel(
        name="qwen3-0.6b",
        id="Qwen/Qwen3-0.6B",
        shape="28 layers of 1024, 596 million, tied tables, norms of queries and keys",
        licence=APACHE,
        template=f"{_CHATML}; thinks between <think> and </think>",
        stop_tokens=("<|im_end|>", "<|endoftext|>"),
        verified="by architecture: random checkpoints against transformers, through all targets; "
        "the weights themselves were not here",
    ),
)

KNOWN_MODELS: Final[Mapping[str, KnownModel]] = {row.name: row for row in _ROWS}


def get_known_model(name: str) -> KnownModel:
    """The row with that name or id; upper and lower case are the same.

    Raises:
        UnknownNameError: There is none; the message lists the names.
    """
    asked = name.lower()
    found = next((row for row in _ROWS if asked in (row.name, row.id.lower())), None)
    if found is None:
        raise UnknownNameError(
            f"{name}: no row of the table; any Llama, Qwen2.5 or Qwen3 can be given to export. "
            f"There are {', '.join(KNOWN_MODELS)}"
        )
    return found
