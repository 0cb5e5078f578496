"""What a model's text files hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class TextAssets:
    """Everything between a person's text and token ids.

    `tokenizer_json` is the `tokenizers` library's serialization, whatever form the source had, with
    every token that other files of the source add to it.
    """

    tokenizer_json: str
    chat_template: str | None
    #: what the template and other tools know by name: `bos_token`, `eos_token`, `pad_token`, ...
    special_tokens: Mapping[str, str]
    bos_token_id: int | None
    #: every id that ends a turn, sorted: generation_config, tokenizer and template together
    eos_token_ids: tuple[int, ...]
    #: whether encoding a raw prompt puts `bos_token_id` first
    add_bos: bool
    #: generation_config's temperature, top_p and the like, as the model's author set them
    generation_defaults: Mapping[str, float | int | bool]
    #: what is unusual about the source and does not make the model wrong
    warnings: tuple[str, ...] = field(default=(), compare=False)
