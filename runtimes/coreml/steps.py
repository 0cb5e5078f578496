"""A program as the interpreter walks through it: steps, the names they use, and lifetimes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from llama_edge.formats.mlpackage import ElementType
from llama_edge.runtimes.coreml.arguments import Value

READ_STATE: Final = "read_state"
WRITE_STATE: Final = "write_state"
SLICE_UPDATE: Final = "slice_update"


@dataclass(frozen=True, slots=True)
class Declaration:
    """A value's name and type, as the program declares them; None is a size known at run time."""

    name: str
    element: ElementType
    shape: tuple[int | None, ...]

    def fits(self, value: Tensor) -> bool:
        """Whether a value has the declared kind (float, integer, boolean), rank and sizes."""
        kinds = "f" if value.is_floating_point() else "b" if value.dtype == torch.bool else "iu"
        return (
            self.element.dtype.kind in kinds
            and value.dim() == len(self.shape)
            and all(
                declared in (None, size)
                for declared, size in zip(self.shape, value.shape, strict=True)
            )
        )


@dataclass(frozen=True, slots=True)
class Name:
    """A reference to a value that another step made."""

    value: str


Operand = Value | Name


@dataclass(frozen=True, slots=True)
class Step:
    """One operator's turn."""

    kind: str
    arguments: Mapping[str, Operand | tuple[Operand, ...]]
    outputs: tuple[Declaration, ...]
    #: the state that a `read_state` or `write_state` names
    state: str | None
    #: values that no later step asks for
    last_uses: frozenset[str]
    #: for a `slice_update`: nobody can see afterwards that it wrote where its `x` is
    may_overwrite: bool

    @property
    def where(self) -> str:
        """For an error's text."""
        return (
            f"operator {self.kind} that makes {self.outputs[0].name!r}"
            if self.outputs
            else (f"operator {self.kind} of {self.state!r}")
        )

    def names(self) -> Iterator[str]:
        """Every value that it reads."""
        return names_in(self.arguments)


@dataclass(frozen=True, slots=True)
class Program:
    """One function, ready to be run."""

    inputs: tuple[Declaration, ...]
    states: tuple[Declaration, ...]
    outputs: tuple[str, ...]
    steps: tuple[Step, ...]
    constants: Mapping[str, Value]


def names_in(arguments: Mapping[str, Operand | tuple[Operand, ...]]) -> Iterator[str]:
    """Every value that an operator's arguments refer to."""
    for operand in arguments.values():
        for part in operand if isinstance(operand, tuple) else (operand,):
            if isinstance(part, Name):
                yield part.value


def with_lifetimes(steps: Sequence[Step], outputs: Sequence[str]) -> Iterator[Step]:
    """The steps, with what can be freed after each, and which updates may be done in place."""
    last: dict[str, int] = {}
    for index, step in enumerate(steps):
        last.update(dict.fromkeys((made.name for made in step.outputs), index))
        last.update(dict.fromkeys(step.names(), index))
    for name in outputs:
        last.pop(name, None)
    freed: dict[int, set[str]] = {}
    for name, index in last.items():
        freed.setdefault(index, set()).add(name)
    #: values that are, or may have become, a state's own memory
    states: dict[str, str] = {}
    for index, step in enumerate(steps):
        last_uses = frozenset(freed.get(index, ()))
        may_overwrite = False
        if step.kind == READ_STATE and step.state:
            states[step.outputs[0].name] = step.state
        elif step.kind == SLICE_UPDATE:
            x = step.arguments.get("x")
            state = states.get(x.value) if isinstance(x, Name) else None
            if state is not None and isinstance(x, Name) and x.value in last_uses:
                may_overwrite = _written_next(steps[index + 1 :], state)
                states[step.outputs[0].name] = state
        yield Step(step.kind, step.arguments, step.outputs, step.state, last_uses, may_overwrite)


def _written_next(steps: Sequence[Step], state: str) -> bool:
    """Whether a state's content is replaced before anybody reads it."""
    touching = (step.kind for step in steps if step.state == state)
    return next(touching, None) == WRITE_STATE
