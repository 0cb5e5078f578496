"""The text side of a GGUF file, by llama.cpp's rules (`llama_vocab::impl::load`)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from llama_edge.checkpoints.bpe import Vocabulary, llama3_tokenizer, smollm_tokenizer
from llama_edge.checkpoints.json_fields import Fields
from llama_edge.core.errors import TokenizerError
from llama_edge.core.text_assets import TextAssets
from llama_edge.text.native import Changes, NativeTokenizer, open_tokenizer
from llama_edge.text.sentencepiece import PieceKind, SentencePieces, sentencepiece_json
from llama_edge.text.text_assets import build_text_assets

_SENTENCEPIECE: Final = "llama"
_CONTROL_KINDS: Final = (PieceKind.UNKNOWN, PieceKind.CONTROL)

_Build = Callable[[Vocabulary, str | None], NativeTokenizer]
#: `tokenizer.ggml.pre` -> builder, and whether text begins with BOS unless the file says.
_TOKENIZERS: Final[Mapping[str, tuple[_Build, bool]]] = {
    "smollm": (smollm_tokenizer, False),
    "llama-bpe": (llama3_tokenizer, True),
    "llama3": (llama3_tokenizer, True),
    "llama-v3": (llama3_tokenizer, True),
}
#: Keys of ids, and the names under which templates know the tokens. (`seperator` is GGUF's own
#: spelling.)
_NAMED: Final = {
    "bos": "bos_token",
    "eos": "eos_token",
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
class _Source:
    """The vocabulary of a file, and what it says of it."""

    fields: Fields
    tokens: Sequence[str]
    kinds: Sequence[int]
    #: text begins with BOS unless the file says
    adds_bos: bool
    #: ids of roles that the file does not name
    default_ids: Mapping[str, int]

    def id_of(self, role: str) -> int | None:
        """The id of a special token, if there is one.

        Raises:
            TokenizerError: It is outside the vocabulary.
        """
        key = f"tokenizer.ggml.{role}_token_id"
        if self.fields.values.get(key) is None:
            return self.default_ids.get(role)
        number = self.fields.integer(key)
        if not 0 <= number < len(self.tokens):
            raise TokenizerError(
                f"{self.fields.path}: {key} is {number}, which is outside the vocabulary of "
                f"{len(self.tokens)} tokens"
            )
        return number

    @property
    def begin(self) -> int | None:
        """The id that is put in front of every text, if any."""
        adds = self.fields.flag("tokenizer.ggml.add_bos_token", default=self.adds_bos)
        return self.id_of("bos") if adds else None

    @property
    def added(self) -> dict[int, bool]:
        """Ids of control tokens (True) and of user-defined ones (False)."""
        begin, repeated, found = self.begin, self.repeated, {}
        for number, (token, kind) in enumerate(zip(self.tokens, self.kinds, strict=True)):
            if number in repeated:
                continue
            is_control = kind in _CONTROL_KINDS or token in _CONTROL_TEXTS or number == begin
            if is_control or kind == PieceKind.USER_DEFINED:
                found[number] = is_control
        return found

    @property
    def repeated(self) -> dict[int, str]:
        """Tokens that are there already, by id; llama.cpp reads such files."""
        seen = set[str]()
        found = {}
        for number, token in enumerate(self.tokens):
            if token in seen:
                found[number] = token
            seen.add(token)
        return found


def read_text(metadata: Fields) -> TextAssets:
    """Tokenizer, chat template and special tokens.

    Raises:
        TokenizerError: The tokenizer is of another kind, or damaged.
    """
    source = _source(metadata)
    if metadata.values["tokenizer.ggml.model"] == _SENTENCEPIECE:
        tokenizer = _sentencepiece(source)
    else:
        tokenizer = _byte_level(source)
    added, tokens = source.added, source.tokens
    roles = {name: source.id_of(role) for role, name in _NAMED.items()}
    ends = [source.id_of(role) for role in ("eos", "eot", "eom")]
    text = build_text_assets(
        tokenizer,
        _template(metadata),
        # An ordinary word under such a name is a slip of the converter, and no control token.
        named={name: tokens[n] for name, n in roles.items() if n is not None and n in added},
        ends=[
            *(number for number in ends if number is not None),
            *(number for number in added if tokens[number] in _END_TEXTS),
        ],
    )
    repeated = sorted(set(source.repeated.values()))
    if repeated:
        remark = (
            f"{len(source.repeated)} ids repeat the token {repeated[0]!r}"
            + (f" or {len(repeated) - 1} others" if len(repeated) > 1 else "")
            + "; the first id is taken"
        )
        return replace(text, warnings=(*text.warnings, remark))
    return text


def _source(metadata: Fields) -> _Source:
    model, pre = (metadata.values.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    is_sentencepiece = model == _SENTENCEPIECE
    if model == "gpt2" and pre is None:
        raise TokenizerError(
            f"{metadata.path}: does not say how text is split before it is encoded "
            "(tokenizer.ggml.pre), as files that llama.cpp made before May 2024; any guess may "
            "give other tokens than the model knows: take a newer conversion"
        )
    known = isinstance(pre, str) and pre in _TOKENIZERS
    if not is_sentencepiece and not (model == "gpt2" and known):
        raise TokenizerError(
            f"{metadata.path}: tokenizer {model!r} with pre-tokenizer {pre!r} is not supported; "
            f"SentencePiece ({_SENTENCEPIECE!r}) is, and byte-level BPE ('gpt2') with one of "
            f"{', '.join(_TOKENIZERS)}"
        )
    tokens = _strings(metadata, "tokenizer.ggml.tokens")
    kinds = _numbers(metadata, "tokenizer.ggml.token_type", len(tokens), PieceKind.NORMAL)
    return _Source(
        fields=metadata,
        tokens=tokens,
        kinds=[int(kind) for kind in kinds],
        adds_bos=is_sentencepiece or _TOKENIZERS[str(pre)][1],
        default_ids={"bos": 1, "eos": 2, "unknown": 0} if is_sentencepiece else {},
    )


def _byte_level(source: _Source) -> NativeTokenizer:
    build, _ = _TOKENIZERS[source.fields.values["tokenizer.ggml.pre"]]
    repeated = source.repeated
    vocabulary = Vocabulary(
        tokens=[None if n in repeated else token for n, token in enumerate(source.tokens)],
        merges=_merges(source.fields),
        added=source.added,
    )
    return build(vocabulary, None if source.begin is None else source.tokens[source.begin])


def _sentencepiece(source: _Source) -> NativeTokenizer:
    """A space also comes after each control token, as in llama.cpp."""
    where, control = str(source.fields.path), source.added
    scores = _numbers(source.fields, "tokenizer.ggml.scores", len(source.tokens), 0.0)
    unknown = source.id_of("unknown")
    kinds = list(source.kinds)
    for number, special in control.items():
        kinds[number] = PieceKind.CONTROL if special else PieceKind.USER_DEFINED
    if unknown is not None:
        kinds[unknown] = PieceKind.UNKNOWN
    pieces = SentencePieces(
        tokens=source.tokens,
        scores=scores,
        kinds=kinds,
        add_prefix=source.fields.flag("tokenizer.ggml.add_space_prefix", default=True),
        prefix_after_control=True,
    )
    begin = () if source.begin is None else (source.tokens[source.begin],)
    changes = Changes(begin=begin, canonical=True)
    return open_tokenizer(where, sentencepiece_json(pieces, where), changes)


def _numbers(fields: Fields, key: str, count: int, default: float) -> list[float]:
    """One number for each token; an absent list is all `default`."""
    values = fields.values.get(key, [default] * count)
    if not isinstance(values, list) or len(values) != count:
        raise TokenizerError(f"{fields.path}: {key} must be a list of {count} numbers")
    if not all(isinstance(value, (int, float)) and value == value for value in values):  # no NaN
        raise TokenizerError(f"{fields.path}: {key} holds something else than numbers")
    return values


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
