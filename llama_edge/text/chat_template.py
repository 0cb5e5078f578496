"""Chat templates, rendered as Hugging Face's tools do, in a child process with limits."""

from collections.abc import Mapping, Sequence
from datetime import date
from functools import lru_cache
from typing import Any, Final

from llama_edge.confined import ConfinedError, Limits, Worker
from llama_edge.core.errors import TokenizerError
from llama_edge.text import template_child

#: What `strftime_now` says by default, so that a dialog has the same tokens tomorrow. It is the day
#: that Llama 3.2's own template falls back to.
REFERENCE_DATE: Final = date(2024, 7, 26)

MAX_TEMPLATE_CHARACTERS: Final = 1 << 17  # the longest published ones have about 20,000
#: A published template renders a dialog in a millisecond.
_LIMITS: Final = Limits(memory_bytes=256 << 20, cpu_s=2, wall_s=60)
_REMEDY: Final = "no template of a chat needs so much; take the one that came with the model"


class TemplateStoppedError(TokenizerError):
    """A template exceeds a limit or kills its child: it is hostile, whatever the dialog."""


@lru_cache(maxsize=8)
def _worker(source: str) -> Worker:
    """A child for one template: what it does to its process is its own affair."""
    del source
    return Worker(template_child.__name__, _LIMITS)


class ChatTemplate:
    """A compiled template.

    Args:
        source: Jinja, untrusted.
        variables: Special tokens by the names that templates use (`bos_token`, ...).

    Raises:
        TokenizerError: It is too long, or cannot be compiled.
    """

    def __init__(self, source: str, variables: Mapping[str, str]) -> None:
        if len(source) > MAX_TEMPLATE_CHARACTERS:
            raise TokenizerError(
                f"the chat template has {len(source)} characters; at most "
                f"{MAX_TEMPLATE_CHARACTERS} are accepted"
            )
        self._source = source
        self._variables = dict(variables)
        self._worker = _worker(source)
        #: the template's own text and string constants
        self.literals: Sequence[str] = self._ask({})

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        today: date = REFERENCE_DATE,
        firsts: str = "",
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The dialog as one string, control tokens and BOS included.

        Args:
            messages: `role` and `content` each, as in transformers' `apply_chat_template`; JSON
                values.
            add_generation_prompt: End with the header of the assistant's turn.
            tools: JSON schemas of functions, for templates that show them.
            today: What the template takes for the current day.
            firsts: Characters of messages, tools and `variables` that are followed by a mark in the
                result, see `typed_text`.
            variables: More that the template reads, as transformers passes keywords on; JSON
                values.

        Raises:
            TokenizerError: The template fails, or refuses the messages.
            TemplateStoppedError: It exceeds a limit.
        """
        text: str = self._ask(
            {
                "messages": [dict(message) for message in messages],
                "tools": tools,
                "add_generation_prompt": add_generation_prompt,
                "variables": self._variables,
                "today": today.isoformat(),
                "firsts": firsts,
                "given": dict(variables or {}),
            }
        )
        return text

    def _ask(self, request: Mapping[str, Any]) -> Any:  # noqa: ANN401
        try:
            return self._worker.ask({"source": self._source, **request})
        except ConfinedError as error:
            if error.refused:
                raise TokenizerError(str(error)) from error
            raise TemplateStoppedError(
                f"the chat template was stopped: {error}; {_REMEDY}"
            ) from error
