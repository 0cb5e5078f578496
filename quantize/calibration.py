"""Calibration tokens: text that the model writes itself from seeded prompts, or the user's own.

Self-generated text needs no data set and leaks none (LLM-QAT, Liu et al., 2023, section 3.1): what
the model says at temperature 1 is its own distribution, which is what rounding must keep.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.errors import QuantizeError
from llama_edge.core.model_config import ModelConfig
from llama_edge.core.packing import tensor_sha256
from llama_edge.core.progress import Progress
from llama_edge.core.quantized import CalibrationRecord
from llama_edge.core.regular import MAX_TEXT_BYTES, decode_text, plain_newlines, read_regular
from llama_edge.models.weights import block_linear_weights
from llama_edge.quantize.arithmetic import Arithmetic
from llama_edge.quantize.calibration_prompts import PROMPTS, CalibrationPrompt
from llama_edge.quantize.text_writer import continue_prompts
from llama_edge.text.tokenizer import Tokenizer

#: Tokens of one sequence. Many short sequences cost less than few long ones and kept more: on
#: SmolLM2, 32 x 256 against 16 x 512.
LENGTH: Final = 256
#: Of a model with so many weights in its linears: each token costs it more, and rounding less.
LARGE: Final = 500_000_000
LENGTH_OF_LARGE: Final = 144
SEQUENCES: Final = len(PROMPTS)
#: Fewer tokens than a group of weights say nothing about it.
MIN_TOKENS: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationSet:
    """Token ids int64 (N, T), and where they come from."""

    tokens: Tensor
    #: "self-generated, seed 0" or the names of the files
    origin: str

    def record(self) -> CalibrationRecord:
        """What is written down of it."""
        sequences, length = self.tokens.shape
        return CalibrationRecord(
            origin=self.origin,
            sequences=sequences,
            length=length,
            sha256=tensor_sha256(self.tokens),
        )


def sequence_length(config: ModelConfig) -> int:
    """Tokens of one sequence that a model of this shape writes."""
    linears = config.num_hidden_layers * block_linear_weights(config)
    length = LENGTH if linears < LARGE else LENGTH_OF_LARGE
    return min(length, config.max_position_embeddings)


def generate_calibration(
    checkpoint: Checkpoint,
    seed: int,
    progress: Progress,
    arithmetic: Arithmetic,
    length: int | None = None,
) -> CalibrationSet:
    """Let the full-precision model continue each of our prompts at temperature 1.

    Args:
        checkpoint: Full precision, with a whole head.
        seed: Decides what is sampled.
        progress: Told how far it is.
        arithmetic: Of products, and where they are computed.
        length: Tokens of a sequence, of which a prompt takes at most half; `sequence_length` when
            None.
    """
    length = sequence_length(checkpoint.config) if length is None else length
    prompts = _encode_prompts(checkpoint, length // 2)
    rows = continue_prompts(checkpoint, prompts, length, seed, arithmetic, progress)
    return CalibrationSet(tokens=rows, origin=f"self-generated, seed {seed}")


def _encode_prompts(checkpoint: Checkpoint, longest: int) -> list[list[int]]:
    tokenizer = Tokenizer(checkpoint.text)
    return [begin_sequence(tokenizer, prompt)[:longest] for prompt in PROMPTS]


def begin_sequence(tokenizer: Tokenizer, prompt: CalibrationPrompt) -> list[int]:
    """The tokens that the model is given; a base model reads a request as a document."""
    if prompt.is_request and tokenizer.has_chat_template:
        return tokenizer.encode_chat([{"role": "user", "content": prompt.text}])
    return tokenizer.encode(prompt.text)


def read_calibration(
    checkpoint: Checkpoint, paths: Sequence[Path], length: int = LENGTH
) -> CalibrationSet:
    """The user's own text, cut into windows of `length` tokens; what is left over is not used.

    Raises:
        QuantizeError: A file is not UTF-8 text, or all of them together are too short.
    """
    tokenizer = Tokenizer(checkpoint.text)
    tokens: list[int] = []
    digest = hashlib.sha256()
    for path in paths:
        data = read_regular(path, MAX_TEXT_BYTES, QuantizeError)
        digest.update(data)
        tokens += tokenizer.encode(plain_newlines(decode_text(data, str(path), QuantizeError)))
    if len(tokens) < MIN_TOKENS:
        raise QuantizeError(
            f"{', '.join(map(str, paths))}: {len(tokens)} tokens of calibration text; at least "
            f"{MIN_TOKENS} are needed and about {LENGTH * SEQUENCES} are good"
        )
    window = min(length, len(tokens))
    count = len(tokens) // window
    windows = torch.tensor(tokens[: count * window]).view(count, window)
    return CalibrationSet(tokens=windows, origin=f"text with SHA-256 {digest.hexdigest()}")
