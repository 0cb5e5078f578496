"""Calibration text that a model wrote for itself, in a file that can be taken elsewhere.

Safetensors with one tensor, `tokens`, and in the metadata all that the text depends on. A file that
is there is used if this model's ids mean the same and the prompts were these; one that is not there
is written, and never in the place of another.
"""

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
import numpy as np
import torch
from msgspec import Meta
from torch import Tensor

from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.errors import OutputError, QuantizeError, UsageError
from llama_edge.core.files import explained, new_file
from llama_edge.core.json_files import canonical_json, parse_json_object
from llama_edge.core.regular import read_regular
from llama_edge.formats.quantized_checkpoint import write_safetensors
from llama_edge.quantize.calibration import MIN_TOKENS, CalibrationSet
from llama_edge.quantize.calibration_prompts import DOCUMENTS, REQUESTS
from llama_edge.text.native import open_tokenizer
from llama_edge.text.text_assets import TOKENIZER_FILE

FORMAT: Final = "llama-edge calibration text"
FORMAT_VERSION: Final = 1
#: Two million tokens; a text that is written here has 36,864, in 288 KiB.
MAX_FILE_BYTES: Final = 16 << 20
_MAX_HEADER_BYTES: Final = 64 << 10
_TOKENS: Final = "tokens"
_ITEM_BYTES: Final = 8

Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Length = Annotated[int, Meta(ge=1)]


class _Metadata(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """As it is in the file, where every value is a text."""

    format: str
    format_version: int
    #: of the source that wrote the text: `QuantizedCheckpoint.source_sha256`
    model_sha256: Sha256
    #: see `_Binding`
    seed: int
    prompts_sha256: Sha256
    chat_template_sha256: Sha256
    vocabulary_sha256: Sha256


class _Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    dtype: Literal["I64"]
    shape: tuple[Length, Length]
    data_offsets: tuple[int, int]


class _Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    metadata: _Metadata = msgspec.field(name="__metadata__")
    tokens: _Entry


@dataclass(frozen=True, slots=True, kw_only=True)
class _Binding:
    """What a text must have in common with the run that uses it."""

    seed: int
    #: of the requests and documents that the text begins with
    prompts_sha256: str
    #: of the template that the requests went through; of the empty text where there is none
    chat_template_sha256: str
    #: of the ids that occur, and the token that each is; a fine-tune may have more tokens
    vocabulary_sha256: str

    @classmethod
    def of(cls, checkpoint: Checkpoint, tokens_NT: Tensor, seed: int) -> "_Binding":
        vocabulary = open_tokenizer(TOKENIZER_FILE, checkpoint.text.tokenizer_json).vocabulary()
        names = {number: token for token, number in vocabulary.items()}
        used = [[number, names.get(number)] for number in sorted({*tokens_NT.flatten().tolist()})]
        return cls(
            seed=seed,
            prompts_sha256=_sha256(canonical_json([REQUESTS, DOCUMENTS])),
            chat_template_sha256=_sha256(checkpoint.text.chat_template or ""),
            vocabulary_sha256=_sha256(canonical_json(used)),
        )


@dataclass(frozen=True, slots=True)
class TextCache:
    """The file of `--text-cache`."""

    path: Path

    def read(self, checkpoint: Checkpoint, seed: int) -> CalibrationSet | None:
        """The text in the file; None: there is no file yet, and one can be written.

        Args:
            checkpoint: The model that is calibrated on it.
            seed: The recipe's.

        Raises:
            QuantizeError: It is no such file, is damaged, or is for another model or recipe.
            OutputError: No file can be written there.
        """
        if not os.path.lexists(self.path):
            self._require_place()
            return None
        data = read_regular(self.path, MAX_FILE_BYTES, QuantizeError)
        header, tokens = _parse(data, self.path)
        self._check(header.metadata, tokens, checkpoint, seed)
        found = hashlib.sha256(data).hexdigest()
        writer = header.metadata.model_sha256
        origin = f"text cache with SHA-256 {found}: self-generated, seed {seed}, by model {writer}"
        return CalibrationSet(tokens=tokens, origin=origin)

    def _require_place(self) -> None:
        """Known before minutes of work."""
        folder = self.path.parent
        if not folder.is_dir():
            raise OutputError(f"{self.path}: there is no folder {folder}; make it first")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise OutputError(f"{self.path}: {folder} is not writable; choose another --text-cache")

    def _check(
        self, metadata: _Metadata, tokens_NT: Tensor, checkpoint: Checkpoint, seed: int
    ) -> None:
        config = checkpoint.config
        smallest, largest = int(tokens_NT.min()), int(tokens_NT.max())
        outside = smallest if smallest < 0 else largest
        if not 0 <= outside < config.vocab_size:
            raise QuantizeError(
                f"{self.path}: has the token {outside}; the model has {config.vocab_size}"
            )
        longest = config.max_position_embeddings
        if tokens_NT.shape[1] > longest:
            raise QuantizeError(
                f"{self.path}: has sequences of {tokens_NT.shape[1]} tokens; the model has "
                f"{longest} positions"
            )
        given = _Binding.of(checkpoint, tokens_NT, seed)
        if metadata.seed != seed:
            raise QuantizeError(
                f"{self.path}: was written with seed {metadata.seed}, and the recipe's is {seed}; "
                f"give --seed {metadata.seed}, or name another file"
            )
        for same, what in (
            (metadata.vocabulary_sha256 == given.vocabulary_sha256, "another tokenizer's ids"),
            (metadata.prompts_sha256 == given.prompts_sha256, "another version's prompts"),
            (
                metadata.chat_template_sha256 == given.chat_template_sha256,
                "another chat template's requests",
            ),
        ):
            if not same:
                raise QuantizeError(
                    f"{self.path}: has {what}; name a file that is not there, and the model writes "
                    "its own text into it"
                )

    def keep(
        self, checkpoint: Checkpoint, written: CalibrationSet, seed: int, model_sha256: str
    ) -> CalibrationSet:
        """Put a text that was just written into the file, and take it from there.

        Args:
            checkpoint: The model that wrote it.
            written: The text.
            seed: It was written with.
            model_sha256: Of the model's weights.

        Raises:
            OutputError: The file cannot be written.
            QuantizeError: Another program has put another file there meanwhile.
        """
        binding = _Binding.of(checkpoint, written.tokens, seed)
        metadata = {
            "format": FORMAT,
            "format_version": str(FORMAT_VERSION),
            "model_sha256": model_sha256,
            "seed": str(binding.seed),
            "prompts_sha256": binding.prompts_sha256,
            "chat_template_sha256": binding.chat_template_sha256,
            "vocabulary_sha256": binding.vocabulary_sha256,
        }
        layout = {_TOKENS: ("I64", tuple(written.tokens.shape))}
        with explained(self.path), suppress(FileExistsError), new_file(self.path) as unfinished:
            write_safetensors(unfinished, layout, ((_TOKENS, written.tokens),), metadata)
        kept = self.read(checkpoint, seed)
        if kept is None:
            raise OutputError(f"{self.path}: another program has removed it; run this again")
        return kept


#: What to calibrate on: the user's files, of which there may be none; or text that was kept.
Texts = Sequence[Path] | TextCache


def calibration_texts(files: Sequence[Path], cache: Path | None) -> Texts:
    """`--calibration` and `--text-cache` as one.

    Raises:
        UsageError: Both are given.
    """
    if files and cache is not None:
        raise UsageError(
            f"--text-cache {cache}: keeps the text that the model writes for itself, and with "
            f"--calibration {files[0]} it writes none; leave one of the two out"
        )
    return tuple(files) if cache is None else TextCache(cache)


def _parse(data: bytes, path: Path) -> tuple[_Header, Tensor]:
    """The header, and the tokens (N, T), of an untrusted file."""
    start = 8 + int.from_bytes(data[:8], "little")
    if not 8 < start <= min(len(data), 8 + _MAX_HEADER_BYTES):
        raise QuantizeError(
            f"{path}: is no safetensors file with a header of at most {_MAX_HEADER_BYTES} bytes; "
            "--text-cache takes a file that an earlier run wrote, or one that is not there"
        )
    value = parse_json_object(data[8:start], str(path), QuantizeError)
    try:
        header = msgspec.convert(value, _Header, strict=False)
    except msgspec.ValidationError as error:
        raise QuantizeError(f"{path}: is no calibration text of llama-edge: {error}") from error
    form = header.metadata.format, header.metadata.format_version
    if form != (FORMAT, FORMAT_VERSION):
        raise QuantizeError(
            f"{path}: says format {form[0]!a:.100}, version {form[1]}; {FORMAT!r}, version "
            f"{FORMAT_VERSION}, is read here"
        )
    count, length = header.tokens.shape
    size = _ITEM_BYTES * count * length
    if header.tokens.data_offsets != (0, size) or len(data) != start + size:
        raise QuantizeError(
            f"{path}: is damaged: {count} x {length} tokens take {size} bytes after the header; "
            f"there are {len(data) - start}"
        )
    if count * length < MIN_TOKENS:
        raise QuantizeError(
            f"{path}: has {count * length} tokens; at least {MIN_TOKENS} are needed"
        )
    numbers = np.frombuffer(data, "<i8", offset=start).reshape(count, length)
    return header, torch.from_numpy(numbers.astype(np.int64))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
