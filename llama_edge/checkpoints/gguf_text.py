"""The text side of a GGUF file, by llama.cpp's rules (`llama_vocab::impl::load`)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from llama_edge.checkpoints.bpe import Vocabulary, llama3_tokenizer, smollm_tokenizer
from llama_edge.checkpoints.json_fields import Fields
from llama_edge.core.errors import TokenizerError
from llama_edge.core.text_assets import TextAssets
from llama_edge.text.native import NativeTokenizer
from llama_edge.text.text_assets import build_text_assets

_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4

_Build = Callable[[Vocabulary, str | None], NativeTokenizer]
#: `tokenizer.ggml.pre` -> builder, and whether text begins with BOS unless the file says.
_TOKENIZERS: Final[Mapping[str, tuple[_Build, bool]]] = {
    "smollm": (smollm_tokenizer, False),
    "llama-bpe": (llama3_tokenizer, True),
    "llama3": (llama3_tokenizer, True),
    "llama-v3": (llama3_tokenizer, True),
}
#: Keys of ids, and the names under which templates know the tokens. (The second is GGUF's own
#: spelling.)
_NAMED: Final = {
    "unknown": "unk_token",
    "seperator": "sep_token",
    "padding": "pad_token",
    "cls": "cls_token",
    "mask": "mask_token",
}
#: Tokens at which llama.cpp ends an answer, and which it takes for control tokens, whatever the
#: file says of them.
_END_TEXTS: Final = frozenset(
    (
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "<|eom_id|>",
        "<EOT>",
    )
)
#: Control tokens whatever the file says: parts of a program around a gap.
_CONTROL_TEXTS: Final = _END_TEXTS | {
    "<|fim_prefix|>",
    "<|fim_suffix|>",
    "<|fim_middle|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
}


@dataclass(frozen=True, slots=True)
class _Ids:
    """Ids of special tokens that are in the vocabulary."""

    fields: Fields
    tokens: Sequence[str]

    def get(self, name: str) -> int | None:
        key = f"tokenizer.ggml.{name}_token_id"
        if self.fields.values.get(key) is None:
            return None
        number = self.fields.integer(key)
        if not 0 <= number < len(self.tokens):
            raise TokenizerError(
                f"{self.fields.path}: {key} is {number}, which is outside the vocabulary of "
                f"{len(self.tokens)} tokens"
            )
        return number


def read_text(metadata: Fields) -> TextAssets:
    """Tokenizer, chat template and special tokens.

    Raises:
        TokenizerError: The tokenizer is of another kind, or damaged.
    """
    model, pre = (metadata.values.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    if model != "gpt2" or not isinstance(pre, str) or pre not in _TOKENIZERS:
        raise TokenizerError(
            f"{metadata.path}: tokenizer {model!r} with pre-tokenizer {pre!r} is not supported; "
            f"byte-level BPE ('gpt2') with one of {', '.join(_TOKENIZERS)} is"
        )
    build, adds_bos = _TOKENIZERS[pre]
    tokens = _strings(metadata, "tokenizer.ggml.tokens")
    ids = _Ids(metadata, tokens)
    bos, eos = ids.get("bos"), ids.get("eos")
    adds_bos = metadata.flag("tokenizer.ggml.add_bos_token", default=adds_bos) and bos is not None
    added = _added(metadata, tokens)
    if adds_bos and bos is not None:
        added[bos] = True
    vocabulary = Vocabulary(tokens=tokens, merges=_merges(metadata), added=added)
    tokenizer = build(vocabulary, tokens[bos] if adds_bos and bos is not None else None)
    named = {"bos_token": bos, "eos_token": eos}
    named |= {name: ids.get(key) for key, name in _NAMED.items()}
    ends = [number for number in (eos, ids.get("eot"), ids.get("eom")) if number is not None]
    ends += [number for number in added if tokens[number] in _END_TEXTS]
    return build_text_assets(
        tokenizer,
        _template(metadata),
        # An ordinary word under such a name is a slip of the converter, and no control token.
        named={name: tokens[n] for name, n in named.items() if n is not None and n in added},
        ends=ends,
    )


def _template(metadata: Fields) -> str | None:
    template = metadata.values.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise TokenizerError(f"{metadata.path}: tokenizer.chat_template is not a string")
    return template


def _strings(fields: Fields, key: str) -> list[str]:
    value = fields.values.get(key)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise TokenizerError(f"{fields.path}: {key} is missing or not a list of strings")
    return value


def _merges(metadata: Fields) -> list[tuple[str, str]]:
    merges = []
    for line in _strings(metadata, "tokenizer.ggml.merges"):
        first, _, second = line.partition(" ")
        merges.append((first, second))
    return merges


def _added(metadata: Fields, tokens: Sequence[str]) -> dict[int, bool]:
    """Ids of control tokens (True) and of user-defined ones (False).

    A file without types has only ordinary tokens, apart from those that llama.cpp knows by name.
    """
    types = metadata.values.get("tokenizer.ggml.token_type", [_NORMAL] * len(tokens))
    if not isinstance(types, list) or len(types) != len(tokens):
        raise TokenizerError(
            f"{metadata.path}: tokenizer.ggml.token_type must be a list of {len(tokens)} numbers"
        )
    found = {}
    for number, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        is_control = kind == _CONTROL or token in _CONTROL_TEXTS
        if is_control or kind == _USER_DEFINED:
            found[number] = is_control
    return found
