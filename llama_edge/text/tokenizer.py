"""Text to token ids and back, for a person's text, a dialog, and a stream of new tokens."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import date
from functools import cached_property
from typing import Any, Final

from llama_edge.core.errors import TokenizerError
from llama_edge.core.text_assets import TextAssets
from llama_edge.text.chat_template import REFERENCE_DATE, ChatTemplate
from llama_edge.text.dialog_form import DialogForm, dialog_form
from llama_edge.text.native import AddedToken, open_tokenizer
from llama_edge.text.token_bytes import drops_first_space, token_bytes
from llama_edge.text.tool_form import ToolForm, tool_form
from llama_edge.text.typed_text import MARK, without_marks

_REPLACEMENT: Final = "\ufffd"


class Tokenizer:
    """A model's tokenizer, with its chat template.

    Raises:
        TokenizerError: One of them is refused, or exceeds a limit.
    """

    def __init__(self, text: TextAssets) -> None:
        self._tokenizer = open_tokenizer("tokenizer.json", text.tokenizer_json)
        self._text = text
        self._template: ChatTemplate | None = None
        if text.chat_template is not None:
            self._template = ChatTemplate(text.chat_template, text.special_tokens)
        literals = () if self._template is None else self._template.literals
        ends = {*text.eos_token_ids, text.bos_token_id}
        self._control = control_tokens(self._tokenizer.added, literals, ends)
        self._not_special = [token.content for token in self._control if not token.special]
        self._firsts = "".join(sorted({token.content[0] for token in self._control}))
        # The group keeps the tokens in `split`; the longest first, should one begin with another.
        contents = sorted((token.content for token in self._control), key=len, reverse=True)
        spelled = "|".join(map(re.escape, contents)) if contents else "(?!)"
        self._pattern = re.compile(f"({spelled})(?!{MARK})")

    @property
    def vocab_size(self) -> int:
        """The largest id and one, those of added tokens included."""
        return self._tokenizer.size

    @property
    def has_chat_template(self) -> bool:
        """Whether `encode_chat` works."""
        return self._template is not None

    @cached_property
    def form(self) -> DialogForm:
        """Which dialogs the chat template takes.

        Raises:
            TokenizerError: There is no template, or it renders no dialog.
        """
        return dialog_form(self._chat_template())

    @cached_property
    def tool_form(self) -> ToolForm:
        """How the model is told of tools, and how it calls them.

        Raises:
            TokenizerError: There is no template, or it renders no dialog.
        """
        return tool_form(self._chat_template(), self.form)

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The bytes of each token that is text, by id; empty for the others.

        Raises:
            TokenizerError: They are not known for this kind of tokenizer.
        """
        return token_bytes(self._tokenizer)

    @cached_property
    def drops_first_space(self) -> bool:
        """Whether a space in front of a text is lost when its tokens are decoded."""
        return drops_first_space(self._tokenizer, self.token_bytes)

    def encode(self, text: str, *, add_bos: bool | None = None) -> list[int]:
        """Token ids of plain text; a control token spelled in it stays text.

        Args:
            text: Anything.
            add_bos: Put BOS first; by default as the model wants it.
        """
        adds_bos = self._text.add_bos if add_bos is None else add_bos
        bos = self._text.bos_token_id
        begin = [bos] if adds_bos and bos is not None else []
        return begin + self._tokenizer.encode_plain(text, self._not_special)

    def encode_rendered(self, text: str) -> list[int]:
        """Token ids of a rendered template: control tokens are parsed, no BOS is added."""
        return self._tokenizer.encode(text)

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """A dialog as the chat template writes it, up to where the assistant begins.

        Args:
            messages: The dialog.
            tools: Given to the template as they are.
            variables: More that the template reads.

        Raises:
            TokenizerError: There is no template, or it fails.
        """
        return self._chat_template().render(self._given(messages), tools=tools, variables=variables)

    def _chat_template(self) -> ChatTemplate:
        if self._template is None:
            raise TokenizerError(
                "the model has no chat template; give the prompt raw, or add chat_template.jinja"
            )
        return self._template

    def _given(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """As the template wants them.

        Raises:
            TokenizerError: There is a system message, and the template takes none.
        """
        if self.form.no_system is not None and any(m.get("role") == "system" for m in messages):
            raise TokenizerError(
                f"the chat template takes no system message: it {self.form.no_system}; leave the "
                "system prompt out, or write it into the first message"
            )
        return self.form.given(messages)

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        today: date = REFERENCE_DATE,
        variables: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Token ids of a dialog through the chat template.

        Control tokens spelled in a message or a tool stay text, so that a person (or a web page
        that a person pasted) cannot end a turn or speak as the system.

        Args:
            messages: As `ChatTemplate.render` has them.
            tools: Given to the template as they are, which may leave them out: see `tool_form`.
            add_generation_prompt: End with the header of the assistant's turn.
            today: What the template takes for the current day.
            variables: More that the template reads, control tokens as in messages.

        Raises:
            TokenizerError: There is no template, or it fails.
        """
        rendered = self._chat_template().render(
            self._given(messages),
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            today=today,
            firsts=self._firsts,
            variables=variables,
        )
        plain = without_marks(rendered)
        pieces = self._pattern.split(rendered)  # text, control token, text, ..., text
        pieces[::2] = map(without_marks, pieces[::2])
        if pieces == self._pattern.split(plain):  # nobody typed a control token
            return self.encode_rendered(plain)
        return self._encode_pieces(pieces)

    def _encode_pieces(self, pieces: Sequence[str]) -> list[int]:
        """Ids of text, a control token, text, ..., text."""
        controls = {token.content: token for token in self._control}
        ids: list[int] = []
        for place in range(0, len(pieces), 2):
            text = pieces[place]
            before = controls[pieces[place - 1]] if place else None
            after = controls[pieces[place + 1]] if place + 1 < len(pieces) else None
            # Some tokens take the white space around them with them.
            text = text.lstrip() if before is not None and before.rstrip else text
            text = text.rstrip() if after is not None and after.lstrip else text
            ids += self._tokenizer.encode_plain(
                text, self._not_special, after_control=before is not None
            )
            if after is not None:
                ids += self._tokenizer.encode(after.content)
        return ids

    def tokens_within(self, texts: Sequence[str]) -> dict[int, str]:
        """The tokens that are a part of one of these texts, with what they add to a text."""
        return self._tokenizer.tokens_within(texts)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids; bytes that are not UTF-8 become U+FFFD."""
        return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)


def control_tokens(
    added: Mapping[int, AddedToken], literals: Iterable[str], begins_or_ends: Collection[int | None]
) -> tuple[AddedToken, ...]:
    """The added tokens that a person must not be able to write.

    They are the special ones; and of the others, but for white space, those that the chat template
    writes itself and those that begin or end a text, which a template may write as
    `{{ eos_token }}`. Without the last, this is the rule of `sanitize_control_tokens` in
    transformers' `apply_chat_template`. The apps have the same: `controlTokens`, in both of them in
    a file AddedTokens.

    Args:
        added: The tokenizer's, by id.
        literals: The template's own text and string constants.
        begins_or_ends: Ids of BOS and of the end tokens.
    """
    written = "\0".join(literals)
    return tuple(
        token
        for number, token in added.items()
        if token.special
        or ((token.content in written or number in begins_or_ends) and token.content.strip())
    )


class TokenStream:
    """Text of tokens as they come: whole characters only, every space kept.

    Everything pushed and the final `flush` together are `decode` of all ids.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        #: the tokens that were last given out whole (a decoder may need them to see a space, and
        #: must not begin inside a character), then those that are not finished
        self._window: list[int] = []
        self._context = 0
        self._given = 0

    def push(self, token: int) -> str:
        """The text that `token` completes; empty inside a character."""
        self._window.append(token)
        text = self._tokenizer.decode(self._window)
        whole = text.rstrip(_REPLACEMENT)
        new = whole[self._given :]
        self._given = max(self._given, len(whole))
        if whole == text and new:
            self._window = self._window[self._context :]
            self._context = len(self._window)
            self._given = len(self._tokenizer.decode(self._window))
        return new

    def flush(self) -> str:
        """What is left at the end: the U+FFFD of a character that never got complete."""
        rest = self._tokenizer.decode(self._window)[self._given :]
        self._window, self._context, self._given = [], 0, 0
        return rest
