"""ExecuTorch's instruction list for one token step: embedding, delegates, cache, attention.

Source: `schema/program.fbs` and `exir/schema.py` in ExecuTorch. Per block there are four
instructions: two cache updates, attention, one delegate; a view is free. An int8 cache takes
nineteen more, on small tensors. Activations live in one planned arena whose sizes are upper
bounds; kernels resize their outputs to the tokens given.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from executorch.exir import schema
from executorch.exir.scalar_type import ScalarType

ARENA = 1  # memory id 0 is reserved for constants
_ALIGNMENT = 64
#: XNNPACK may read this far past the end of an input (XNN_EXTRA_BYTES).
_PADDING = 128


@dataclass(frozen=True, slots=True)
class Place:
    """A piece of the arena."""

    offset: int
    size_bytes: int


class Arena:
    """Hands out pieces that are never given back: their number does not grow with the layers."""

    def __init__(self) -> None:
        self.size_bytes = 0

    def allocate(self, size_bytes: int) -> Place:
        """A fresh aligned piece, with room for reads past its end."""
        place = Place(self.size_bytes, size_bytes)
        padded = size_bytes + _PADDING
        self.size_bytes += padded + -padded % _ALIGNMENT
        return place


class PlanBuilder:
    """Collects values, operators, delegates and instructions of one method."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._values: list[schema.EValue] = []
        self._operators: dict[tuple[str, str], int] = {}
        self._delegates: list[schema.BackendDelegate] = []
        self._instructions: list[schema.Instruction] = []
        self._scalars: dict[tuple[str, object], int] = {}
        self.arena = Arena()

    def _value(self, value: schema.KernelTypes) -> int:
        self._values.append(schema.EValue(value))
        return len(self._values) - 1

    def integer(self, number: int) -> int:
        """A constant integer; equal ones are one value."""
        key = ("int", number)
        if key not in self._scalars:
            self._scalars[key] = self._value(schema.Int(number))
        return self._scalars[key]

    def integer_slot(self) -> int:
        """An integer that an instruction writes."""
        return self._value(schema.Int(0))

    def integer_list(self, items: Sequence[int]) -> int:
        """A list of integer values, by index."""
        return self._value(schema.IntList(list(items)))

    def tensor_list(self, items: Sequence[int]) -> int:
        """A list of tensors, by index: what an operator with several outputs returns."""
        return self._value(schema.TensorList(list(items)))

    def number(self, number: float) -> int:
        """A constant float."""
        return self._value(schema.Double(number))

    def boolean(self, flag: bool) -> int:
        """A constant truth value."""
        return self._value(schema.Bool(flag))

    def null(self) -> int:
        """The absent optional argument."""
        key = ("null", None)
        if key not in self._scalars:
            self._scalars[key] = self._value(schema.Null())
        return self._scalars[key]

    def tensor(
        self,
        shape: Sequence[int],
        *,
        dtype: ScalarType = ScalarType.FLOAT,
        constant: int = 0,
        place: Place | None = None,
        dynamic: bool = False,
        name: str | None = None,
    ) -> int:
        """A tensor: constant data, a piece of the arena, or (neither) an input of the method.

        A runtime finds one that has a name with `Method::get_attribute`, and may write it.
        """
        allocation = None
        if place is not None:
            allocation = schema.AllocationDetails(
                memory_id=ARENA,
                memory_offset_low=place.offset & 0xFFFFFFFF,
                memory_offset_high=place.offset >> 32,
            )
        bound = schema.TensorShapeDynamism.DYNAMIC_BOUND
        return self._value(
            schema.Tensor(
                scalar_type=dtype,
                storage_offset=0,
                sizes=list(shape),
                dim_order=list(range(len(shape))),
                requires_grad=False,
                layout=0,
                data_buffer_idx=constant,
                allocation_info=allocation,
                shape_dynamism=bound if dynamic else schema.TensorShapeDynamism.STATIC,
                extra_tensor_info=(
                    None if name is None else schema.ExtraTensorInfo(fully_qualified_name=name)
                ),
            )
        )

    def alias(self, tensor: int, shape: Sequence[int]) -> int:
        """Another shape, also an upper bound, of what is in the arena."""
        known = self._values[tensor].val
        assert isinstance(known, schema.Tensor)
        view = replace(known, sizes=list(shape), dim_order=list(range(len(shape))))
        return self._value(view)

    def call(self, operator: str, overload: str, arguments: Sequence[int]) -> None:
        """Run a kernel; the output comes last."""
        index = self._operators.setdefault((operator, overload), len(self._operators))
        self._instructions.append(schema.Instruction(schema.KernelCall(index, list(arguments))))

    def delegate(self, backend: str, segment: int, arguments: Sequence[int]) -> None:
        """Run a delegate whose payload is the file's segment `segment`."""
        self._delegates.append(
            schema.BackendDelegate(
                id=backend,
                processed=schema.BackendDelegateDataReference(
                    location=schema.DataLocation.SEGMENT, index=segment
                ),
                compile_specs=[],
            )
        )
        self._instructions.append(
            schema.Instruction(schema.DelegateCall(len(self._delegates) - 1, list(arguments)))
        )

    def build(self, inputs: Sequence[int], outputs: Sequence[int]) -> schema.ExecutionPlan:
        """The finished method."""
        operators = [schema.Operator(name, overload) for name, overload in self._operators]
        chain = schema.Chain(
            inputs=[], outputs=[], instructions=self._instructions, stacktrace=None
        )
        return schema.ExecutionPlan(
            name=self._name,
            container_meta_type=schema.ContainerMetadata("", ""),
            values=self._values,
            inputs=list(inputs),
            outputs=list(outputs),
            chains=[chain],
            operators=operators,
            delegates=self._delegates,
            non_const_buffer_sizes=[0, self.arena.size_bytes],
        )


def constant_method(name: str, value: bool | int | Sequence[int]) -> schema.ExecutionPlan:
    """A method that returns constants; the LLM runner reads its metadata this way."""
    numbers = [value] if isinstance(value, int) else list(value)
    values = [
        schema.EValue(schema.Bool(number) if isinstance(number, bool) else schema.Int(number))
        for number in numbers
    ]
    return schema.ExecutionPlan(
        name=name,
        container_meta_type=schema.ContainerMetadata("", ""),
        values=values,
        inputs=[],
        outputs=list(range(len(values))),
        chains=[schema.Chain(inputs=[], outputs=[], instructions=[], stacktrace=None)],
        operators=[],
        delegates=[],
        non_const_buffer_sizes=[0],
    )
