"""How a long stage says what it does and how far it is; the command line draws it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from llama_edge.core.model_config import ModelConfig
from llama_edge.core.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a stage."""

    #: what it does, in plain words: "layer 3 of 16, down_proj"
    name: str
    #: how long it takes next to the stage's other steps, in a unit of the stage's own
    work: float = 1.0


#: So many equal steps without names, or each step.
Steps = int | Sequence[Step]


def step_count(steps: Steps) -> int:
    """How many there are."""
    return steps if isinstance(steps, int) else len(steps)


def layer_name(layer: int, layers: int, part: str = "") -> str:
    """A step's name: a layer as a person counts, from 1 on, and a part of it."""
    return f"layer {layer + 1} of {layers}" + (f", {part}" if part else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a command is about to do, as far as its time depends on it."""

    config: ModelConfig
    recipe: Recipe
    #: what the quantized checkpoint is lowered and run with; None: it is only quantized
    backend: str | None = None
    #: what is done besides, whose time nobody can plan, in a few words
    besides: str | None = None


class Progress(Protocol):
    """Called by stages; never by maths."""

    def expect(self, job: Job) -> None:
        """Before the first stage: what all of them together will do."""
        ...

    def start(self, stage: str, steps: Steps, done: int = 0) -> None:
        """A stage begins; the first `done` of its steps were done by an earlier run."""
        ...

    def advance(self, steps: int = 1) -> None:
        """The next of the running stage's steps are done."""
        ...

    def remark(self, text: str) -> None:
        """Something that the user should know, and that stops nothing."""
        ...


class SilentProgress:
    """Says nothing."""

    def expect(self, job: Job) -> None:
        """See `Progress`."""

    def start(self, stage: str, steps: Steps, done: int = 0) -> None:
        """See `Progress`."""

    def advance(self, steps: int = 1) -> None:
        """See `Progress`."""

    def remark(self, text: str) -> None:
        """See `Progress`."""
