"""Each text file by itself: what a program that reads only this one would believe.

`read_text_assets` gathers end tokens from several files, as this project's programs do. Others read
one: transformers `generation_config.json`, chat front ends `tokenizer_config.json`. Where the files
disagree, one of these programs does not stop.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer as RawTokenizer

from llama_edge.bundle.contract import END_TOKENS_PLACE, check_end_tokens
from llama_edge.bundle.finding_codes import ContractFinding
from llama_edge.bundle.manifest import MANIFEST_FILE
from llama_edge.core.errors import TokenizerError
from llama_edge.core.json_files import read_json_object
from llama_edge.core.text_assets import TextAssets
from llama_edge.text.contract import GOLDEN_CHATS
from llama_edge.text.text_assets import (
    GENERATION_CONFIG_FILE,
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
    check_vocabulary,
    end_token_ids,
    main_end_token,
    parse_tokenizer,
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
    tokenizer = parse_tokenizer(TOKENIZER_FILE, text.tokenizer_json)
    implied = end_token_ids(tokenizer, text.chat_template, expected)
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
    if main is not None and main not in implied:
        yield ContractFinding(
            code="eos.foreign",
            where=_MAIN_END_PLACE,
            expected=f"one of the ids {sorted(expected)}",
            found=str(main),
        )
        return
    wanted = main_end_token(tokenizer, text)
    found = None if main is None else tokenizer.id_to_token(main)
    if found != wanted:
        yield _precedence(_MAIN_END_PLACE, str(wanted), str(found))


def _precedence(where: str, expected: str, found: str) -> ContractFinding:
    return ContractFinding(code="eos.precedence", where=where, expected=expected, found=found)


def listed_ids(source: Mapping[str, Any], key: str = "eos_token_id") -> tuple[int, ...]:
    """An id, or a list of them; what is no id is none."""
    value = source.get(key)
    numbers = value if isinstance(value, list) else [value]
    return tuple(number for number in numbers if type(number) is int)


def token_id(tokenizer: RawTokenizer, token: object) -> int | None:
    """The id of a token given as a string or as a serialized `AddedToken`; None: there is none."""
    content = token.get("content") if isinstance(token, dict) else token
    number: int | None = tokenizer.token_to_id(content) if isinstance(content, str) else None
    return number


def check_special_tokens(folder: Path, text: TextAssets) -> Iterator[ContractFinding]:
    """Each control token that the template or the config spells is one special token.

    Otherwise it is cut into letters, and the model reads `<`, `|`, `e` ... where a turn ends.

    Raises:
        TokenizerError: A file is damaged.
    """
    tokenizer = parse_tokenizer(TOKENIZER_FILE, text.tokenizer_json)
    added = tokenizer.get_added_tokens_decoder().values()
    special = {token.content for token in added if token.special}
    spelled = set(_CONTROL_TOKEN.findall(text.chat_template or ""))
    config = optional_json(folder / TOKENIZER_CONFIG_FILE)
    for key in ("bos_token", "eos_token"):
        value = config.get(key)
        content = value.get("content") if isinstance(value, dict) else value
        if isinstance(content, str):
            spelled.add(content)
    for token in sorted(spelled - special):
        number = tokenizer.token_to_id(token)
        yield ContractFinding(
            code="tokenizer.special_tokens",
            where=f"{TOKENIZER_FILE}: {token}",
            expected="one special token",
            found="no such token" if number is None else f"id {number}, which is plain text",
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

    processed = parse_tokenizer(TOKENIZER_FILE, text.tokenizer_json).encode("a").ids
    if processed[:2] == twice:
        yield finding(f"{TOKENIZER_FILE}: post_processor", processed)
    tokenizer = Tokenizer(text)
    if tokenizer.has_chat_template:
        ids = tokenizer.encode_chat(GOLDEN_CHATS[0])
        if ids[:2] == twice:
            yield finding(f"{TOKENIZER_CONFIG_FILE}: chat_template", ids)


def check_vocabulary_size(text: TextAssets, vocab_size: int) -> Iterator[ContractFinding]:
    """Every id has a row in the embedding, and nearly every row an id."""
    try:
        check_vocabulary(TOKENIZER_FILE, text, vocab_size)
    except TokenizerError as error:
        yield ContractFinding(
            code="tokenizer.vocabulary",
            where=TOKENIZER_FILE,
            expected=f"a vocabulary for {vocab_size} rows",
            found=str(error).removeprefix(f"{TOKENIZER_FILE}: "),
        )
