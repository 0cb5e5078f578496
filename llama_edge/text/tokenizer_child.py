"""In a child process: the `tokenizers` library, which trusts its file.

One number in a `tokenizer.json` makes the library ask for 100 GB and abort, another one makes it
panic, and a regular expression can run for hours. So no other process of ours parses or uses one.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Final

import tokenizers
from tokenizers import AddedToken, processors

from llama_edge.confined.child import RefusedError

#: One of them, which the text does not have, marks where a control token ends, in the tokenizer
#: that knows no control tokens: what comes after it is encoded as after one. They are Unicode's
#: noncharacters, less the one of `typed_text`.
_MARKS: Final = tuple(map(chr, range(0xFDD1, 0xFDF0)))

_opened: list[tokenizers.Tokenizer] = []


def answer(request: dict[str, Any]) -> Any:  # noqa: ANN401
    """One of `_OPERATIONS`, with the request's other fields as arguments."""
    return _OPERATIONS[request.pop("operation")](**request)


@contextmanager
def _library(what: str) -> Iterator[None]:
    """The library raises nothing narrower than `Exception`; its panics end the process."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        raise RefusedError(f"{what}: {error}") from error


def _open(
    text: str,
    added: Sequence[Mapping[str, Any]],
    removed: Sequence[str],
    begin: Sequence[str] | None,
    canonical: bool,
) -> dict[str, Any]:
    """Parse, change, and describe.

    Args:
        text: A `tokenizer.json`.
        added: Fields of `AddedToken`; one with the content of a token that is there replaces its
            flags, as transformers has it.
        removed: Contents of added tokens to take out.
        begin: What the post-processor puts in front of every text, which is one token or none.
        canonical: Serialize it in any case.
    """
    tokenizer = _parse(text)
    changed = canonical or tokenizer.truncation is not None or tokenizer.padding is not None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    before = _added_tokens(tokenizer)
    with _library("tokens cannot be added"):
        for fields in added:
            tokenizer.add_tokens([AddedToken(**fields)])
        if begin is not None:
            _set_begin(tokenizer, begin)
    if removed:
        value = json.loads(tokenizer.to_str())
        value["added_tokens"] = [t for t in value["added_tokens"] if t["content"] not in removed]
        tokenizer = _parse(json.dumps(value))
    after = _added_tokens(tokenizer)
    _opened[:] = [tokenizer]
    _plain.cache_clear()
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    with _library("the tokenizer cannot encode a letter and decode its tokens"):
        processed = tokenizer.encode("a").ids
        tokenizer.decode(sorted(vocabulary.values()))
    changed = changed or begin is not None or before != after
    return {
        "json": tokenizer.to_str() if changed else None,
        "added": after,
        "size": max(vocabulary.values(), default=-1) + 1,
        "processed": processed,
    }


def _parse(text: str) -> tokenizers.Tokenizer:
    with _library("not a tokenizer that this version of `tokenizers` reads"):
        return tokenizers.Tokenizer.from_str(text)


def _set_begin(tokenizer: tokenizers.Tokenizer, begin: Sequence[str]) -> None:
    if not begin:
        tokenizer.post_processor = None
        return
    (token,) = begin
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[f"{token}:0", "$A:0"],
        pair=[f"{token}:0", "$A:0", f"{token}:1", "$B:1"],
        special_tokens=[(token, tokenizer.token_to_id(token))],
    )


def _added_tokens(tokenizer: tokenizers.Tokenizer) -> list[dict[str, Any]]:
    return [
        {
            "id": number,
            "content": token.content,
            "special": token.special,
            "lstrip": token.lstrip,
            "rstrip": token.rstrip,
            "normalized": token.normalized,
            "single_word": token.single_word,
        }
        for number, token in sorted(tokenizer.get_added_tokens_decoder().items())
    ]


def _encode(text: str) -> list[int]:
    """Control tokens that the text spells are control tokens; nothing is added."""
    with _library("the tokenizer cannot encode the text"):
        ids: list[int] = _opened[0].encode(text, add_special_tokens=False).ids
    return ids


def _encode_plain(text: str, control_tokens: Sequence[str], after_control: bool) -> list[int]:
    """Control tokens that the text spells are text.

    Args:
        text: Without control tokens of its own.
        control_tokens: Those that are not special; special ones always are.
        after_control: Encode it as what comes after a control token, where a tokenizer may put no
            space in front of the first word.
    """
    mark = next((mark for mark in _MARKS if mark not in text), None)
    if mark is None:
        raise RefusedError("the text has all of Unicode's noncharacters U+FDD1 to U+FDEF")
    tokenizer = _plain(tuple(control_tokens), mark)
    with _library("the tokenizer cannot encode the text"):
        if not after_control:
            return list(tokenizer.encode(text, add_special_tokens=False).ids)
        return list(tokenizer.encode(mark + text, add_special_tokens=False).ids)[1:]


@lru_cache(maxsize=2)
def _plain(control_tokens: tuple[str, ...], mark: str) -> tokenizers.Tokenizer:
    """The tokenizer with every control token made special, and no special token recognized.

    `mark` becomes a token, with an id that the model does not have.
    """
    value = json.loads(_opened[0].to_str())
    for token in value["added_tokens"]:
        token["special"] = token["special"] or token["content"] in control_tokens
    # The library writes some tokenizers so that it does not read them again.
    tokenizer = _parse(json.dumps(value))
    tokenizer.add_tokens([AddedToken(mark, special=False, normalized=False)])
    tokenizer.encode_special_tokens = True
    return tokenizer


def _decode(ids: Sequence[int], skip_special_tokens: bool) -> str:
    with _library("the tokenizer cannot decode"):
        text: str = _opened[0].decode(ids, skip_special_tokens=skip_special_tokens)
    return text


def _ids(tokens: Sequence[str]) -> list[int | None]:
    return [_opened[0].token_to_id(token) for token in tokens]


def _tokens(ids: Sequence[int]) -> list[str | None]:
    return [_opened[0].id_to_token(number) for number in ids]


def _vocabulary() -> dict[str, int]:
    found: dict[str, int] = _opened[0].get_vocab(with_added_tokens=True)
    return found


def _tokens_within(texts: Sequence[str]) -> list[tuple[int, str]]:
    """Tokens whose text after a letter, where a decoder strips no space, is in one of the texts."""
    tokenizer = _opened[0]
    special = {number for number, token in tokenizer.get_added_tokens_decoder().items()}
    numbers = sorted(set(tokenizer.get_vocab(with_added_tokens=True).values()) - special)
    with _library("the tokenizer cannot decode its tokens"):
        letter = tokenizer.encode("a", add_special_tokens=False).ids
        before = len(tokenizer.decode(letter))
        decoded = tokenizer.decode_batch([[*letter, number] for number in numbers])
    added = ((number, text[before:]) for number, text in zip(numbers, decoded, strict=True))
    joined = "\0".join(texts)
    return [(n, text) for n, text in added if text and "\0" not in text and text in joined]


_OPERATIONS: Final[Mapping[str, Callable[..., Any]]] = {
    "open": _open,
    "encode": _encode,
    "encode_plain": _encode_plain,
    "decode": _decode,
    "ids": _ids,
    "tokens": _tokens,
    "tokens_within": _tokens_within,
    "vocabulary": _vocabulary,
}
