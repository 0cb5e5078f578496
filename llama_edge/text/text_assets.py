"""The text side of a Hugging Face folder: which file decides what, by transformers' rules.

Also of a bundle, whose text files have the same form.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from llama_edge.core.errors import TokenizerError
from llama_edge.core.files import write_json
from llama_edge.core.json_files import read_json_object
from llama_edge.core.regular import read_regular, read_regular_text
from llama_edge.core.text_assets import TextAssets
from llama_edge.text.chat_template import ChatTemplate
from llama_edge.text.dialog_form import DialogForm, dialog_form
from llama_edge.text.end_tokens import TURN_END_TOKENS, end_tokens, listed_ends, named_ends
from llama_edge.text.native import Changes, NativeTokenizer, open_tokenizer
from llama_edge.text.sentencepiece import read_sentencepiece, sentencepiece_json
from llama_edge.text.special_tokens import (
    ADDED_TOKENS_FILE,
    SPECIAL_TOKENS_FILE,
    TOKENIZER_CONFIG_FILE,
    TokenFiles,
)

TOKENIZER_FILE: Final = "tokenizer.json"
SENTENCEPIECE_FILE: Final = "tokenizer.model"
GENERATION_CONFIG_FILE: Final = "generation_config.json"
CHAT_TEMPLATE_FILE: Final = "chat_template.jinja"
CHAT_TEMPLATES_FOLDER: Final = "additional_chat_templates"

#: Llama 3's own tokenizer.json has 17 MB.
MAX_TOKENIZER_BYTES: Final = 128 << 20
_MAX_TEMPLATE_BYTES: Final = 1 << 20
#: tokenizer_config.json of Gemma 3, which lists 6,000 tokens one by one, has 1.2 MB.
MAX_TOKEN_FILE_BYTES: Final = 16 << 20
#: More embedding rows without a token than this are worth a remark.
_USUAL_PADDING_ROWS: Final = 1024

#: What is kept of generation_config.json, apart from the token ids.
GENERATION_KEYS: Final = (
    "do_sample",
    "min_p",
    "repetition_penalty",
    "temperature",
    "top_k",
    "top_p",
)
#: Classes in which `add_bos_token` decides; in others the tokenizer's own post-processor does.
_BOS_BY_CONFIG: Final = ("LlamaTokenizer", "LlamaTokenizerFast")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Files:
    """What the files of a folder hold; an absent one is an empty object."""

    tokenizer_json: str
    tokens: TokenFiles
    generation: Mapping[str, Any]
    model_config: Mapping[str, Any]
    chat_template: str | None


def read_text_assets(folder: Path, generation: Mapping[str, Any] | None = None) -> TextAssets:
    """Read a folder's tokenizer, chat template, end tokens and generation defaults.

    Args:
        folder: Has the files of a tokenizer, and as a rule of a model.
        generation: In place of a generation_config.json that the folder does not have.

    Raises:
        TokenizerError: tokenizer.json is absent, damaged or too large, or another file is damaged.
    """
    files = _read_files(folder)
    if generation is not None and not (folder / GENERATION_CONFIG_FILE).exists():
        files = replace(files, generation=generation)
    where = str(folder / TOKENIZER_FILE)
    original = tokenizer = open_tokenizer(where, files.tokenizer_json)
    added = files.tokens.to_add(original.added)
    if added:
        tokenizer = open_tokenizer(where, original.tokenizer_json, Changes(added=tuple(added)))
    named = {name: token.content for name, token in files.tokens.named.items()}
    bos = _bos(tokenizer, named, files)
    add_bos = _adds_bos(tokenizer, files.tokens.config, bos)
    if bos is not None and add_bos is not (tokenizer.letter[:1] == [bos]):
        # One truth for every reader of the file.
        begin = (tokenizer.token_of(bos) or "",) if add_bos else ()
        tokenizer = open_tokenizer(where, tokenizer.tokenizer_json, Changes(begin=begin))
    form = rendered_form(files.chat_template, named)
    main_end = tokenizer.id_of(named["eos_token"]) if "eos_token" in named else None
    special_ids = {number for number, token in original.added.items() if token.special}
    ends = end_tokens(
        tokenizer,
        files.chat_template,
        form,
        named_ends(files.generation, files.model_config, main_end, special_ids),
    )
    return TextAssets(
        tokenizer_json=tokenizer.tokenizer_json,
        chat_template=files.chat_template,
        special_tokens=named,
        bos_token_id=bos,
        eos_token_ids=ends.ids,
        add_bos=add_bos,
        generation_defaults=_generation_defaults(files.generation),
        warnings=(
            *_misplaced(tokenizer, files.tokens),
            *_ordinary(original, named),
            *form_warnings(form),
            *end_warnings(tokenizer, ends.unlisted),
        ),
    )


def build_text_assets(
    tokenizer: NativeTokenizer,
    chat_template: str | None,
    *,
    named: Mapping[str, str],
    ends: Iterable[int],
    generation_defaults: Mapping[str, float | int | bool] | None = None,
) -> TextAssets:
    """The text side of a source that is no Hugging Face folder.

    Args:
        tokenizer: Whatever form it had.
        chat_template: Jinja, untrusted.
        named: Special tokens by name. They are added tokens already.
        ends: Ids that the source names as ends.
        generation_defaults: See `TextAssets`.

    Raises:
        TokenizerError: There is no end token.
    """
    bos = tokenizer.id_of(named["bos_token"]) if "bos_token" in named else None
    form = rendered_form(chat_template, named)
    found = end_tokens(tokenizer, chat_template, form, ends)
    return TextAssets(
        tokenizer_json=tokenizer.tokenizer_json,
        chat_template=chat_template,
        special_tokens=dict(named),
        bos_token_id=bos,
        eos_token_ids=found.ids,
        add_bos=bos is not None and tokenizer.letter[:1] == [bos],
        generation_defaults=generation_defaults or {},
        warnings=(*form_warnings(form), *end_warnings(tokenizer, found.unlisted)),
    )


def rendered_form(chat_template: str | None, named: Mapping[str, str]) -> DialogForm | None:
    """What the template takes; None where there is none, or none that can be rendered.

    Who renders a dialog with it is told why.
    """
    if chat_template is None:
        return None
    try:
        return dialog_form(ChatTemplate(chat_template, named))
    except TokenizerError:
        return None


def form_warnings(form: DialogForm | None) -> Iterable[str]:
    """What a dialog cannot have."""
    if form is None:
        return
    if form.no_system is not None:
        yield f"the chat template takes no system message: it {form.no_system}"
    if form.no_turns is not None:
        yield f"the chat template takes one exchange only: with more it {form.no_turns}"


def end_warnings(tokenizer: NativeTokenizer, unlisted: int | None) -> Iterable[str]:
    """An end token that other programs do not know of."""
    if unlisted is not None:
        yield (
            f"the chat template ends the assistant's turn with {tokenizer.token_of(unlisted)!r} "
            f"(id {unlisted}), which no file names as an end token: it is taken as one"
        )


def _read_files(folder: Path) -> _Files:
    config = _optional_json(folder / TOKENIZER_CONFIG_FILE)
    return _Files(
        tokenizer_json=_tokenizer_json(folder, config),
        tokens=TokenFiles(
            config=config,
            special_tokens_map=_optional_json(folder / SPECIAL_TOKENS_FILE),
            added_tokens=_optional_json(folder / ADDED_TOKENS_FILE),
        ),
        generation=_optional_json(folder / GENERATION_CONFIG_FILE),
        model_config=_optional_json(folder / "config.json"),
        chat_template=_chat_template(folder, config),
    )


def read_tokenizer_json(folder: Path) -> str:
    """The text of tokenizer.json, as it is.

    Raises:
        TokenizerError: It is absent, too large or no text.
    """
    path = folder / TOKENIZER_FILE
    if not os.path.lexists(path):
        raise TokenizerError(
            f"{path}: the file is missing, and so is {SENTENCEPIECE_FILE}; take the tokenizer's "
            "files from where the weights came from, or save it with transformers"
        )
    return read_regular_text(path, MAX_TOKENIZER_BYTES, TokenizerError)


def _tokenizer_json(folder: Path, config: Mapping[str, Any]) -> str:
    """tokenizer.json, or where there is none, what tokenizer.model makes of it."""
    path = folder / SENTENCEPIECE_FILE
    if os.path.lexists(folder / TOKENIZER_FILE) or not os.path.lexists(path):
        return read_tokenizer_json(folder)
    data = read_regular(path, MAX_TOKENIZER_BYTES, TokenizerError)
    found = read_sentencepiece(data, str(path))
    # `legacy`: a space also after each control token; `add_prefix_space`: in front of a text.
    pieces = replace(
        found,
        add_prefix=config.get("add_prefix_space") is not False and found.add_prefix,
        prefix_after_control=config.get("legacy") is True,
    )
    begin = () if pieces.begin is None else (pieces.tokens[pieces.begin],)
    changes = Changes(begin=begin, canonical=True)
    return open_tokenizer(str(path), sentencepiece_json(pieces, str(path)), changes).tokenizer_json


def _optional_json(path: Path) -> dict[str, Any]:
    if not os.path.lexists(path):
        return {}
    return read_json_object(path, TokenizerError, limit=MAX_TOKEN_FILE_BYTES)


def _chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """Files go before tokenizer_config.json, as in transformers.

    Raises:
        TokenizerError: There are several, and none is the default; or it is no text.
    """
    value = config.get("chat_template")
    named: dict[str, Any] = {}
    if isinstance(value, list):
        entries = [entry for entry in value if isinstance(entry, dict)]
        named = {str(entry.get("name")): entry.get("template") for entry in entries}
    elif isinstance(value, dict):
        named = value
    in_files = _template_files(folder)
    if in_files:
        value, named = None, in_files
    if not named:
        if value is not None and not isinstance(value, str):
            raise _template_kind(folder, value)
        return value
    if "default" not in named:
        raise TokenizerError(
            f"{folder}: has the chat templates {', '.join(sorted(named))}, and none is named "
            f"default; put the one to use into {CHAT_TEMPLATE_FILE}"
        )
    if not isinstance(named["default"], str):
        raise _template_kind(folder, named["default"])
    return named["default"]


def _template_kind(folder: Path, value: object) -> TokenizerError:
    return TokenizerError(
        f"{folder / TOKENIZER_CONFIG_FILE}: chat_template is a {type(value).__name__}; "
        "a string, or a list of named ones, is needed"
    )


def _template_files(folder: Path) -> dict[str, str]:
    """Template files by name; `chat_template.jinja` is the default."""
    more = folder / CHAT_TEMPLATES_FOLDER
    found = {}
    for path in sorted(more.iterdir()) if more.is_dir() else ():
        if path.suffix == ".jinja":
            found[path.stem] = read_regular_text(path, _MAX_TEMPLATE_BYTES, TokenizerError)
    default = folder / CHAT_TEMPLATE_FILE
    if os.path.lexists(default):
        found["default"] = read_regular_text(default, _MAX_TEMPLATE_BYTES, TokenizerError)
    return found


def _bos(tokenizer: NativeTokenizer, named: Mapping[str, str], files: _Files) -> int | None:
    """The named one; where no name is given, the id in a config."""
    if "bos_token" in named:
        return tokenizer.id_of(named["bos_token"])
    if files.tokens.config.get("bos_token", "") is None:
        return None  # there is none, and it is said
    for source in (files.generation, files.model_config):
        for number in listed_ends(source, "bos_token_id"):
            return number
    return None


def _adds_bos(tokenizer: NativeTokenizer, config: Mapping[str, Any], bos: int | None) -> bool:
    """What the tokenizer's post-processor does; in some classes, what the config says."""
    explicit = config.get("add_bos_token")
    if isinstance(explicit, bool) and config.get("tokenizer_class") in _BOS_BY_CONFIG:
        return explicit and bos is not None
    return bos is not None and tokenizer.letter[:1] == [bos]


def _generation_defaults(generation: Mapping[str, Any]) -> dict[str, float | int | bool]:
    kept = {key: generation[key] for key in GENERATION_KEYS if generation.get(key) is not None}
    for key, value in kept.items():
        if not isinstance(value, (bool, int, float)) or not abs(value) < 1e6:
            raise TokenizerError(f"{GENERATION_CONFIG_FILE}: {key} is {value!r}; not a number")
    return kept


def _misplaced(tokenizer: NativeTokenizer, tokens: TokenFiles) -> Iterable[str]:
    """Tokens that a file lists with an id that the tokenizer does not give them."""
    for number, token in tokens.by_id.items():
        found = tokenizer.id_of(token.content)
        if found != number:
            yield (
                f"the token {token.content!r} has the id {found}, as in transformers, although a "
                f"file lists it with {number}"
            )


def _ordinary(tokenizer: NativeTokenizer, named: Mapping[str, str]) -> Iterable[str]:
    """Ordinary words that a file names as special tokens."""
    added = {token.content for token in tokenizer.added.values()}
    for name, token in named.items():
        if token not in added and tokenizer.id_of(token) is not None:
            yield (
                f"{name} is {token!r}, an ordinary token of tokenizer.json; as in transformers, it "
                "is made a special one"
            )


def fit_vocabulary(where: str, text: TextAssets, vocab_size: int) -> TextAssets:
    """The text side for a model with so many embedding rows.

    Added tokens without a row (a `[PAD]` that was added without resizing the model) are taken out:
    text that spells them is text then. Rows without a token are padding.

    Raises:
        TokenizerError: A token that is needed has no row.
    """
    tokenizer = open_tokenizer(where, text.tokenizer_json)
    ids = [*text.eos_token_ids, *([] if text.bos_token_id is None else [text.bos_token_id])]
    outside = [number for number in ids if not 0 <= number < min(tokenizer.size, vocab_size)]
    if outside:
        raise TokenizerError(
            f"{where}: begin or end token id {outside[0]} is outside the vocabulary of "
            f"{tokenizer.size} tokens and {vocab_size} embedding rows; correct "
            f"{GENERATION_CONFIG_FILE}, or take the tokenizer that came with the model"
        )
    unused = vocab_size - tokenizer.size
    if unused > _USUAL_PADDING_ROWS:
        remark = f"{unused} of the {vocab_size} embedding rows have no token"
        return replace(text, warnings=(*text.warnings, remark))
    return text if unused >= 0 else _without_rowless(where, text, tokenizer, vocab_size)


def _without_rowless(
    where: str, text: TextAssets, tokenizer: NativeTokenizer, vocab_size: int
) -> TextAssets:
    added = {n: token.content for n, token in tokenizer.added.items() if n >= vocab_size}
    vocabulary = {n: token for token, n in tokenizer.vocabulary().items() if n >= vocab_size}
    needed = sorted(vocabulary.keys() - added.keys()) or [
        number for number, token in sorted(added.items()) if token in (text.chat_template or "")
    ]
    if needed:
        raise TokenizerError(
            f"{where}: the tokenizer has {tokenizer.size} tokens and the model {vocab_size} "
            f"embedding rows, so that the token {vocabulary[needed[0]]!r} with the id {needed[0]} "
            "has none; resize the model's embedding, or take the tokenizer that it was trained with"
        )
    names = ", ".join(map(repr, added.values()))
    left = open_tokenizer(where, tokenizer.tokenizer_json, Changes(removed=tuple(added.values())))
    return replace(
        text,
        tokenizer_json=left.tokenizer_json,
        special_tokens={
            name: token
            for name, token in text.special_tokens.items()
            if token not in added.values()
        },
        warnings=(
            *text.warnings,
            f"the model has {vocab_size} embedding rows, so the tokenizer's {names} are left out: "
            "they were added without resizing the model",
        ),
    )


def write_text_assets(folder: Path, text: TextAssets) -> None:
    """Write tokenizer.json, tokenizer_config.json and generation_config.json."""
    tokenizer = open_tokenizer(TOKENIZER_FILE, text.tokenizer_json)
    (folder / TOKENIZER_FILE).write_bytes(text.tokenizer_json.encode())
    config: dict[str, Any] = {
        "add_bos_token": text.add_bos,
        "clean_up_tokenization_spaces": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
        **_names_for(tokenizer, text),
    }
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


def _names_for(tokenizer: NativeTokenizer, text: TextAssets) -> dict[str, str | None]:
    """Special tokens by name, with the main ones for tools that look there first.

    A name that the source does not give and the template mentions stays out: given, it would change
    what the template writes.
    """
    template = text.chat_template or ""
    bos = None if text.bos_token_id is None else tokenizer.token_of(text.bos_token_id)
    main = {"bos_token": bos, "eos_token": main_end_token(tokenizer, text)}
    shown = {name: token for name, token in main.items() if token is None or name not in template}
    return {**text.special_tokens, **shown}


def main_end_token(tokenizer: NativeTokenizer, text: TextAssets) -> str | None:
    """The end token for tools that know only one.

    It is the one that the source names, if the template writes it by that name; else the turn's
    end, if the template has one that is known.
    """
    named, template = text.special_tokens.get("eos_token"), text.chat_template or ""
    if named is not None and "eos_token" in template:
        return named
    for token in TURN_END_TOKENS:
        if token in template and tokenizer.id_of(token) in text.eos_token_ids:
            return token
    if named is not None and tokenizer.id_of(named) in text.eos_token_ids:
        return named
    return tokenizer.token_of(text.eos_token_ids[0])
