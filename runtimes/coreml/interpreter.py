"""Runs a saved Core ML program on the CPU, without any of Apple's code.

It computes in float32. `Precision.EXACT` keeps it so, whatever types the program declares: what the
graph means, which can be compared with a reference. `Precision.HALF` rounds each operator's result
to the type that the program declares for it: an estimate of what a device computes in float16,
which accumulates in orders and widths of its own.
"""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llama_edge.core.errors import ArtifactError, SessionError
from llama_edge.formats.mlpackage import MLPackage
from llama_edge.runtimes.coreml.arguments import Arguments, Value
from llama_edge.runtimes.coreml.layout import slice_update
from llama_edge.runtimes.coreml.operators import MOVES_ONLY, OPERATORS
from llama_edge.runtimes.coreml.program import read_program
from llama_edge.runtimes.coreml.steps import READ_STATE, Declaration, Name, Operand, Step
from llama_edge.runtimes.coreml.weights import BUDGET_BYTES, Weight, WeightStore

#: What PyTorch raises for sizes and indices that do not fit.
_OPERATOR_ERRORS: Final = (RuntimeError, IndexError, ValueError, TypeError)


class Precision(StrEnum):
    """What becomes of the types that a program declares."""

    EXACT = "exact"
    HALF = "half"


class Interpreter:
    """One function of a package, with its states.

    Args:
        package: The package; its weights stay on disk until they are needed.
        function: The function's name.
        precision: See `Precision`.
        budget_bytes: Of float32 weights that are kept; the others are made anew in each run.
        beside: Another function of the package: this one continues from its states and shares its
            weights and their budget.

    Raises:
        ArtifactError: The program is damaged, has an operator that is not known here, or has other
            states than the one next to it.
    """

    def __init__(
        self,
        package: MLPackage,
        function: str = "main",
        *,
        precision: Precision = Precision.EXACT,
        budget_bytes: int = BUDGET_BYTES,
        beside: "Interpreter | None" = None,
    ) -> None:
        self._place = f"{package.path}: function {function!r}"
        self._half = precision is Precision.HALF
        self._store: WeightStore = WeightStore(budget_bytes) if beside is None else beside._store
        self._program = read_program(package, function, self._store, round_to_half=self._half)
        self._states: dict[str, Tensor] = {} if beside is None else beside._states
        if beside is None:
            self.reset()
        elif self.states != beside.states:
            raise ArtifactError(f"{self._place}: has other states than the function next to it")

    @property
    def inputs(self) -> tuple[Declaration, ...]:
        """What `run` is given."""
        return self._program.inputs

    @property
    def states(self) -> tuple[Declaration, ...]:
        """What is kept from one run to the next."""
        return self._program.states

    @property
    def outputs(self) -> tuple[str, ...]:
        """What `run` returns."""
        return self._program.outputs

    def makes(self) -> frozenset[str]:
        """The names of all inner values and outputs."""
        return frozenset(declared.name for step in self._program.steps for declared in step.outputs)

    def state(self, name: str) -> NDArray[Any]:
        """A copy of what is kept under that name."""
        copied: NDArray[Any] = self._states[name].numpy().copy()
        return copied

    def set_state(self, name: str, value: NDArray[Any]) -> None:
        """Keep a copy of `value`, which has the state's shape, under that name."""
        kept = self._states[name]
        self._states[name] = torch.tensor(value, dtype=kept.dtype).reshape(kept.shape)

    def reset(self) -> None:
        """All states to zero, as Core ML makes them."""
        for state in self.states:
            kind = torch.float32 if state.element.dtype.kind == "f" else torch.long
            self._states[state.name] = torch.zeros([size or 0 for size in state.shape], dtype=kind)

    @torch.no_grad()
    def run(
        self, feeds: Mapping[str, NDArray[Any]], also: Iterable[str] = ()
    ) -> dict[str, NDArray[Any]]:
        """Run the function once.

        Args:
            feeds: Every input by name.
            also: Inner values that are wanted next to the outputs.

        Raises:
            SessionError: An input is absent, unknown or of another type than declared; a value that
                is wanted does not exist; or an operator failed, or made something else than the
                program declares.
        """
        wanted = (*self.outputs, *also)
        values = self._fed(feeds)
        for step in self._program.steps:
            self._carry_out(step, values)
            for name in step.last_uses:
                if name not in wanted:
                    del values[name]
        return {name: self._result(name, values) for name in wanted}

    def _fed(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
        names = [declared.name for declared in self.inputs]
        if set(names) != set(feeds):
            raise SessionError(f"{self._place}: takes {sorted(names)} and got {sorted(feeds)}")
        values = {}
        for declared in self.inputs:
            tensor = torch.from_numpy(np.array(feeds[declared.name]))
            tensor = tensor.float() if tensor.is_floating_point() else tensor
            if not declared.fits(tensor):
                raise SessionError(
                    f"{self._place}: input {declared.name!r} is {declared.element.name} "
                    f"{declared.shape}; got {tensor.dtype} {tuple(tensor.shape)}"
                )
            integer = not tensor.is_floating_point() and tensor.dtype != torch.bool
            values[declared.name] = self._rounded(tensor.long() if integer else tensor, declared)
        return values

    def _result(self, name: str, values: Mapping[str, Tensor]) -> NDArray[Any]:
        value: Value | None = values.get(name, self._program.constants.get(name))
        if isinstance(value, Weight):
            value = value.read()
        if not isinstance(value, Tensor):
            raise SessionError(f"{self._place}: has no value {name!r}")
        # A copy: the memory may be a state's, and the next run would change it.
        copied: NDArray[Any] = value.numpy().copy()
        return copied

    def _carry_out(self, step: Step, values: dict[str, Tensor]) -> None:
        arguments = Arguments(
            {
                key: tuple(_resolve(part, values) for part in operand)
                if isinstance(operand, tuple)
                else _resolve(operand, values)
                for key, operand in step.arguments.items()
            }
        )
        try:
            results = self._results(step, arguments, values)
        except (SessionError, *_OPERATOR_ERRORS) as error:
            raise SessionError(f"{self._place}: {step.where}: {error}") from error
        if len(results) != len(step.outputs):
            raise SessionError(
                f"{self._place}: {step.where}: declares {len(step.outputs)} values and made "
                f"{len(results)}"
            )
        for declared, result in zip(step.outputs, results, strict=True):
            if not declared.fits(result):
                raise SessionError(
                    f"{self._place}: {step.where}: declares {declared.element.name} "
                    f"{declared.shape} and made {result.dtype} {tuple(result.shape)}"
                )
            moved = step.kind in MOVES_ONLY or step.state is not None
            values[declared.name] = result if moved else self._rounded(result, declared)

    def _results(
        self, step: Step, arguments: Arguments, values: Mapping[str, Tensor]
    ) -> tuple[Tensor, ...]:
        if step.state is not None:
            return self._touch_state(step.state, arguments, reads=step.kind == READ_STATE)
        if step.may_overwrite and not _seen_elsewhere(step, values):
            return (slice_update(arguments, in_place=True),)
        results = OPERATORS[step.kind](arguments)
        return (results,) if isinstance(results, Tensor) else results

    def _touch_state(self, name: str, arguments: Arguments, *, reads: bool) -> tuple[Tensor, ...]:
        state = self._states[name]
        if reads:
            return (state,)
        data = arguments.tensor("data")
        if data.shape != state.shape:
            raise SessionError(f"a state {tuple(state.shape)} is given {tuple(data.shape)}")
        if data.data_ptr() != state.data_ptr() or data.stride() != state.stride():
            # Its own memory, so that an update in place changes nothing but the state.
            self._states[name] = data.clone(memory_format=torch.contiguous_format)
        return ()

    def _rounded(self, value: Tensor, declared: Declaration) -> Tensor:
        if self._half and declared.element.name == "fp16":
            return value.half().float()
        return value


def _resolve(operand: Operand, values: Mapping[str, Tensor]) -> Value:
    return values[operand.value] if isinstance(operand, Name) else operand


def _seen_elsewhere(step: Step, values: Mapping[str, Tensor]) -> bool:
    """Whether another living value looks at the memory of a `slice_update`'s `x`."""
    x = step.arguments["x"]
    assert isinstance(x, Name)  # what `may_overwrite` says
    memory = values[x.value].untyped_storage().data_ptr()
    return any(
        value.untyped_storage().data_ptr() == memory
        for name, value in values.items()
        if name != x.value
    )
