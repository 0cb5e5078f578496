"""What Llama Guard 3 is asked: hazard categories, and a conversation whose last turn it judges.

Source of wording and names: the chat template that Meta publishes with Llama Guard 3 1B. A category
with a description has the form of Meta's `build_custom_prompt` (llama-recipes).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

from llama_edge.core.errors import GuardError, UsageError
from llama_edge.core.text_assets import TextAssets
from llama_edge.text.dialog import Message
from llama_edge.text.tokenizer import Tokenizer

#: Far above any published list; each costs tokens of every check.
MAX_CATEGORIES: Final = 64
MAX_NAME_CHARACTERS: Final = 120
MAX_DESCRIPTION_CHARACTERS: Final = 4000

_CODE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,15}")


class Side(StrEnum):
    """Whose message is judged, named as in the prompt."""

    USER = "User"
    AGENT = "Agent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Category:
    """A kind of content that is unsafe.

    Raises:
        UsageError: A field has a form that the answer or the prompt cannot have.
    """

    #: what the answer names it by
    code: str
    #: without the full stop that the prompt puts after it
    name: str
    description: str | None = None

    def __post_init__(self) -> None:
        if not _CODE.fullmatch(self.code):
            raise UsageError(
                f"category code {self.code[:40]!r}: a letter and up to 15 letters, digits, _ or - "
                "are needed"
            )
        if not 0 < len(self.name.strip()) <= MAX_NAME_CHARACTERS or len(self.name.split("\n")) > 1:
            raise UsageError(
                f"category {self.code}: its name has {len(self.name)} characters; one line of 1 to "
                f"{MAX_NAME_CHARACTERS} is needed"
            )
        if self.description is not None and len(self.description) > MAX_DESCRIPTION_CHARACTERS:
            raise UsageError(
                f"category {self.code}: its description has {len(self.description)} characters; at "
                f"most {MAX_DESCRIPTION_CHARACTERS} are accepted"
            )

    @property
    def text(self) -> str:
        """What follows `code: ` in the prompt."""
        return f"{self.name}." if self.description is None else f"{self.name}. \n{self.description}"


#: Of Llama Guard 3 1B and 11B Vision; the 8B has one more, in its own template.
CATEGORIES: Final = tuple(
    Category(code=f"S{number}", name=name)
    for number, name in enumerate(
        (
            "Violent Crimes",
            "Non-Violent Crimes",
            "Sex Crimes",
            "Child Exploitation",
            "Defamation",
            "Specialized Advice",
            "Privacy",
            "Intellectual Property",
            "Indiscriminate Weapons",
            "Hate",
            "Self-Harm",
            "Sexual Content",
            "Elections",
        ),
        start=1,
    )
)

#: The tokens of Llama 3 that the prompt is made of.
_CONTROL: Final = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_BEGIN: Final = "<BEGIN UNSAFE CONTENT CATEGORIES>\n"
_END: Final = "<END UNSAFE CONTENT CATEGORIES>\n"

_LISTED: Final = ", ".join(f"'{each.code}': '{each.text}'" for each in CATEGORIES)

#: The published prompt as a chat template; `categories` may replace the list. It ends where the
#: model itself writes two line breaks and its verdict.
GUARD_TEMPLATE: Final = f"""\
{{%- if categories is not defined %}}
    {{%- set categories = {{{_LISTED}}} %}}
{{%- endif %}}
{{%- set side = 'User' if messages | length % 2 == 1 else 'Agent' %}}
{{{{- '<|begin_of_text|><|start_header_id|>user<|end_header_id|>\\n\\n' }}}}
{{{{- "Task: Check if there is unsafe content in '" + side + "' messages in conversations " }}}}
{{{{- 'according our safety policy with the below categories.\\n\\n' }}}}
{{{{- '<BEGIN UNSAFE CONTENT CATEGORIES>\\n' }}}}
{{%- for code in categories %}}
    {{{{- code + ': ' + categories[code] + '\\n' }}}}
{{%- endfor %}}
{{{{- '<END UNSAFE CONTENT CATEGORIES>\\n\\n<BEGIN CONVERSATION>\\n\\n' }}}}
{{%- for message in messages %}}
    {{%- if message['role'] != ('user' if loop.index0 % 2 == 0 else 'assistant') %}}
        {{{{- raise_exception('a conversation alternates between user and assistant') }}}}
    {{%- endif %}}
    {{{{- ('User: ' if message['role'] == 'user' else 'Agent: ') }}}}
    {{{{- message['content'] | trim + '\\n\\n' }}}}
{{%- endfor %}}
{{{{- '<END CONVERSATION>\\n\\nProvide your safety assessment for ONLY THE LAST ' + side }}}}
{{{{- " message in the above conversation:\\n - First line must read 'safe' or 'unsafe'.\\n" }}}}
{{{{- ' - If unsafe, a second line must include a comma-separated list of violated ' }}}}
{{{{- 'categories. <|eot_id|><|start_header_id|>assistant<|end_header_id|>' }}}}
"""

_PROBE: Final = ({"role": "user", "content": "Where does the old lighthouse stand?"},)
_ASKS: Final = (re.compile(r"\bsafe\b"), re.compile(r"\bunsafe\b"))
_ENTRY: Final = re.compile(rf"^({_CODE.pattern}): (.{{1,{MAX_NAME_CHARACTERS}}})$", re.MULTILINE)


def conversation(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages that a guard is shown: no system prompt, user and assistant in turns.

    Raises:
        UsageError: A message is of another kind or out of turn, or there is none.
    """
    shown = [dict(message) for message in messages if message.get("role") != "system"]
    if not shown:
        raise UsageError("there is no message to check; a user's or an assistant's is needed")
    for place, message in enumerate(shown):
        expected = "assistant" if place % 2 else "user"
        if message.get("role") != expected:
            raise UsageError(
                f"message {place + 1} of the conversation has the role {message.get('role')!r}; "
                f"{expected!r} is needed: user and assistant in turns, the user first"
            )
        if not isinstance(message.get("content"), str):
            raise UsageError(f"message {place + 1} of the conversation has no text as its content")
    return [{"role": message["role"], "content": message["content"]} for message in shown]


def side_of(messages: Sequence[Message]) -> Side:
    """Whose the last message is."""
    return Side.AGENT if messages[-1]["role"] == "assistant" else Side.USER


def select_categories(codes: Iterable[str]) -> tuple[Category, ...]:
    """Those of `CATEGORIES` with these codes, in the order of the list.

    Raises:
        UsageError: A code is not in it, or there is none.
    """
    asked = set(codes)
    unknown = sorted(asked - {each.code for each in CATEGORIES})
    if unknown or not asked:
        raise UsageError(
            f"category {unknown[0] if unknown else ''!r} is unknown; there are "
            f"{', '.join(each.code for each in CATEGORIES)}, and a JSON file may have others"
        )
    return tuple(each for each in CATEGORIES if each.code in asked)


def check_categories(categories: Sequence[Category]) -> None:
    """What every list of categories must be.

    Raises:
        UsageError: It is empty or too long, or has a code twice.
    """
    codes = [each.code for each in categories]
    if not 0 < len(codes) <= MAX_CATEGORIES or len(set(codes)) != len(codes):
        raise UsageError(
            f"{len(codes)} categories with {len(set(codes))} different codes; 1 to "
            f"{MAX_CATEGORIES} are needed, each code once"
        )


class GuardPrompt:
    """Conversations as a guard's tokens.

    The bundle's own chat template writes the prompt if it is a guard's and lists the categories
    that are asked for; otherwise the published one does.

    Args:
        text: The bundle's text side.
        categories: None asks for those of the bundle's template, or for `CATEGORIES`.

    Raises:
        GuardError: Neither template can be written with this tokenizer.
        UsageError: The list of categories cannot be used.
    """

    def __init__(self, text: TextAssets, categories: Sequence[Category] | None = None) -> None:
        if categories is not None:
            check_categories(categories)
        own = Tokenizer(text)
        listed = None if not _asks(own) else _listed(own, categories)
        #: whether the bundle's own template writes the prompt
        self.own_template = listed is not None
        if listed is not None:
            self.categories, self._tokenizer = listed, own
        else:
            self.categories = CATEGORIES if categories is None else tuple(categories)
            self._tokenizer = Tokenizer(replace(text, chat_template=GUARD_TEMPLATE))
            _require_control(self._tokenizer)
        self._variables = _variables(categories if listed is not None else self.categories)

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of what `conversation` gave; control tokens spelled in it stay text."""
        return self._tokenizer.encode_chat(messages, variables=self._variables)


def _variables(categories: Sequence[Category] | None) -> dict[str, Any]:
    """Under the name that the published template reads."""
    if categories is None:
        return {}
    return {"categories": {each.code: each.text for each in categories}}


def _asks(tokenizer: Tokenizer) -> bool:
    """Whether the template writes a prompt that is answered by safe or unsafe."""
    if not tokenizer.has_chat_template or tokenizer.form.no_system is None:
        return False
    rendered = tokenizer.render_chat(_PROBE)
    return all(word.search(rendered) for word in _ASKS)


def _listed(tokenizer: Tokenizer, asked: Sequence[Category] | None) -> tuple[Category, ...] | None:
    """The categories that the template lists; None where they are not those asked for."""
    rendered = tokenizer.render_chat(_PROBE, variables=_variables(asked))
    _, begin, rest = rendered.partition(_BEGIN)
    block, end, _ = rest.partition(_END)
    if not begin or not end:
        return None
    if asked is not None:
        wanted = "".join(f"{each.code}: {each.text}\n" for each in asked)
        return tuple(asked) if block == wanted else None
    found = tuple(
        Category(code=code, name=name.strip().removesuffix("."))
        for code, name in _ENTRY.findall(block)
    )
    return found or None


def _require_control(tokenizer: Tokenizer) -> None:
    missing = [token for token in _CONTROL if len(tokenizer.encode_rendered(token)) != 1]
    if missing:
        raise GuardError(
            "the bundle is no guard: its chat template does not ask for safe or unsafe, and its "
            f"tokenizer has no {missing[0]} for Llama Guard 3's prompt; take a bundle of a Llama "
            "Guard"
        )


def read_categories(value: Mapping[str, Any], where: str) -> tuple[Category, ...]:
    """Categories from JSON: code -> name, or `categories`, a list of code, name and description.

    Raises:
        UsageError: It has another form.
    """
    listed = value.get("categories")
    if not isinstance(listed, list) or len(value) > 1:
        listed = [{"code": code, "name": name} for code, name in value.items()]
    found = []
    for entry in listed:
        fields = entry if isinstance(entry, Mapping) else {}
        strings = {key: text for key, text in fields.items() if isinstance(text, str)}
        if strings != fields or not {"code", "name"} <= fields.keys() <= _FIELDS:
            raise UsageError(
                f"{where}: category {str(entry)[:60]!r}; the strings code, name and, if there is "
                "one, description are needed"
            )
        found.append(Category(**{**strings, "name": strings["name"].strip().removesuffix(".")}))
    check_categories(found)
    return tuple(found)


_FIELDS: Final = {"code", "name", "description"}
