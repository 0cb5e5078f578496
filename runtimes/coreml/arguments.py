"""What an operator was given, by the names that MIL's definition of it has."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from llama_edge.core.errors import SessionError
from llama_edge.runtimes.coreml.weights import Weight

#: Floats are float32 tensors, integers of every width int64, booleans bool.
Value = Tensor | Weight | str


class Arguments:
    """Typed access; what is absent, or of another kind than the definition says, is an error."""

    def __init__(self, values: Mapping[str, Value | Sequence[Value]]) -> None:
        self._values = values

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def value(self, name: str) -> Tensor | Weight:
        """A tensor, or a weight that was not turned into one."""
        value = self._values.get(name)
        if not isinstance(value, (Tensor, Weight)):
            raise SessionError(f"argument {name!r} is {_kind(value)}; a tensor is needed")
        return value

    def tensor(self, name: str) -> Tensor:
        """A tensor."""
        value = self.value(name)
        return value.read() if isinstance(value, Weight) else value

    def optional(self, name: str) -> Tensor | None:
        """A tensor, or None where the argument is absent."""
        return self.tensor(name) if name in self else None

    def tensors(self, name: str) -> list[Tensor]:
        """A list of tensors."""
        values = self._values.get(name)
        if values is None:
            raise SessionError(f"argument {name!r} is absent; tensors are needed")
        listed = [values] if isinstance(values, (Tensor, Weight, str)) else values
        return [Arguments({name: value}).tensor(name) for value in listed]

    def integers(self, name: str) -> list[int]:
        """A tensor of integers, as a list."""
        return [int(number) for number in self.tensor(name).reshape(-1).tolist()]

    def integer(self, name: str, default: int | None = None) -> int:
        """One integer."""
        return int(self.number(name, default))

    def number(self, name: str, default: float | None = None) -> float:
        """One number."""
        if default is not None and name not in self:
            return default
        tensor = self.tensor(name)
        if tensor.numel() != 1:
            raise SessionError(f"argument {name!r} has {tensor.numel()} numbers; one is needed")
        return tensor.item()

    def flag(self, name: str, default: bool) -> bool:
        """One boolean."""
        return bool(self.number(name, default))

    def flags(self, name: str, count: int) -> list[bool]:
        """`count` booleans, all false where the argument is absent."""
        return [bool(flag) for flag in self.integers(name)] if name in self else [False] * count

    def text(self, name: str, default: str) -> str:
        """A string."""
        value = self._values.get(name, default)
        if not isinstance(value, str):
            raise SessionError(f"argument {name!r} is {_kind(value)}; a string is needed")
        return value


def _kind(value: object) -> str:
    return "absent" if value is None else f"a {type(value).__name__}"
