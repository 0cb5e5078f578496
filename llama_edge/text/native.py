"""The `tokenizers` library at a distance: the object of a `tokenizer.json` in a child process."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Final, TypeVar

from llama_edge.confined import ConfinedError, Limits, Worker
from llama_edge.core.errors import TokenizerError
from llama_edge.text import tokenizer_child

_T = TypeVar("_T")

#: A tokenizer of 128,000 tokens takes 1 s and 0.3 GiB.
_LIMITS: Final = Limits(memory_bytes=1536 << 20, cpu_s=20, wall_s=200)
_REMEDY: Final = "take the tokenizer.json that came with the model"


@dataclass(frozen=True, slots=True, kw_only=True)
class AddedToken:
    """A token that is found in the text before anything else is split.

    `special` ones can be left out when ids are decoded. The other fields are the library's: blanks
    that it takes with it, whether it is sought in normalized text and as a whole word only.
    """

    content: str
    special: bool
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    single_word: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What to change in a tokenizer when it is opened."""

    #: one with the content of a token that is there already gives it these flags
    added: tuple[AddedToken, ...] = ()
    #: contents of added tokens
    removed: tuple[str, ...] = ()
    #: the tokens, one or none, that are put in front of every text; None leaves it as it is
    begin: tuple[str, ...] | None = None
    #: serialize it as the library does, even if nothing changed
    canonical: bool = False


NO_CHANGES: Final = Changes()


class NativeTokenizer:
    """A tokenizer that neither pads nor truncates; every call is answered by its child.

    Args:
        tokenizer_json: The library's serialization, untrusted.
        changes: Made before anything else.

    Raises:
        TokenizerError: The library refuses it, crashes or exceeds a limit on it; the message does
            not name the file.
    """

    def __init__(self, tokenizer_json: str, changes: Changes = NO_CHANGES) -> None:
        _require_unicode(tokenizer_json)
        opening = {"operation": "open", "text": tokenizer_json, **asdict(changes)}
        self._worker = Worker(tokenizer_child.__name__, _LIMITS, opening=opening)
        with _told():
            found = self._worker.open()
        #: as given, or serialized anew where something was changed
        self.tokenizer_json: str = found["json"] or tokenizer_json
        #: id -> token
        self.added: Mapping[int, AddedToken] = {
            fields.pop("id"): AddedToken(**fields) for fields in found["added"]
        }
        #: the largest id and one
        self.size: int = found["size"]
        #: what the letter "a" is with all that the library itself puts around a text
        self.letter: Sequence[int] = found["processed"]

    def encode(self, text: str) -> list[int]:
        """Ids of a text in which control tokens are control tokens; nothing is added."""
        return _typed(list, self._call("encode", text=text))

    def encode_plain(
        self, text: str, control_tokens: Iterable[str] = (), *, after_control: bool = False
    ) -> list[int]:
        """Ids of a text in which control tokens are text.

        Args:
            text: Anything.
            control_tokens: Those of `added` that count as such although they are not special.
            after_control: The text follows a control token.
        """
        ids = self._call(
            "encode_plain",
            text=text,
            control_tokens=sorted(control_tokens),
            after_control=after_control,
        )
        return _typed(list, ids)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids; bytes that are not UTF-8 become U+FFFD."""
        text = self._call("decode", ids=list(ids), skip_special_tokens=skip_special_tokens)
        return _typed(str, text)

    def id_of(self, token: str) -> int | None:
        """The id of a token, or None if there is no such token."""
        (number,) = _typed(list, self._call("ids", tokens=[token]))
        return number if isinstance(number, int) else None

    def token_of(self, number: int) -> str | None:
        """The token of an id, or None if there is none."""
        if not 0 <= number < self.size:
            return None
        (token,) = _typed(list, self._call("tokens", ids=[number]))
        return token if isinstance(token, str) else None

    def tokens_within(self, texts: Sequence[str]) -> dict[int, str]:
        """Tokens whose text, after a letter, is a part of one of these texts; special ones are not.

        Args:
            texts: Anything.
        """
        found = _typed(list, self._call("tokens_within", texts=list(texts)))
        return dict(found)

    def vocabulary(self) -> dict[str, int]:
        """All tokens and their ids."""
        return _typed(dict, self._call("vocabulary"))

    def _call(self, operation: str, **arguments: object) -> object:
        if isinstance(arguments.get("text"), str):
            _require_unicode(str(arguments["text"]))
        with _told():
            return self._worker.ask({"operation": operation, **arguments})


@contextmanager
def _told() -> Iterator[None]:
    """What a child says, as an error of the tokenizer."""
    try:
        yield
    except ConfinedError as error:
        if error.refused:
            raise TokenizerError(str(error)) from error
        raise TokenizerError(
            f"the tokenizers library was stopped on it: {error}; {_REMEDY}"
        ) from error


def _typed(kind: type[_T], value: object) -> _T:
    """What came from a child is of this type."""
    assert isinstance(value, kind), f"the child answers with a {type(value).__name__}"
    return value


def _require_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TokenizerError(f"the text is not valid Unicode: {error}") from error


#: SHA-256 -> what is wrong: a file that takes the limit to refuse is tried once.
_faults: dict[bytes, str] = {}
#: the tokenizers in use, by their serialization; the last used last
_shared: OrderedDict[str, NativeTokenizer] = OrderedDict()
_SHARED: Final = 4
_sharing: Final = threading.Lock()


def open_tokenizer(
    where: str, tokenizer_json: str, changes: Changes = NO_CHANGES
) -> NativeTokenizer:
    """The tokenizer of a serialization; shared by all who ask for the same text.

    Args:
        where: Named in the message.
        tokenizer_json: The untrusted text of a `tokenizer.json`.
        changes: Made before anything else.

    Raises:
        TokenizerError: The library refuses the text, or crashes or exceeds a limit on it.
    """
    with _sharing:
        if changes == NO_CHANGES and tokenizer_json in _shared:
            _shared.move_to_end(tokenizer_json)
            return _shared[tokenizer_json]
        digest = hashlib.sha256(tokenizer_json.encode(errors="surrogatepass")).digest()
        if digest in _faults:
            raise TokenizerError(f"{where}: {_faults[digest]}")
        try:
            opened = NativeTokenizer(tokenizer_json, changes)
        except TokenizerError as error:
            if changes == NO_CHANGES:
                _faults[digest] = str(error)
            raise TokenizerError(f"{where}: {error}") from error
        _shared[opened.tokenizer_json] = opened
        if len(_shared) > _SHARED:
            _shared.popitem(last=False)
        return opened
