"""Reading and writing `TextAssets` as the files that Hugging Face's tools use."""

import json
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import tokenizers

from llama_edge.core.errors import TokenizerError
from llama_edge.core.files import read_json_object, write_json
from llama_edge.core.text_assets import TextAssets
from llama_edge.text.tokenizer_trial import require_harmless

TOKENIZER_FILE: Final = "tokenizer.json"
TOKENIZER_CONFIG_FILE: Final = "tokenizer_config.json"
GENERATION_CONFIG_FILE: Final = "generation_config.json"
CHAT_TEMPLATE_FILE: Final = "chat_template.jinja"

#: Llama 3's own tokenizer.json has 17 MB.
MAX_TOKENIZER_BYTES: Final = 128 << 20
#: Embedding rows that no token uses: tables are padded for speed, never by more than this.
MAX_PADDING_ROWS: Final = 1024

#: Tokens that end a document, whatever the template.
DOCUMENT_END_TOKENS: Final = ("<|end_of_text|>", "<|endoftext|>")
#: A template that mentions the first token lets the model end its turn by any of the second.
TURN_END_TOKENS: Final[Mapping[str, tuple[str, ...]]] = {
    "<|eot_id|>": ("<|eot_id|>", "<|eom_id|>"),
    "<|im_end|>": ("<|im_end|>",),
}
#: What is kept of generation_config.json, apart from the token ids.
GENERATION_KEYS: Final = (
    "do_sample",
    "min_p",
    "repetition_penalty",
    "temperature",
    "top_k",
    "top_p",
)


def parse_tokenizer(where: str, tokenizer_json: str) -> tokenizers.Tokenizer:
    """The `tokenizers` object of an untrusted serialization, which neither pads nor truncates.

    It is shared by all who ask for the same text: parsing Llama 3's takes half a second, and an
    export asks fifteen times. `text.tokenizer` alone changes a setting of it, for one call.

    Raises:
        TokenizerError: The library refuses it, or crashes or runs for ever on it.
    """
    require_harmless(where, tokenizer_json)
    return _parsed(tokenizer_json)


@lru_cache(maxsize=4)
def _parsed(tokenizer_json: str) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _without_lengths(tokenizer_json: str) -> str:
    """The serialization without what its trainer cut or filled texts to, as transformers reads it.

    Programs that take the file as it is would cut a prompt there.
    """
    value = json.loads(tokenizer_json)
    if value.get("padding") is None and value.get("truncation") is None:
        return tokenizer_json
    return json.dumps({**value, "padding": None, "truncation": None}, ensure_ascii=False)


def end_token_ids(
    tokenizer: tokenizers.Tokenizer, chat_template: str | None, named: Iterable[int]
) -> tuple[int, ...]:
    """Every id that ends a turn: those the source names, and those its vocabulary implies.

    Sources often name too few (Llama 3.2 has three end tokens), and a model that emits an end token
    which nobody waits for never stops. Only special tokens are implied, never an ordinary word.

    Args:
        tokenizer: Its special tokens are looked up.
        chat_template: What it mentions may end a turn (`TURN_END_TOKENS`).
        named: The ids that the source names and that count; for the files of a Hugging Face folder
            see `read_text_assets`.

    Raises:
        TokenizerError: There is none at all.
    """
    ids = set(named)
    tokens = list(DOCUMENT_END_TOKENS)
    for sign, ends in TURN_END_TOKENS.items():
        if chat_template is not None and sign in chat_template:
            tokens.extend(ends)
    specials = _special_tokens(tokenizer)
    ids.update(specials[token] for token in tokens if token in specials)
    if not ids:
        raise TokenizerError(
            "no end-of-sequence token: neither generation_config.json, config.json nor "
            "tokenizer_config.json names one, so generation would never stop; add eos_token_id"
        )
    return tuple(sorted(ids))


def _special_tokens(tokenizer: tokenizers.Tokenizer) -> dict[str, int]:
    added = tokenizer.get_added_tokens_decoder()
    return {token.content: number for number, token in added.items() if token.special}


def check_vocabulary(where: str, text: TextAssets, vocab_size: int) -> None:
    """Tokenizer and model must belong together: ids fit the table, and all but padding is used.

    Raises:
        TokenizerError: An id has no row in the embedding, or more than `MAX_PADDING_ROWS` rows
            have no token.
    """
    tokenizer = parse_tokenizer(where, text.tokenizer_json)
    count = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    ids = [*text.eos_token_ids, *([] if text.bos_token_id is None else [text.bos_token_id])]
    outside = [number for number in ids if not 0 <= number < min(count, vocab_size)]
    if count > vocab_size or vocab_size - count > MAX_PADDING_ROWS:
        raise TokenizerError(
            f"{where}: the tokenizer has {count} tokens and the model {vocab_size} embedding rows "
            f"(at most {MAX_PADDING_ROWS} may be unused); it is the tokenizer of another model"
        )
    if outside:
        raise TokenizerError(
            f"{where}: begin or end token id {outside[0]} is outside the vocabulary of {count}; "
            "correct generation_config.json, or take the tokenizer that came with the model"
        )


def write_text_assets(folder: Path, text: TextAssets) -> None:
    """Write tokenizer.json, tokenizer_config.json and generation_config.json."""
    tokenizer = parse_tokenizer(TOKENIZER_FILE, text.tokenizer_json)
    (folder / TOKENIZER_FILE).write_bytes(text.tokenizer_json.encode())
    config: dict[str, Any] = {
        "add_bos_token": text.add_bos,
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": main_end_token(tokenizer, text),
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    if text.bos_token_id is not None:
        config["bos_token"] = tokenizer.id_to_token(text.bos_token_id)
    if text.chat_template is not None:
        config["chat_template"] = text.chat_template
    write_json(folder / TOKENIZER_CONFIG_FILE, config)
    generation: dict[str, Any] = {
        **text.generation_defaults,
        "eos_token_id": list(text.eos_token_ids),
    }
    if text.bos_token_id is not None:
        generation["bos_token_id"] = text.bos_token_id
    write_json(folder / GENERATION_CONFIG_FILE, generation)


def main_end_token(tokenizer: tokenizers.Tokenizer, text: TextAssets) -> str | None:
    """The end token for tools that know only one: the turn's end if there is a chat template."""
    if text.chat_template is not None:
        for token in TURN_END_TOKENS:
            if token in text.chat_template and (tokenizer.token_to_id(token) in text.eos_token_ids):
                return token
    first: str | None = tokenizer.id_to_token(text.eos_token_ids[0])
    return first


def read_text_assets(folder: Path) -> TextAssets:
    """Read a folder's tokenizer, chat template, EOS ids and generation defaults.

    Where generation_config.json names end tokens, those of config.json do not count, as in
    transformers; tokenizer_config.json's `eos_token` then counts only if it is a special token.

    Raises:
        TokenizerError: tokenizer.json is absent, damaged or too large, or another file is damaged.
    """
    path = folder / TOKENIZER_FILE
    tokenizer_json = _read_text(path, MAX_TOKENIZER_BYTES)
    tokenizer = parse_tokenizer(str(path), tokenizer_json)
    tokenizer_json = _without_lengths(tokenizer_json)
    tokenizer_config = _optional_json(folder / TOKENIZER_CONFIG_FILE)
    generation = _optional_json(folder / GENERATION_CONFIG_FILE)
    model_config = _optional_json(folder / "config.json")
    template = _chat_template(folder, tokenizer_config)

    bos = _token_id(tokenizer, tokenizer_config.get("bos_token"))
    for source in (generation, model_config):
        if bos is None and "bos_token" not in tokenizer_config:
            bos = next(iter(_ids(source, "bos_token_id")), None)
    main_end = _token_id(tokenizer, tokenizer_config.get("eos_token"))
    ends = _named_ends(generation, model_config, main_end, _special_tokens(tokenizer).values())
    return TextAssets(
        tokenizer_json=tokenizer_json,
        chat_template=template,
        bos_token_id=bos,
        eos_token_ids=end_token_ids(tokenizer, template, ends),
        add_bos=_adds_bos(tokenizer, tokenizer_config, bos),
        generation_defaults=_generation_defaults(generation),
    )


def _named_ends(
    generation: Mapping[str, Any],
    model_config: Mapping[str, Any],
    main_end: int | None,
    specials: Collection[int],
) -> set[int]:
    """The end tokens that the files name and that count.

    transformers reads generation_config.json alone where there is one: config.json often keeps
    `LlamaConfig`'s default of 2, an ordinary token of most vocabularies, which would cut answers
    off. Where generation_config.json names no end token, transformers never stops; here the other
    files count instead.

    Args:
        generation: generation_config.json.
        model_config: config.json.
        main_end: The id of tokenizer_config.json's `eos_token`.
        specials: Ids of the special tokens.
    """
    ends = set(_ids(generation, "eos_token_id"))
    alone = bool(ends)
    if not alone:
        ends.update(_ids(model_config, "eos_token_id"))
    if main_end is not None and (not alone or main_end in specials):
        ends.add(main_end)
    return ends


def _read_text(path: Path, limit: int) -> str:
    if path.exists() and not path.is_file():
        raise TokenizerError(f"{path}: is no regular file, and is not read")
    try:
        size = path.stat().st_size
        if size > limit:
            raise TokenizerError(f"{path}: has {size} bytes; at most {limit} are read")
        return path.read_bytes().decode()
    except FileNotFoundError as error:
        raise TokenizerError(
            f"{path}: the file is missing; a tokenizer in another form (tokenizer.model) must be "
            "saved as tokenizer.json first, or give the Meta folder or GGUF file itself"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{path}: cannot be read as UTF-8 text: {error}") from error


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json_object(path, TokenizerError) if path.exists() else {}


def _chat_template(folder: Path, tokenizer_config: Mapping[str, Any]) -> str | None:
    """`chat_template.jinja` goes before tokenizer_config.json, as in transformers."""
    if (folder / CHAT_TEMPLATE_FILE).exists():
        return _read_text(folder / CHAT_TEMPLATE_FILE, MAX_TOKENIZER_BYTES)
    value = tokenizer_config.get("chat_template")
    if isinstance(value, list):
        named = {
            entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)
        }
        value = named.get("default")
    if value is not None and not isinstance(value, str):
        raise TokenizerError(
            f"{folder / TOKENIZER_CONFIG_FILE}: chat_template is a {type(value).__name__}; "
            "a string, or a list of named ones, is needed"
        )
    return value


def _ids(source: Mapping[str, Any], key: str) -> tuple[int, ...]:
    """An id or list of ids out of a JSON file; null and an absent key are none."""
    value = source.get(key)
    if value is None:
        return ()
    numbers = value if isinstance(value, list) else [value]
    if not all(isinstance(number, int) and not isinstance(number, bool) for number in numbers):
        raise TokenizerError(f"{key} is {value!r}; a token id or a list of them is needed")
    return tuple(numbers)


def _token_id(tokenizer: tokenizers.Tokenizer, token: object) -> int | None:
    """The id of a token given as a string or as a serialized `AddedToken`."""
    content = token.get("content") if isinstance(token, dict) else token
    if content is None:
        return None
    number = tokenizer.token_to_id(content) if isinstance(content, str) else None
    if number is None:
        raise TokenizerError(
            f"{TOKENIZER_CONFIG_FILE} names the token {content!r}, which the tokenizer lacks; "
            "the two files come from different models"
        )
    return number


def _adds_bos(
    tokenizer: tokenizers.Tokenizer, tokenizer_config: Mapping[str, Any], bos: int | None
) -> bool:
    """What the config says; else what the tokenizer's own post-processor does."""
    explicit = tokenizer_config.get("add_bos_token")
    if isinstance(explicit, bool):
        return explicit and bos is not None
    return bos is not None and tokenizer.encode("a").ids[:1] == [bos]


def _generation_defaults(generation: Mapping[str, Any]) -> dict[str, float | int | bool]:
    kept = {key: generation[key] for key in GENERATION_KEYS if generation.get(key) is not None}
    for key, value in kept.items():
        if not isinstance(value, (bool, int, float)) or not abs(value) < 1e6:
            raise TokenizerError(f"{GENERATION_CONFIG_FILE}: {key} is {value!r}; not a number")
    return kept
