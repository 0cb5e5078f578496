"""`doctor` on what another program wrote: with no manifest, files answer for files."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from llama_edge.backends import get_exporter
from llama_edge.bundle.artifact_contract import check_runner_values
from llama_edge.bundle.contract import check_end_tokens
from llama_edge.bundle.examination import Examination, renderable
from llama_edge.bundle.finding_codes import ContractFinding
from llama_edge.bundle.text_files import (
    check_begin_tokens,
    check_special_tokens,
    check_vocabulary_size,
    listed_ids,
    optional_json,
    token_id,
)
from llama_edge.checkpoints.recognise import CONFIG_FILE as MODEL_CONFIG_FILE
from llama_edge.core.errors import TokenizerError
from llama_edge.core.runner_values import RunnerField, RunnerValue, RunnerWord
from llama_edge.core.text_assets import TextAssets
from llama_edge.text.contract import GOLDEN_CHATS
from llama_edge.text.end_tokens import TURN_END_TOKENS, end_tokens
from llama_edge.text.native import open_tokenizer
from llama_edge.text.special_tokens import TOKENIZER_CONFIG_FILE
from llama_edge.text.text_assets import (
    GENERATION_CONFIG_FILE,
    TOKENIZER_FILE,
    read_text_assets,
    rendered_form,
)
from llama_edge.text.tokenizer import Tokenizer

_MAIN_END_PLACE: Final = f"{TOKENIZER_CONFIG_FILE}: eos_token"


def examine_checkpoint(examination: Examination, folder: Path) -> None:
    """A Hugging Face folder: its text files, and what `config.json` says of them."""
    with examination.guarded("artifact.unreadable", MODEL_CONFIG_FILE, "a JSON object"):
        vocab_size = optional_json(folder / MODEL_CONFIG_FILE).get("vocab_size")
        _examine_text(examination, folder, vocab_size if type(vocab_size) is int else None, ())
        _note_ignored_ends(examination, folder)
    examination.note("weights are not looked at: export reads them")


def examine_model(examination: Examination, path: Path, backend: str) -> None:
    """A model file, or a folder around one, with the text files next to it if there are any."""
    values: tuple[RunnerValue, ...] = ()
    with examination.guarded("artifact.unreadable", path.name, "a model file that can be read"):
        values = get_exporter(backend).runner_values(path)
        examination.check(
            "what the model tells its runner", check_runner_values(values, _agreed(values))
        )
    folder = path.parent if path.is_file() or path.suffix == ".mlpackage" else path
    vocab_size = _first(values, RunnerField.VOCAB_SIZE)
    _examine_text(examination, folder, vocab_size if isinstance(vocab_size, int) else None, values)
    examination.note("nothing says which codes are right: no manifest lists them")


def _first(values: tuple[RunnerValue, ...], field: RunnerField) -> RunnerWord | None:
    return next((value.value for value in values if value.field is field), None)


def _agreed(values: tuple[RunnerValue, ...]) -> dict[RunnerField, RunnerWord]:
    """What the first place to say it says; caches must hold the longest context of all."""
    agreed = {value.field: value.value for value in reversed(values)}
    for field in (RunnerField.EOS_TOKEN_IDS, RunnerField.TEXT_CONTRACT_SHA256):
        agreed.pop(field, None)
    contexts = [value.value for value in values if value.field is RunnerField.MAX_CONTEXT]
    numbers = [number for number in contexts if isinstance(number, int)]
    if numbers:
        agreed[RunnerField.CACHE_TOKENS] = max(numbers)
    return agreed


def _examine_text(
    examination: Examination,
    folder: Path,
    vocab_size: int | None,
    values: tuple[RunnerValue, ...],
) -> None:
    if not (folder / TOKENIZER_FILE).is_file():
        examination.note(f"there is no {TOKENIZER_FILE}: texts and end tokens are not looked at")
        return
    with examination.guarded("tokenizer.unreadable", TOKENIZER_FILE, "text files"):
        text = read_text_assets(folder)
        if vocab_size is not None:
            examination.check("vocabulary", check_vocabulary_size(text, vocab_size))
        examination.check("special tokens", check_special_tokens(folder, text))
        has_template = text.chat_template is not None
        text = renderable(examination, text)
        examination.check("begin tokens", check_begin_tokens(text))
        examination.check("end tokens", _check_ends(folder, text, values))
        for warning in text.warnings:
            examination.note(warning)
        _check_begin_value(examination, text, values)
        _note_begin(examination, text)
        if not has_template:
            examination.note("there is no chat template: the model completes text only")


def _check_ends(
    folder: Path, text: TextAssets, values: tuple[RunnerValue, ...]
) -> Iterator[ContractFinding]:
    """Every program that reads one file must wait for what the others name.

    What `read_text_assets` leaves out ends no turn: config.json's list where generation_config.json
    has one, and then also an `eos_token` that is an ordinary word.
    """
    tokenizer = open_tokenizer(TOKENIZER_FILE, text.tokenizer_json)
    generation = optional_json(folder / GENERATION_CONFIG_FILE)
    config = optional_json(folder / MODEL_CONFIG_FILE)
    main = token_id(tokenizer, optional_json(folder / TOKENIZER_CONFIG_FILE).get("eos_token"))
    named = listed_ids(generation) or listed_ids(config)
    required = set(text.eos_token_ids) & {main, *named}
    for sign in TURN_END_TOKENS:
        number = tokenizer.id_of(sign)
        if sign in (text.chat_template or "") and number is not None:
            required.add(number)
    form = rendered_form(text.chat_template, text.special_tokens)
    unlisted = end_tokens(tokenizer, text.chat_template, form, named or text.eos_token_ids).unlisted
    if unlisted is not None:
        required.add(unlisted)
    for where, listed in _end_token_lists(generation, config, values):
        missing = required - set(listed)
        if missing and missing == {main}:
            yield ContractFinding(
                code="eos.precedence",
                where=where,
                expected=f"also {main}, which {_MAIN_END_PLACE} names",
                found=str(sorted(listed)),
            )
            continue
        allowed = required | (set(listed) & set(text.eos_token_ids))
        yield from check_end_tokens(sorted(allowed), listed, where)


def _end_token_lists(
    generation: Mapping[str, Any], config: Mapping[str, Any], values: tuple[RunnerValue, ...]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The lists that programs go by: transformers' own, and the runner's."""
    if listed_ids(generation):
        yield f"{GENERATION_CONFIG_FILE}: eos_token_id", listed_ids(generation)
    elif listed_ids(config):  # read only where the other file names none
        yield f"{MODEL_CONFIG_FILE}: eos_token_id", listed_ids(config)
    for value in values:
        if value.field is RunnerField.EOS_TOKEN_IDS and isinstance(value.value, tuple):
            yield value.where, value.value


def _note_ignored_ends(examination: Examination, folder: Path) -> None:
    """config.json names end tokens that transformers, and with it export, does not go by."""
    counted = listed_ids(optional_json(folder / GENERATION_CONFIG_FILE))
    others = listed_ids(optional_json(folder / MODEL_CONFIG_FILE))
    if counted and set(others) - set(counted):
        examination.note(
            f"{MODEL_CONFIG_FILE} names the end tokens {sorted(others)} and "
            f"{GENERATION_CONFIG_FILE} {sorted(counted)}: {GENERATION_CONFIG_FILE} alone counts, "
            "as in transformers"
        )


def _check_begin_value(
    examination: Examination, text: TextAssets, values: tuple[RunnerValue, ...]
) -> None:
    if text.bos_token_id is not None:
        expected: dict[RunnerField, RunnerWord] = {RunnerField.BOS_TOKEN_ID: text.bos_token_id}
        examination.check("the runner's begin token", check_runner_values(values, expected))


def _note_begin(examination: Examination, text: TextAssets) -> None:
    """A trap, not a fault: Llama 3's own tokenizer and template both put BOS first."""
    if text.bos_token_id is None or text.chat_template is None or not text.add_bos:
        return
    try:
        ids = Tokenizer(text).encode_chat(GOLDEN_CHATS[0])
    except TokenizerError:
        return  # `renderable` has said so
    if ids[:1] == [text.bos_token_id]:
        examination.note(
            "the chat template writes the begin token and the tokenizer adds it to plain text: "
            "encode rendered dialogs with add_special_tokens=False, or they begin with it twice"
        )
