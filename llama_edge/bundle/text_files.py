"""Each text file by itself: what a program that reads only this one would believe.

`read_text_assets` gathers end tokens from several files, as this project's programs do. Others read
one: transformers `generation_config.json`, chat front ends `tokenizer_config.json`. Where the files
disagree, one of these programs does not stop.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from llama_edge.bundle.contract import END_TOKENS_PLACE, check_end_tokens
from llama_edge.bundle.finding_codes import ContractFinding
from llama_edge.bundle.manifest import MANIFEST_FILE
from llama_edge.core.errors import TokenizerError
from llama_edge.core.json_files import read_json_object
from llama_edge.core.text_assets import TextAssets
from llama_edge.text.contract import GOLDEN_CHATS
from llama_edge.text.end_tokens import end_tokens
from llama_edge.text.native import NativeTokenizer, open_tokenizer
from llama_edge.text.special_tokens import TOKENIZER_CONFIG_FILE
from llama_edge.text.text_assets import (
    GENERATION_CONFIG_FILE,
    TOKENIZER_FILE,
    main_end_token,
    read_tokenizer_json,
    rendered_form,
)
from llama_edge.text.tokenizer import Tokenizer

_CONTROL_TOKEN: Final = re.compile(r"<\|[A-Za-z0-9_]+\|>")
_MAIN_END_PLACE: Final = f"{TOKENIZER_CONFIG_FILE}: eos_token"


def optional_json(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one where there is no such file.

    Raises:
        TokenizerError: It is there and damaged.
    """
    return read_json_object(path, TokenizerError) if path.is_file() else {}


def check_end_token_files(
    folder: Path, text: TextAssets, expected: Sequence[int]
) -> Iterator[ContractFinding]:
    """The manifest's end tokens against the vocabulary, and each config file against them.

    Args:
        folder: Where the files lie.
        text: Read from it.
        expected: Every end token of the model, as the manifest lists them.

    Raises:
        TokenizerError: A file is damaged.
    """
    tokenizer = open_tokenizer(TOKENIZER_FILE, text.tokenizer_json)
    form = rendered_form(text.chat_template, text.special_tokens)
    implied = end_tokens(tokenizer, text.chat_template, form, expected).ids
    left_out = set(implied) - set(expected)
    if left_out:  # by the manifest, and by none of the files
        yield ContractFinding(
            code="eos.missing",
            where=f"{MANIFEST_FILE}: text.eos_token_ids",
            expected=f"the ids {list(implied)}",
            found=f"{sorted(expected)}, without {sorted(left_out)}",
        )
    main = token_id(tokenizer, optional_json(folder / TOKENIZER_CONFIG_FILE).get("eos_token"))
    listed = set(listed_ids(optional_json(folder / GENERATION_CONFIG_FILE))) - left_out
    missing = set(expected) - listed
    if missing == {main}:
        yield _precedence(END_TOKENS_PLACE, f"the ids {sorted(expected)}", f"{sorted(listed)}")
        listed |= missing
    yield from check_end_tokens(expected, sorted(listed), END_TOKENS_PLACE)
    if "eos_token" in (text.chat_template or ""):
        return  # the template writes it by this name, whatever ends a turn
    if main is not None and main not in implied:
        yield ContractFinding(
            code="eos.foreign",
            where=_MAIN_END_PLACE,
            expected=f"one of the ids {sorted(expected)}",
            found=str(main),
        )
        return
    wanted = main_end_token(tokenizer, text)
    found = None if main is None else tokenizer.token_of(main)
    if found != wanted:
        yield _precedence(_MAIN_END_PLACE, str(wanted), str(found))


def _precedence(where: str, expected: str, found: str) -> ContractFinding:
    return ContractFinding(code="eos.precedence", where=where, expected=expected, found=found)


def listed_ids(source: Mapping[str, Any], key: str = "eos_token_id") -> tuple[int, ...]:
    """An id, or a list of them; what is no id is none."""
    value = source.get(key)
    numbers = value if isinstance(value, list) else [value]
    return tuple(number for number in numbers if type(number) is int)


def token_id(tokenizer: NativeTokenizer, token: object) -> int | None:
    """The id of a token given as a string or as a serialized `AddedToken`; None: there is none."""
    content = token.get("content") if isinstance(token, dict) else token
    return tokenizer.id_of(content) if isinstance(content, str) else None


def check_special_tokens(folder: Path, text: TextAssets) -> Iterator[ContractFinding]:
    """Each control token that the template or the config spells is one token of tokenizer.json.

    Otherwise it is cut into letters, and the model reads `<`, `|`, `e` ... where a turn ends. An
    added token counts that is not marked as special: `text.tokenizer.control_tokens`. What other
    files add to tokenizer.json does not: many programs read that file alone.

    Raises:
        TokenizerError: A file is damaged.
    """
    tokenizer = open_tokenizer(TOKENIZER_FILE, read_tokenizer_json(folder))
    added = {token.content for token in tokenizer.added.values()}
    spelled = set(_CONTROL_TOKEN.findall(text.chat_template or ""))
    config = optional_json(folder / TOKENIZER_CONFIG_FILE)
    for key in ("bos_token", "eos_token"):
        value = config.get(key)
        content = value.get("content") if isinstance(value, dict) else value
        if isinstance(content, str):
            spelled.add(content)
    everywhere = open_tokenizer(TOKENIZER_FILE, text.tokenizer_json)
    for token in sorted(spelled - added - {""}):
        number = tokenizer.id_of(token)
        if number is not None:
            found = f"id {number}, which is plain text"
        elif everywhere.id_of(token) is not None:
            found = "it in another file alone, which many programs do not read"
        else:
            found = "no such token"
        yield ContractFinding(
            code="tokenizer.special_tokens",
            where=f"{TOKENIZER_FILE}: {token}",
            expected="one added token",
            found=found,
        )


def check_begin_flag(folder: Path, expected: bool) -> Iterator[ContractFinding]:
    """tokenizer_config.json says whether a text begins with BOS, for programs that go by it.

    Raises:
        TokenizerError: The file is damaged.
    """
    found = optional_json(folder / TOKENIZER_CONFIG_FILE).get("add_bos_token", False)
    if found is not expected:
        yield ContractFinding(
            code="tokenizer.bos",
            where=f"{TOKENIZER_CONFIG_FILE}: add_bos_token",
            expected=f"add_bos {expected}",
            found=str(found),
        )


def check_begin_tokens(text: TextAssets) -> Iterator[ContractFinding]:
    """No dialog and no text may begin with BOS twice.

    Raises:
        TokenizerError: The template fails.
    """
    bos = text.bos_token_id
    if bos is None:
        return
    twice = [bos, bos]

    def finding(where: str, ids: Sequence[int]) -> ContractFinding:
        return ContractFinding(
            code="tokenizer.double_bos",
            where=where,
            expected=f"the begin token {bos} at most once",
            found=f"{list(ids[:3])} first",
        )

    processed = open_tokenizer(TOKENIZER_FILE, text.tokenizer_json).letter
    if processed[:2] == twice:
        yield finding(f"{TOKENIZER_FILE}: post_processor", processed)
    tokenizer = Tokenizer(text)
    if tokenizer.has_chat_template:
        ids = tokenizer.encode_chat(GOLDEN_CHATS[0])
        if ids[:2] == twice:
            yield finding(f"{TOKENIZER_CONFIG_FILE}: chat_template", ids)


def check_vocabulary_size(text: TextAssets, vocab_size: int) -> Iterator[ContractFinding]:
    """Every id has a row in the embedding; rows without an id are padding."""
    size = open_tokenizer(TOKENIZER_FILE, text.tokenizer_json).size
    ids = [size - 1, *text.eos_token_ids, *([text.bos_token_id] if text.bos_token_id else [])]
    if max(ids) >= vocab_size:
        yield ContractFinding(
            code="tokenizer.vocabulary",
            where=TOKENIZER_FILE,
            expected=f"a vocabulary for {vocab_size} rows",
            found=f"{size} tokens, and the id {max(ids)}",
        )
