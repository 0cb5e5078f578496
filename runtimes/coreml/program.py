"""A package's function as a list of steps: constants read, names checked, lifetimes known.

Everything that a saved program can be wrong about without being run is found here.
"""

import math
from typing import Any, Final

import numpy as np
import torch

from llama_edge.core.errors import ArtifactError
from llama_edge.formats.mlpackage import (
    Message,
    MLPackage,
    StoredTensor,
    element_type,
)
from llama_edge.runtimes.coreml.arguments import Value
from llama_edge.runtimes.coreml.operators import OPERATORS
from llama_edge.runtimes.coreml.steps import (
    READ_STATE,
    WRITE_STATE,
    Declaration,
    Name,
    Operand,
    Program,
    Step,
    names_in,
    with_lifetimes,
)
from llama_edge.runtimes.coreml.weights import (
    BlockwiseWeight,
    PlainWeight,
    Weight,
    WeightStore,
)

#: Constants of more numbers are weights, turned into float32 when asked for.
_SMALL: Final = 1 << 14
#: A state of more bytes in float32 is not allocated: 8 GiB, four times a 3B model's at 8192 tokens.
_MAX_STATE_BYTES: Final = 8 << 30


def read_program(
    package: MLPackage, function: str, store: WeightStore, *, round_to_half: bool
) -> Program:
    """Read a function.

    Args:
        package: Where it is.
        function: Its name.
        store: Weights that functions share, and the bytes that they may keep in float32.
        round_to_half: Whether dequantized weights are rounded to float16, as on the device.

    Raises:
        ArtifactError: The program has an unknown operator, a value used before it is made or made
            twice, or a constant that cannot be read.
    """
    return _Reader(package, store, round_to_half=round_to_half).read(function)


class _Reader:
    def __init__(self, package: MLPackage, store: WeightStore, *, round_to_half: bool) -> None:
        self._package = package
        self._store = store
        self._round_to_half = round_to_half
        self._constants: dict[str, Value] = {}
        #: of constants, for the weights that are made of them
        self._stored: dict[str, StoredTensor] = {}
        self._known: set[str] = set()
        self._states: set[str] = set()

    def read(self, name: str) -> Program:
        function, block = self._package.function(name), self._package.block(name)
        inputs, states = [], []
        for declared in function.inputs:
            self._make(declared.name)
            if declared.type.WhichOneof("type") == "stateType":
                states.append(self._state(declared))
                self._states.add(declared.name)
            else:
                inputs.append(self._declaration(declared.name, declared.type))
        steps = [step for message in block.operations if (step := self._step(message))]
        for output in block.outputs:
            if output not in self._known:
                raise self._wrong(f"function {name!r} returns {output!r}, which nothing makes")
        return Program(
            inputs=tuple(inputs),
            states=tuple(states),
            outputs=tuple(block.outputs),
            steps=tuple(with_lifetimes(steps, block.outputs)),
            constants=self._constants,
        )

    def _wrong(self, what: str) -> ArtifactError:
        return ArtifactError(f"{self._package.path}: {what}")

    def _make(self, name: str) -> None:
        if name in self._known:
            raise self._wrong(f"the value {name!r} is made twice")
        self._known.add(name)

    def _declaration(self, name: str, declared: Message) -> Declaration:
        if declared.WhichOneof("type") != "tensorType":
            raise self._wrong(
                f"the value {name!r} is a {declared.WhichOneof('type')}; only tensors are known"
            )
        tensor = declared.tensorType
        shape = tuple(
            dimension.constant.size if dimension.WhichOneof("dimension") == "constant" else None
            for dimension in tensor.dimensions
        )
        return Declaration(name, element_type(tensor, f"{self._package.path}: {name}"), shape)

    def _state(self, declared: Message) -> Declaration:
        state = self._declaration(declared.name, declared.type.stateType.wrappedType)
        sizes = [size for size in state.shape if size is not None]
        if len(sizes) < len(state.shape) or math.prod(sizes) * 4 > _MAX_STATE_BYTES:
            raise self._wrong(
                f"the state {state.name!r} has shape {state.shape}; fixed sizes of together at "
                f"most {_MAX_STATE_BYTES >> 30} GiB in float32 are needed"
            )
        return state

    def _step(self, message: Message) -> Step | None:
        """What is left to do at run time; None for a constant."""
        where = f"operator {message.type}"
        if message.outputs:
            where += f" that makes {message.outputs[0].name!r}"
        if message.type == "const":
            self._constant(message, where)
            return None
        if message.type == "constexpr_blockwise_shift_scale":
            self._blockwise(message, where)
            return None
        if message.type not in (*OPERATORS, READ_STATE, WRITE_STATE):
            raise self._wrong(f"{where}: no operator of that name is known to the interpreter")
        if message.blocks:
            raise self._wrong(f"{where}: has an inner block; only plain operators are known")
        arguments = {
            key: self._operand(argument, f"{where}: argument {key!r}")
            for key, argument in message.inputs.items()
        }
        state = self._named_state(arguments, message.type, where)
        outputs = tuple(self._declaration(made.name, made.type) for made in message.outputs)
        if not outputs and message.type != WRITE_STATE:
            raise self._wrong(f"{where}: makes nothing")
        for output in outputs:
            self._make(output.name)
        return Step(message.type, arguments, outputs, state, frozenset(), may_overwrite=False)

    def _named_state(
        self, arguments: dict[str, Operand | tuple[Operand, ...]], kind: str, where: str
    ) -> str | None:
        """The state of a `read_state` or `write_state`, which no other operator may take."""
        named = arguments.pop("input", None) if kind in (READ_STATE, WRITE_STATE) else None
        if set(names_in(arguments)) & self._states:
            raise self._wrong(f"{where}: takes a state that was not read")
        if kind not in (READ_STATE, WRITE_STATE):
            return None
        if not isinstance(named, Name) or named.value not in self._states:
            raise self._wrong(f"{where}: 'input' is no state")
        if kind == WRITE_STATE and "data" not in arguments:
            raise self._wrong(f"{where}: has no 'data'")
        return named.value

    def _constant(self, message: Message, where: str) -> None:
        if len(message.outputs) != 1 or "val" not in message.attributes:
            raise self._wrong(f"{where}: a constant has one value and makes one")
        name = message.outputs[0].name
        self._make(name)
        constant = self._package.constant(message.attributes["val"], where)
        if isinstance(constant, StoredTensor):
            self._stored[name] = constant
        self._constants[name] = self._value(constant)

    def _blockwise(self, message: Message, where: str) -> None:
        parts: dict[str, StoredTensor] = {}
        for key, argument in message.inputs.items():
            (binding,) = argument.arguments if len(argument.arguments) == 1 else (None,)
            stored: StoredTensor | str | None = None
            if binding is not None and binding.WhichOneof("binding") == "value":
                stored = self._package.constant(binding.value, f"{where}: argument {key!r}")
            elif binding is not None:
                stored = self._stored.get(binding.name)
            if not isinstance(stored, StoredTensor):
                raise self._wrong(f"{where}: argument {key!r} is no constant")
            parts[key] = stored
        if not {"data", "scale"} <= set(parts):
            raise self._wrong(f"{where}: data and scale are needed; it has {sorted(parts)}")
        name = message.outputs[0].name
        self._make(name)

        def weight() -> Weight:
            offset = parts.get("offset")
            made = BlockwiseWeight(
                f"{self._package.path}: {where}",
                parts["data"],
                torch.from_numpy(parts["scale"].read()).float(),
                None if offset is None else torch.from_numpy(offset.read()).float(),
                self._store.budget,
            )
            return made.rounded_to_half() if self._round_to_half else made

        # The operator's own bytes say where in the file its parts are.
        place = message.SerializeToString(deterministic=True)
        by_name = any(
            binding.WhichOneof("binding") == "name"
            for argument in message.inputs.values()
            for binding in argument.arguments
        )
        self._constants[name] = weight() if by_name else self._store.shared(place, weight)

    def _operand(self, argument: Message, where: str) -> Operand | tuple[Operand, ...]:
        operands = tuple(self._binding(binding, where) for binding in argument.arguments)
        return operands[0] if len(operands) == 1 else operands

    def _binding(self, binding: Message, where: str) -> Operand:
        if binding.WhichOneof("binding") == "value":
            return self._value(self._package.constant(binding.value, where))
        if binding.name not in self._known:
            raise self._wrong(f"{where} is {binding.name!r}, which no operator before makes")
        return self._constants.get(binding.name, Name(binding.name))

    def _value(self, constant: StoredTensor | str) -> Value:
        if isinstance(constant, str):
            return constant
        kind = constant.element.dtype.kind
        if kind == "f" and constant.shape and math.prod(constant.shape) > _SMALL:
            return PlainWeight(constant, self._store.budget)
        tensor = torch.from_numpy(constant.read() if kind != "u" else _signed(constant))
        return tensor.float() if kind == "f" else tensor.bool() if kind == "b" else tensor.long()


def _signed(constant: StoredTensor) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Torch knows few unsigned integers; beyond 2^63, which MIL has no use for, they wrap."""
    return constant.read().astype(np.int64)
