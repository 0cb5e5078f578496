"""Text to token ids and back, for a person's text, a dialog, and a stream of new tokens."""

import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from typing import Any, Final

from llama_edge.core.errors import TokenizerError
from llama_edge.core.text_assets import TextAssets
from llama_edge.text.chat_template import REFERENCE_DATE, ChatTemplate
from llama_edge.text.text_assets import main_end_token, parse_tokenizer

#: Stands inside a control token that a message's content spells, while the dialog is rendered.
_QUOTE: Final = "\ufdd0"  # a Unicode noncharacter: no text has it
_REPLACEMENT: Final = "\ufffd"
_SETTING: Final = threading.Lock()


class Tokenizer:
    """A model's tokenizer, with its chat template."""

    def __init__(self, text: TextAssets) -> None:
        self._tokenizer = parse_tokenizer("tokenizer.json", text.tokenizer_json)
        self._text = text
        tokens = self._tokenizer.get_added_tokens_decoder().values()
        specials = [re.escape(token.content) for token in tokens if token.special]
        # The group keeps the tokens in `split`; the longest first, should one begin with another.
        self._control_tokens = re.compile(
            f"({'|'.join(sorted(specials, key=len, reverse=True))})" if specials else "((?!))"
        )
        bos = text.bos_token_id
        self._template: ChatTemplate | None = None
        if text.chat_template is not None:
            self._template = ChatTemplate(
                text.chat_template,
                bos_token="" if bos is None else self._tokenizer.id_to_token(bos) or "",
                eos_token=main_end_token(self._tokenizer, text) or "",
            )

    @property
    def vocab_size(self) -> int:
        """Number of ids, those of added tokens included."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    @property
    def has_chat_template(self) -> bool:
        """Whether `encode_chat` works."""
        return self._template is not None

    def encode(self, text: str, *, add_bos: bool | None = None) -> list[int]:
        """Token ids of plain text; a control token spelled in it stays text.

        Args:
            text: Anything.
            add_bos: Put BOS first; by default as the model wants it.
        """
        adds_bos = self._text.add_bos if add_bos is None else add_bos
        bos = self._text.bos_token_id
        begin = [bos] if adds_bos and bos is not None else []
        return begin + self._ids(text, control_tokens=False)

    def encode_rendered(self, text: str) -> list[int]:
        """Token ids of a rendered template: control tokens are parsed, no BOS is added."""
        return self._ids(text, control_tokens=True)

    def render_chat(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """A dialog as the chat template writes it, up to where the assistant begins.

        Raises:
            TokenizerError: There is no template, or it fails.
        """
        return self._chat_template().render(messages)

    def _chat_template(self) -> ChatTemplate:
        if self._template is None:
            raise TokenizerError(
                "the model has no chat template; give the prompt raw, or add chat_template.jinja"
            )
        return self._template

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        today: date = REFERENCE_DATE,
    ) -> list[int]:
        """Token ids of a dialog through the chat template.

        Control tokens spelled inside a message's content stay text, so that a person (or a web page
        that a person pasted) cannot end a turn or speak as the system.

        Raises:
            TokenizerError: There is no template, or it fails.
        """
        rendered = self._chat_template().render(
            [self._quoted(message) for message in messages],
            add_generation_prompt=add_generation_prompt,
            today=today,
        )
        if _QUOTE not in rendered:
            return self.encode_rendered(rendered)
        ids: list[int] = []
        for piece in self._control_tokens.split(rendered):
            if self._control_tokens.fullmatch(piece):
                ids += self._ids(piece, control_tokens=True)
            else:
                ids += self._ids(piece.replace(_QUOTE, ""), control_tokens=False)
        return ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids; bytes that are not UTF-8 become U+FFFD."""
        with _faults_told():
            text: str = self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        return text

    def _ids(self, text: str, *, control_tokens: bool) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise TokenizerError(f"the text is not valid Unicode: {error}") from error
        # The setting is the shared object's: nobody else encodes while it is ours.
        with _SETTING, _faults_told():
            self._tokenizer.encode_special_tokens = not control_tokens
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _quoted(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """The message, no control token in its content being one any more."""
        content = message.get("content")
        if not isinstance(content, str):
            return dict(message)
        content = content.replace(_QUOTE, _REPLACEMENT)
        return {**message, "content": self._control_tokens.sub(_quote, content)}


@contextmanager
def _faults_told() -> Iterator[None]:
    """The library's errors as ours; a panic is no `Exception`, and its class has no public name."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(
            f"tokenizer.json: the tokenizers library fails on this text: {error}"
        ) from error


def _quote(found: re.Match[str]) -> str:
    return found[0][0] + _QUOTE + found[0][1:]


class TokenStream:
    """Text of tokens as they come: whole characters only, every space kept.

    Everything pushed and the final `flush` together are `decode` of all ids.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        #: the last token that was given out whole (a decoder may need it to see a space), then
        #: those that are not finished
        self._window: list[int] = []
        self._given = 0

    def push(self, token: int) -> str:
        """The text that `token` completes; empty inside a character."""
        self._window.append(token)
        text = self._tokenizer.decode(self._window)
        whole = text.rstrip(_REPLACEMENT)
        new = whole[self._given :]
        self._given = max(self._given, len(whole))
        if whole == text and new:
            self._window = [token]
            self._given = len(self._tokenizer.decode(self._window))
        return new

    def flush(self) -> str:
        """What is left at the end: the U+FFFD of a character that never got complete."""
        rest = self._tokenizer.decode(self._window)[self._given :]
        self._window, self._given = [], 0
        return rest
