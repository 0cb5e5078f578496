"""SentencePiece BPE models (Llama 2, TinyLlama, Mistral 7B) as a `tokenizer.json`.

A piece has a score instead of a place in a list of merges: the pair whose union scores highest is
merged first. Source of the fields: `sentencepiece_model.proto`.
"""

import base64
import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final

from llama_edge.core.errors import TokenizerError
from llama_edge.text.native import AddedToken

_SPACE: Final = "\u2581"
#: The longest of Llama 2 has 16 characters; work grows with the square.
MAX_PIECE_CHARACTERS: Final = 256
_BPE: Final = 2
_MODEL_TYPES: Final = {1: "unigram", 2: "BPE", 3: "word", 4: "char"}


class PieceKind(IntEnum):
    """What a piece is; GGUF's token types have the same numbers."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


_ADDED: Final = (PieceKind.UNKNOWN, PieceKind.CONTROL, PieceKind.USER_DEFINED)


@dataclass(frozen=True, slots=True, kw_only=True)
class SentencePieces:
    """A vocabulary in id order, and how a text is prepared for it."""

    tokens: Sequence[str]
    scores: Sequence[float]
    kinds: Sequence[int]
    #: a space is put in front of a text
    add_prefix: bool = True
    #: and in front of what comes after a control token
    prefix_after_control: bool = False
    #: spaces at the ends go, and of several in a row all but one
    remove_extra_spaces: bool = False
    #: a compiled map of characters; empty: none
    charsmap: bytes = b""
    #: ids by role, where the model has them
    begin: int | None = None
    end: int | None = None


def read_sentencepiece(data: bytes, where: str) -> SentencePieces:
    """Parse a `tokenizer.model`.

    Args:
        data: The whole file.
        where: Names it in messages.

    Raises:
        TokenizerError: It is damaged, no SentencePiece model, or not a BPE one.
    """
    try:
        fields = list(_fields(data))
        pieces = [_piece(value) for number, value in fields if number == 1]
        trainer = dict(_fields(_last(fields, 2)))
        normalizer = dict(_fields(_last(fields, 3)))
    except (ValueError, TypeError, IndexError, struct.error) as error:
        raise TokenizerError(
            f"{where}: is neither a SentencePiece model nor a tiktoken file of Llama 3: {error}"
        ) from error
    kind = _number(trainer.get(3, 1))
    if not pieces or kind != _BPE:
        raise TokenizerError(
            f"{where}: is a SentencePiece model of type {_MODEL_TYPES.get(kind, kind)!r} with "
            f"{len(pieces)} pieces; type 'BPE' is supported: save the tokenizer with transformers "
            "as tokenizer.json"
        )
    charsmap = normalizer.get(2, b"")
    return SentencePieces(
        tokens=[token for token, _, _ in pieces],
        scores=[score for _, score, _ in pieces],
        kinds=[kind for _, _, kind in pieces],
        add_prefix=bool(normalizer.get(3, 1)),
        remove_extra_spaces=bool(normalizer.get(4, 1)),
        charsmap=charsmap if isinstance(charsmap, bytes) else b"",
        begin=_id(trainer.get(41, 1), len(pieces)),
        end=_id(trainer.get(42, 2), len(pieces)),
    )


def _number(value: int | bytes) -> int:
    return value if isinstance(value, int) else 0


def _id(value: object, count: int) -> int | None:
    """A role's id; -1, which is written as a large unsigned number, is none."""
    return value if isinstance(value, int) and 0 <= value < count else None


def _last(fields: Sequence[tuple[int, Any]], number: int) -> bytes:
    value = next((value for key, value in reversed(fields) if key == number), b"")
    if not isinstance(value, bytes):
        raise TypeError(f"field {number} is no message")
    return value


def _piece(value: object) -> tuple[str, float, int]:
    if not isinstance(value, bytes):
        raise TypeError("a piece is no message")
    fields = dict(_fields(value))
    token, score, kind = fields.get(1, b""), fields.get(2, b"\0" * 4), fields.get(3, 1)
    if not isinstance(token, bytes) or not isinstance(score, bytes) or not isinstance(kind, int):
        raise TypeError("a piece has a field of another type")
    return token.decode(), struct.unpack("<f", score)[0], kind


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field of a protobuf message.

    Raises:
        ValueError: The bytes are no message.
        IndexError: They end inside of a field.
    """
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        kind = key & 7
        if kind == 0:
            value, place = _varint(data, place)
            yield key >> 3, value
            continue
        size = {1: 8, 5: 4}.get(kind)
        if kind == 2:
            size, place = _varint(data, place)
        if size is None or size > len(data) - place:
            raise ValueError(
                f"a field at byte {place} goes beyond the end, or has wire type {kind}"
            )
        yield key >> 3, data[place : place + size]
        place += size


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError(f"a number at byte {place} has more than ten bytes")


@dataclass(frozen=True, slots=True)
class _Merges:
    """Every pair of pieces that makes a piece, the highest score first."""

    pieces: SentencePieces
    where: str
    ids: dict[str, int] = field(default_factory=dict)

    def sorted(self) -> list[tuple[str, str]]:
        pieces = self.pieces
        for number, token in enumerate(pieces.tokens):
            self.ids.setdefault(token, number)
        found: list[tuple[float, int, int, int, tuple[str, str]]] = []
        for token, number in self.ids.items():
            if pieces.kinds[number] != PieceKind.NORMAL:
                continue
            if len(token) > MAX_PIECE_CHARACTERS:
                raise TokenizerError(
                    f"{self.where}: a piece has {len(token)} characters; at most "
                    f"{MAX_PIECE_CHARACTERS} are read"
                )
            for cut in range(1, len(token)):
                left, right = token[:cut], token[cut:]
                if left in self.ids and right in self.ids:
                    rank = (-pieces.scores[number], number, self.ids[left], self.ids[right])
                    found.append((*rank, (left, right)))
        found.sort(key=lambda entry: entry[:4])
        return [pair for *_, pair in found]


def sentencepiece_json(pieces: SentencePieces, where: str) -> str:
    """The model as a `tokenizer.json`, with byte fallback.

    Args:
        pieces: The vocabulary; a token that is there twice keeps its first id.
        where: Names the source in messages.

    Raises:
        TokenizerError: A piece is too long, or there is no piece for unknown characters.
    """
    unknown = [n for n, kind in enumerate(pieces.kinds) if kind == PieceKind.UNKNOWN]
    if not unknown:
        raise TokenizerError(f"{where}: has no piece for unknown characters")
    vocabulary: dict[str, int] = {}
    for number, (token, kind) in enumerate(zip(pieces.tokens, pieces.kinds, strict=True)):
        # A symbol of the user's is found in the text as it is, before spaces are replaced.
        is_symbol = kind == PieceKind.USER_DEFINED
        vocabulary.setdefault(token.replace(_SPACE, " ") if is_symbol else token, number)
    added = [
        {"id": number, **_added(token, pieces.kinds[number])}
        for token, number in vocabulary.items()
        if pieces.kinds[number] in (PieceKind.UNKNOWN, PieceKind.CONTROL, PieceKind.USER_DEFINED)
    ]
    value = {
        "version": "1.0",
        "added_tokens": sorted(added, key=lambda token: token["id"]),
        "normalizer": _normalizer(pieces),
        "pre_tokenizer": _pre_tokenizer(pieces),
        "decoder": _decoder(pieces),
        "model": {
            "type": "BPE",
            "unk_token": pieces.tokens[unknown[0]],
            "fuse_unk": True,
            "byte_fallback": PieceKind.BYTE in pieces.kinds,
            "vocab": vocabulary,
            "merges": _Merges(pieces, where).sorted(),
        },
    }
    return json.dumps(value, ensure_ascii=False)


def _added(token: str, kind: int) -> dict[str, Any]:
    special = kind != PieceKind.USER_DEFINED
    made = AddedToken(content=token, special=special)
    return {
        "content": made.content,
        "single_word": made.single_word,
        "lstrip": made.lstrip,
        "rstrip": made.rstrip,
        "normalized": made.normalized,
        "special": made.special,
    }


def _normalizer(pieces: SentencePieces) -> dict[str, Any] | None:
    steps: list[dict[str, Any]] = []
    if pieces.charsmap:
        charsmap = base64.b64encode(pieces.charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if pieces.remove_extra_spaces:
        steps.append({"type": "Strip", "strip_left": True, "strip_right": True})
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    if not pieces.add_prefix or pieces.prefix_after_control:
        if pieces.add_prefix:
            steps.append({"type": "Prepend", "prepend": _SPACE})
        steps.append({"type": "Replace", "pattern": {"String": " "}, "content": _SPACE})
    return {"type": "Sequence", "normalizers": steps} if steps else None


def _pre_tokenizer(pieces: SentencePieces) -> dict[str, Any] | None:
    if not pieces.add_prefix or pieces.prefix_after_control:
        return None
    return {
        "type": "Metaspace",
        "replacement": _SPACE,
        "prepend_scheme": "first",
        "split": False,
    }


def _decoder(pieces: SentencePieces) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if pieces.add_prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}
