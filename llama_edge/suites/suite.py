"""A suite: a JSON file of prompts, each with the checks that its answer should pass."""

from collections import Counter
from importlib import resources
from pathlib import Path
from typing import Annotated, Final, Literal, get_args

import msgspec
from msgspec import Meta

from llama_edge.core.errors import TextError, UnknownNameError, UsageError
from llama_edge.core.json_files import parse_json_object
from llama_edge.core.regular import read_regular
from llama_edge.suites.checks import AnyCheck, Asked

BUILTIN_SUITES: Final = ("on-device",)
#: The built-in one has some 100 KB.
MAX_SUITE_BYTES: Final = 4 << 20
#: As a group in a requirement: each language and each task.
EVERY: Final = "every"

KINDS: Final = tuple(kind.__struct_config__.tag for kind in get_args(AnyCheck))


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One message of a dialog."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[str, Meta(min_length=1, max_length=16_000)]


class Prompt(Asked, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A dialog that ends with the user's message, and what its answer must have."""

    id: Annotated[str, Meta(pattern="^[a-z0-9][a-z0-9_-]{0,63}$")]
    #: longer than any language's code, so that the name of a group says which it is
    task: Annotated[str, Meta(pattern="^[a-z][a-z_]{3,31}$")]
    messages: Annotated[tuple[Message, ...], Meta(min_length=1, max_length=20)]
    checks: Annotated[tuple[AnyCheck, ...], Meta(min_length=1, max_length=20)]

    def __post_init__(self) -> None:
        if self.task == EVERY:
            raise ValueError(f"task is {EVERY!r}, which means all of them; give it another name")
        if self.messages[-1].role != "user":
            raise ValueError(f"the last message is of {self.messages[-1].role!r}, not of 'user'")
        for index, check in enumerate(self.checks):
            why_not = check.why_not(self)
            if why_not is not None:
                raise ValueError(f"checks[{index}], {check.kind!r}: {why_not}")


class Suite(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Prompts in the order of the file."""

    name: Annotated[str, Meta(pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    max_new_tokens: Annotated[int, Meta(ge=1, le=1024)]
    prompts: Annotated[tuple[Prompt, ...], Meta(min_length=1, max_length=5000)]

    def __post_init__(self) -> None:
        [(name, count)] = Counter(prompt.id for prompt in self.prompts).most_common(1)
        if count > 1:
            raise ValueError(f"the id {name!r} is there {count} times")

    @property
    def languages(self) -> tuple[str, ...]:
        """In the order of the file."""
        return tuple(dict.fromkeys(prompt.language for prompt in self.prompts))

    @property
    def tasks(self) -> tuple[str, ...]:
        """In the order of the file."""
        return tuple(dict.fromkeys(prompt.task for prompt in self.prompts))

    def first(self, count: int | None) -> "Suite":
        """The first prompts of each task in each language; None takes all.

        Raises:
            UsageError: `count` is not 1 or above.
        """
        if count is None:
            return self
        if count < 1:
            raise UsageError(f"per_task is {count}; it must be 1 or above")
        seen: Counter[tuple[str, str]] = Counter()
        kept = []
        for prompt in self.prompts:
            seen[prompt.task, prompt.language] += 1
            if seen[prompt.task, prompt.language] <= count:
                kept.append(prompt)
        return msgspec.structs.replace(self, prompts=tuple(kept))


def load_suite(name: str) -> Suite:
    """A built-in suite, or one in a file.

    Raises:
        UnknownNameError: There is neither.
        TextError: The file is no suite.
    """
    if name in BUILTIN_SUITES:
        file = resources.files(__package__).joinpath(f"{name.replace('-', '_')}.json")
        return parse_suite(file.read_bytes(), name)
    path = Path(name)
    if not path.exists():
        known = ", ".join(BUILTIN_SUITES)
        raise UnknownNameError(f"there is no suite {name!r}: {known} is built in, others are files")
    return parse_suite(read_regular(path, MAX_SUITE_BYTES, TextError), str(path))


def parse_suite(source: bytes, where: str) -> Suite:
    """A suite in an untrusted file.

    Raises:
        TextError: It is no JSON, or not what a suite has; with the place.
    """
    value = parse_json_object(source, where, TextError)
    try:
        return msgspec.convert(value, Suite)
    except msgspec.ValidationError as error:
        known = f"; the kinds are {', '.join(KINDS)}" if ".kind`" in str(error) else ""
        raise TextError(f"{where}: {error}{known}") from error
