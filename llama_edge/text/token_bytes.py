"""The bytes that each token stands for: what a grammar reads, since text is cut anywhere."""

from typing import Final

import msgspec

from llama_edge.core.errors import TokenizerError
from llama_edge.text.native import NativeTokenizer

_SPACE: Final = "▁"
#: How many tokens are decoded by the library itself, to compare.
_COMPARED: Final = 64


class _Decoder(msgspec.Struct, frozen=True):
    """A `decoder` of a tokenizer.json; other fields do not matter here."""

    type: str = ""
    decoders: tuple["_Decoder", ...] = ()


class _File(msgspec.Struct, frozen=True):
    decoder: _Decoder | None = None


def byte_letters() -> dict[int, str]:
    """The printable letter that stands for each byte: itself, or one from U+0100 on.

    Source: `bytes_to_unicode` in GPT-2's `encoder.py`.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    letters |= {byte: chr(0x100 + place) for place, byte in enumerate(others)}
    return dict(sorted(letters.items()))


def token_bytes(tokenizer: NativeTokenizer) -> list[bytes]:
    """Bytes by id; empty for added tokens and for ids without a token.

    Added tokens are left out: the special ones are no text, and what the others spell can be
    written with ordinary tokens.

    Raises:
        TokenizerError: Its decoder is of another kind than byte-level and metaspace.
    """
    kinds = _kinds(tokenizer.tokenizer_json)
    found = [b""] * tokenizer.size
    if "ByteLevel" in kinds:
        letters = {letter: byte for byte, letter in byte_letters().items()}
        for token, number in tokenizer.vocabulary().items():
            if number not in tokenizer.added and all(letter in letters for letter in token):
                found[number] = bytes(map(letters.__getitem__, token))
    elif "Metaspace" in kinds or "ByteFallback" in kinds:
        for token, number in tokenizer.vocabulary().items():
            if number not in tokenizer.added:
                found[number] = _metaspace_bytes(token)
    else:
        raise TokenizerError(
            f"tokenizer.json: the decoder is {', '.join(sorted(kinds)) or 'absent'}; a grammar "
            "needs the bytes of tokens, which are known for ByteLevel and Metaspace"
        )
    _compare(tokenizer, found)
    return found


def drops_first_space(tokenizer: NativeTokenizer, tokens: list[bytes]) -> bool:
    """Whether a space in front of a text is lost when its tokens are decoded."""
    number = next((i for i, token in enumerate(tokens) if token[:1] == b" " and token[1:]), None)
    return number is not None and not tokenizer.decode([number]).startswith(" ")


def _kinds(tokenizer_json: str) -> set[str]:
    try:
        decoder = msgspec.json.decode(tokenizer_json.encode(), type=_File).decoder
    except (msgspec.ValidationError, msgspec.DecodeError, RecursionError) as error:
        raise TokenizerError(f"tokenizer.json: decoder: {error}") from error
    if decoder is None:
        return set()
    return {decoder.type, *(inner.type for inner in decoder.decoders)} - {"Sequence"}


def _metaspace_bytes(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return bytes([int(token[3:5], 16)])
        except ValueError:
            pass
    return token.replace(_SPACE, " ").encode()


def _compare(tokenizer: NativeTokenizer, tokens: list[bytes]) -> None:
    """Decode some tokens with the library: a decoder may do more than its name says."""
    whole = [number for number, token in enumerate(tokens) if token and _is_text(token)]
    sample = whole[:: max(1, len(whole) // _COMPARED)]
    expected = b"".join(tokens[number] for number in sample).decode()
    found = tokenizer.decode(sample)
    if found not in (expected, expected.removeprefix(" ")):
        raise TokenizerError(
            f"tokenizer.json: tokens are decoded as {found[:40]!r}, not as their bytes "
            f"{expected[:40]!r}; no grammar can follow this tokenizer"
        )


def _is_text(token: bytes) -> bool:
    try:
        token.decode()
    except UnicodeDecodeError:
        return False
    return True


def greedy(tokens: dict[bytes, int], text: bytes, longest: int) -> list[int]:
    """Ids that spell `text`, the longest token first; a byte without a token is left out."""
    ids: list[int] = []
    place = 0
    while place < len(text):
        for end in range(min(len(text), place + longest), place, -1):
            number = tokens.get(text[place:end])
            if number is not None:
                ids.append(number)
                place = end
                break
        else:
            place += 1
    return ids
