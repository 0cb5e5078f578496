"""Which tokens end a turn: those that the source names, and those that its template writes.

A model that emits an end token which nobody waits for never stops, and an ordinary token that is
taken for one cuts answers off.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from llama_edge.core.errors import TokenizerError
from llama_edge.text.dialog_form import DialogForm
from llama_edge.text.native import NativeTokenizer

#: Tokens that end a document, whatever the template.
DOCUMENT_END_TOKENS: Final = ("<|end_of_text|>", "<|endoftext|>")
#: A template that mentions the first token lets the model end its turn by any of the second.
TURN_END_TOKENS: Final[Mapping[str, tuple[str, ...]]] = {
    "<|eot_id|>": ("<|eot_id|>", "<|eom_id|>"),
    "<|im_end|>": ("<|im_end|>",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EndTokens:
    """Every id that ends a turn, sorted."""

    ids: tuple[int, ...]
    #: an id that the template alone names: programs that go by the files do not stop at it
    unlisted: int | None


def listed_ends(source: Mapping[str, Any], key: str = "eos_token_id") -> tuple[int, ...]:
    """An id or a list of ids out of a JSON file; null and an absent key are none.

    Raises:
        TokenizerError: It is something else.
    """
    value = source.get(key)
    if value is None:
        return ()
    numbers = value if isinstance(value, list) else [value]
    if not all(type(number) is int for number in numbers):
        raise TokenizerError(f"{key} is {value!r}; a token id or a list of them is needed")
    return tuple(numbers)


def named_ends(
    generation: Mapping[str, Any],
    model_config: Mapping[str, Any],
    main_end: int | None,
    special_ids: Collection[int],
) -> set[int]:
    """The end tokens that the files of a Hugging Face folder name and that count.

    transformers reads generation_config.json alone where there is one: config.json often keeps
    `LlamaConfig`'s default of 2, an ordinary token of most vocabularies, which would cut answers
    off. Where generation_config.json names no end token, transformers never stops; here the other
    files count instead.

    Args:
        generation: generation_config.json.
        model_config: config.json.
        main_end: The id of tokenizer_config.json's `eos_token`.
        special_ids: Ids of the special tokens.
    """
    ends = set(listed_ends(generation))
    alone = bool(ends)
    if not alone:
        ends.update(listed_ends(model_config))
    if main_end is not None and (not alone or main_end in special_ids):
        ends.add(main_end)
    return ends


def end_tokens(
    tokenizer: NativeTokenizer,
    chat_template: str | None,
    form: DialogForm | None,
    named: Iterable[int],
) -> EndTokens:
    """The named ids, and those that vocabulary and template imply.

    Sources often name too few (Llama 3.2 has three end tokens). What the template writes right
    after an assistant's text ends a turn if it is an added token, special or not; an ordinary word
    never does.

    Args:
        tokenizer: Its added tokens are looked up.
        chat_template: What it mentions may end a turn (`TURN_END_TOKENS`).
        form: Of the template; None where it cannot be rendered.
        named: The ids that the source names and that count, see `named_ends`.

    Raises:
        TokenizerError: There is none at all.
    """
    ids = set(named)
    added = {token.content: number for number, token in tokenizer.added.items()}
    special = {token.content for token in tokenizer.added.values() if token.special}
    ids.update(added[token] for token in DOCUMENT_END_TOKENS if token in special)
    listed = frozenset(ids)
    for sign, ends in TURN_END_TOKENS.items():
        if chat_template is not None and sign in chat_template:
            ids.update(added[token] for token in ends if token in added)
    written = None if form is None else _written_end(form.after_answer, added)
    if written is not None:
        ids.add(written)
    if not ids:
        raise TokenizerError(
            "no end-of-sequence token: neither generation_config.json, config.json nor "
            "tokenizer_config.json names one, so generation would never stop; add eos_token_id"
        )
    return EndTokens(ids=tuple(sorted(ids)), unlisted=written if written not in listed else None)


def _written_end(after_answer: str, added: Mapping[str, int]) -> int | None:
    """The id of the added token with which the template goes on after an assistant's text."""
    found = [token for token in added if token.strip() and after_answer.startswith(token.strip())]
    return added[max(found, key=len)] if found else None
