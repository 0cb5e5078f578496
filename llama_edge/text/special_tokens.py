"""Which tokens of a Hugging Face folder are added to its tokenizer.json, and with which flags.

The rules are transformers': `_from_pretrained` in `tokenization_utils_base.py` and
`TokenizersBackend.__init__` in `tokenization_utils_tokenizers.py`, version 5.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from llama_edge.core.errors import TokenizerError
from llama_edge.text.native import AddedToken

TOKENIZER_CONFIG_FILE: Final = "tokenizer_config.json"
SPECIAL_TOKENS_FILE: Final = "special_tokens_map.json"
ADDED_TOKENS_FILE: Final = "added_tokens.json"

#: The names that every tokenizer has; any other `..._token` of the config is one as well.
_NAMES: Final = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
_FLAGS: Final = frozenset(field.name for field in fields(AddedToken))


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenFiles:
    """The JSON objects of three files; an absent file is an empty one."""

    config: Mapping[str, Any]
    special_tokens_map: Mapping[str, Any]
    added_tokens: Mapping[str, Any]

    @property
    def named(self) -> dict[str, AddedToken]:
        """Special tokens by name.

        Where the config has `added_tokens_decoder`, special_tokens_map.json does not count.

        Raises:
            TokenizerError: One is neither a string nor a serialized `AddedToken`.
        """
        sources = [self.config] if self._has_decoder else [self.config, self.special_tokens_map]
        found: dict[str, AddedToken] = {}
        for source in sources:
            extra = source.get("extra_special_tokens")
            for values in (source, extra if isinstance(extra, Mapping) else {}):
                for name, value in values.items():
                    is_standard = values is not source or name in _NAMES
                    if not is_standard and not _is_model_specific(name, value):
                        continue
                    token = _token(name, value)
                    if token is None:
                        found.pop(name, None)
                    else:
                        found[name] = token
        return found

    @property
    def extra(self) -> list[AddedToken]:
        """Special tokens without a name.

        Raises:
            TokenizerError: As `named`.
        """
        found = []
        for key in ("extra_special_tokens", "additional_special_tokens"):
            values = self.config.get(key)
            for value in values if isinstance(values, list) else []:
                token = _token(key, value)
                if token is not None:
                    found.append(token)
        return found

    @property
    def by_id(self) -> dict[int, AddedToken]:
        """Tokens that a file lists with their ids: the config, or in its place added_tokens.json.

        Raises:
            TokenizerError: An entry has another form.
        """
        if self._has_decoder:
            entries = self.config["added_tokens_decoder"]
            if not isinstance(entries, Mapping):
                raise TokenizerError(
                    f"{TOKENIZER_CONFIG_FILE}: added_tokens_decoder is a {type(entries).__name__}; "
                    "an object of ids and tokens is needed"
                )
            return dict(sorted(_listed(entries)))
        special = {token.content for token in (*self.named.values(), *self.extra)}
        found = {}
        for content, number in self.added_tokens.items():
            if type(number) is not int:
                raise TokenizerError(
                    f"{ADDED_TOKENS_FILE}: the id of {content!r} is {number!r}; a number is needed"
                )
            is_special = content in special
            found[number] = AddedToken(
                content=content, special=is_special, normalized=not is_special
            )
        return dict(sorted(found.items()))

    @property
    def _has_decoder(self) -> bool:
        return "added_tokens_decoder" in self.config

    def to_add(self, present: Mapping[int, AddedToken]) -> list[AddedToken]:
        """What changes the tokenizer's added tokens `present`, in order.

        Raises:
            TokenizerError: As `named` and `by_id`.
        """
        listed = self.by_id
        if not self._has_decoder:  # tokenizer.json's own flags go before added_tokens.json
            listed |= present
        same = frozenset(present.values())
        found = [token for _, token in sorted(listed.items()) if token not in same]
        known = {token.content for token in (*present.values(), *found)}
        named = self.named
        for token in (*named.values(), *self.extra):
            if token.content not in known:
                found.append(replace(token, special=True))
                known.add(token.content)
        names = {token.content for token in named.values()}
        return [replace(token, special=token.special or token.content in names) for token in found]


def _is_model_specific(name: str, value: object) -> bool:
    """A name of the model's own, such as `image_token`; `add_bos_token` is a setting."""
    is_token = isinstance(value, str) or (isinstance(value, Mapping) and "content" in value)
    return name.endswith("_token") and is_token


def _listed(entries: Mapping[str, Any]) -> Iterator[tuple[int, AddedToken]]:
    for number, value in entries.items():
        token = _token("added_tokens_decoder", value)
        if token is None or not number.isdecimal() or len(number) > 9:
            raise TokenizerError(
                f"{TOKENIZER_CONFIG_FILE}: added_tokens_decoder has {value!r} under {number!r}; "
                "a token under its id is needed"
            )
        yield int(number), token


def _token(name: str, value: object) -> AddedToken | None:
    """A token as a string or as a serialized `AddedToken`; empty counts as absent."""
    given = {"content": value, "special": True} if isinstance(value, str) else value
    if given is None:
        return None
    if not isinstance(given, Mapping) or not isinstance(given.get("content"), str):
        raise TokenizerError(
            f"{TOKENIZER_CONFIG_FILE}: {name} is {value!r}; a token as a string, or an object "
            "with its content, is needed"
        )
    flags = {key: flag for key, flag in given.items() if key in _FLAGS and key != "content"}
    if not all(isinstance(flag, bool) for flag in flags.values()):
        raise TokenizerError(
            f"{TOKENIZER_CONFIG_FILE}: {name} has a flag that is not true or false"
        )
    if not given["content"]:
        return None
    special = flags.pop("special", isinstance(value, str))
    normalized = flags.pop("normalized", not special)
    return AddedToken(content=given["content"], special=special, normalized=normalized, **flags)
