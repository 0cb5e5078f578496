"""What a chat template makes of a dialog: which messages it takes, and where a turn ends.

Templates differ. Some read a message's content as a list of parts, some refuse a system message or
drop it without a word, some take one exchange only. This is found out by rendering.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from llama_edge.core.errors import TokenizerError
from llama_edge.text.chat_template import ChatTemplate, TemplateStoppedError

Message = Mapping[str, Any]

_SYSTEM: Final = {"role": "system", "content": "Answer in one short sentence."}
_USER: Final = {"role": "user", "content": "Where does the old lighthouse stand?"}
_ASSISTANT: Final = {"role": "assistant", "content": "On the northern cape of the island."}
_NEXT: Final = {"role": "user", "content": "How many steps lead to the top?"}


@dataclass(frozen=True, slots=True, kw_only=True)
class DialogForm:
    """What a template takes."""

    #: content is given as `[{"type": "text", "text": ...}]`
    parts: bool
    #: why it takes no system message, if it takes none
    no_system: str | None
    #: why it takes one exchange only, if so
    no_turns: str | None
    #: what it writes right after an assistant's text, without white space around; "": nothing
    after_answer: str

    def given(self, messages: Iterable[Message]) -> list[dict[str, Any]]:
        """Messages as the template wants them."""
        return [_with_parts(message) if self.parts else dict(message) for message in messages]

    def accepted(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """The messages of a sample dialog that the template takes: all, or fewer."""
        kept = [m for m in messages if m["role"] != "system" or self.no_system is None]
        if self.no_turns is not None:
            last = max(place for place, m in enumerate(kept) if m["role"] == "user")
            kept = [*(m for m in kept if m["role"] == "system"), kept[last]]
        return tuple(kept)


def dialog_form(template: ChatTemplate) -> DialogForm:
    """Render a few dialogs and look for their messages.

    Raises:
        TokenizerError: The template renders no dialog, or leaves out what the user says.
    """
    parts = _wants_parts(template)

    def refusal(dialog: Sequence[Message]) -> str | None:
        return _refusal(template, dialog, parts=parts)

    closed = _render(template, (_USER, _ASSISTANT), parts=parts, prompt=False)
    _, _, after = closed.rpartition(_ASSISTANT["content"]) if closed else ("", "", "")
    return DialogForm(
        parts=parts,
        no_system=refusal((_SYSTEM, _USER)),
        no_turns=refusal((_USER, _ASSISTANT, _NEXT)),
        after_answer=after.strip() if closed and _ASSISTANT["content"] in closed else "",
    )


def _wants_parts(template: ChatTemplate) -> bool:
    plain = _refusal(template, (_USER,), parts=False)
    if plain is None:
        return False
    if _refusal(template, (_USER,), parts=True) is None:
        return True
    raise TokenizerError(
        f"the chat template {plain} in a dialog of one user's message; what the user says would "
        "not reach the model: take the template that came with the model"
    )


def _refusal(template: ChatTemplate, dialog: Sequence[Message], *, parts: bool) -> str | None:
    """What the template does instead of rendering every message."""
    given = [_with_parts(message) for message in dialog] if parts else dialog
    try:
        text = template.render(given)
    except TemplateStoppedError:
        raise
    except TokenizerError as error:
        return f"fails ({error})"
    left_out = missing_message(dialog, text)
    return None if left_out is None else f"leaves out the {left_out['role']} message"


def _render(
    template: ChatTemplate, dialog: Sequence[Message], *, parts: bool, prompt: bool
) -> str | None:
    given = [_with_parts(message) for message in dialog] if parts else dialog
    try:
        return template.render(given, add_generation_prompt=prompt)
    except TemplateStoppedError:
        raise
    except TokenizerError:
        return None


def missing_message(messages: Iterable[Message], rendered: str) -> Message | None:
    """The first message whose text is not in the rendered dialog, as it is or as JSON.

    White space does not count: templates trim.
    """
    squeezed = _squeezed(rendered)
    for message in messages:
        content = message.get("content")
        if not isinstance(content, str):
            continue
        forms = (content, *(json.dumps(content, ensure_ascii=each)[1:-1] for each in (False, True)))
        if not any(_squeezed(form) in squeezed for form in forms):
            return message
    return None


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _with_parts(message: Message) -> dict[str, Any]:
    content = message.get("content")
    if not isinstance(content, str):
        return dict(message)
    return {**message, "content": [{"type": "text", "text": content}]}
