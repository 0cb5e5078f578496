"""Typed look-ups in a checkpoint's JSON or metadata, which anybody may have written."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_edge.core.errors import CheckpointError
from llama_edge.core.json_files import read_json_object


@dataclass(frozen=True, slots=True)
class Fields:
    """Values under names, with the file that they come from for messages."""

    path: Path
    values: Mapping[str, Any]

    def integer(self, key: str, default: int | None = None) -> int:
        """An integer; null counts as absent.

        Raises:
            CheckpointError: It is absent without a default, or something else.
        """
        value = self._value(key, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise CheckpointError(f"{self.path}: {key} is {value!r}; an integer is needed")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A number, as float.

        Raises:
            CheckpointError: It is absent without a default, or something else.
        """
        value = self._value(key, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or abs(value) > 1e300:
            raise CheckpointError(f"{self.path}: {key} is {value!r}; a number is needed")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false.

        Raises:
            CheckpointError: It is something else.
        """
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise CheckpointError(f"{self.path}: {key} is {value!r}; true or false is needed")
        return value

    def is_null(self, key: str) -> bool:
        """Whether the key is there with null, where that differs from an absent key."""
        return key in self.values and self.values[key] is None

    def require(self, key: str, *plain: object) -> None:
        """Refuse any value but those that a plain Llama has; absent is fine.

        Raises:
            CheckpointError: It is another value, which would change what the model computes.
        """
        value = self.values.get(key)
        if value is not None and value not in plain:
            accepted = " or ".join(repr(each) for each in plain) or "null"
            raise CheckpointError(
                f"{self.path}: {key} is {_short(value)}; only {accepted} is supported, because any "
                "other changes what the model computes"
            )

    def _value(self, key: str, default: object) -> object:
        value = self.values.get(key)
        return default if value is None else value


def read_fields(path: Path) -> Fields:
    """Of a JSON file.

    Raises:
        CheckpointError: It is missing or no JSON object.
    """
    return Fields(path, read_json_object(path, CheckpointError))


def _short(value: object) -> str:
    """A value in a message; of an object or a list only that it is one."""
    if isinstance(value, dict):
        return "an object"
    return "a list" if isinstance(value, list) else repr(value)[:80]
