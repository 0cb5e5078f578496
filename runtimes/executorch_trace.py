"""A copy of a `.pte` that also returns its residual stream and attention outputs.

Where the KV cache is int8, it returns the rows on their way there as well: the codes, steps and
zero points of each call's queries, keys and values.

Delegates, weights and instructions stay as they were written; only where the values lie changes:
in the original, layers share a few buffers, here each watched value has one of its own and is an
output of the method.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from executorch.exir import schema

from llama_edge.core.errors import ArtifactError
from llama_edge.core.files import open_new
from llama_edge.formats.pte import PteFile, encode_program

_EMBEDDING: Final = "quantized_decomposed::embedding_byte"
_ATTENTION: Final = ("llama::custom_sdpa", "llama::custom_quantized_sdpa")
_CODES: Final = "quantized_decomposed::quantize_per_token"
_NARROW: Final = "dim_order_ops::_to_dim_order_copy"
#: how the rows of an int8 cache come: codes, steps and zero points of queries, keys and values
_ROWS: Final = (_CODES, _NARROW, _NARROW) * 3
ROWS_PER_LAYER: Final = len(_ROWS)
_VIEW: Final = "executorch_prim::et_view"
_ALIGNMENT: Final = 64
_PADDING: Final = 128
#: position of the residual stream among a delegate's arguments, by how many arguments it has:
#: (x, attention, cos, sin, OUT, q, k, v) between two attentions, (x, attention, OUT) at the end
_STREAM_OUTPUT: Final = {8: 4, 3: 2}


class _Tracer:
    """Rewrites one plan; `renamed` maps a shared value to its latest private copy."""

    def __init__(self, plan: schema.ExecutionPlan) -> None:
        self._plan = plan
        self._renamed: dict[int, int] = {}
        self._places: dict[int, schema.AllocationDetails] = {}
        self.hidden: list[int] = []
        self.attention: list[int] = []
        self.rows: list[int] = []
        self._row_operators: list[str] = []

    def rows_are_in_order(self, layers: int) -> bool:
        """Whether there are none, or those of every layer as they are written."""
        return tuple(self._row_operators) in ((), _ROWS * layers)

    def _allocate(self, tensor: schema.Tensor) -> schema.AllocationDetails:
        size = 4
        for length in tensor.sizes:
            size *= length
        sizes = self._plan.non_const_buffer_sizes
        offset = sizes[1]
        size += _PADDING
        sizes[1] += size + -size % _ALIGNMENT
        return schema.AllocationDetails(1, offset & 0xFFFFFFFF, offset >> 32)

    def _private_copy(self, value: int, place: schema.AllocationDetails | None) -> int:
        tensor = self._plan.values[value].val
        assert isinstance(tensor, schema.Tensor)
        allocation = place or self._allocate(tensor)
        self._plan.values.append(schema.EValue(replace(tensor, allocation_info=allocation)))
        copy = len(self._plan.values) - 1
        self._places[copy] = allocation
        self._renamed[value] = copy
        return copy

    def _watched_by(self, operator: str) -> list[int] | None:
        if operator == _EMBEDDING:
            return self.hidden
        if operator in _ATTENTION:
            return self.attention
        if operator not in _ROWS:
            return None
        self._row_operators.append(operator)
        return self.rows

    def kernel(self, call: schema.KernelCall) -> None:
        name = self._plan.operators[call.op_index].name
        out = call.args[-1]
        source = call.args[0]
        call.args = [self._renamed.get(value, value) for value in call.args]
        watched = self._watched_by(name)
        if watched is not None:
            copy = self._private_copy(out, None)
            call.args[-2:] = [copy, copy]
            watched.append(copy)
        elif name == _VIEW and source in self._renamed:
            # A view lies where what it looks at lies.
            call.args[-1] = self._private_copy(out, self._places[self._renamed[source]])
            if self.attention and self._renamed[source] == self.attention[-1]:
                self.attention[-1] = call.args[-1]  # (K, T, G * H)

    def delegate(self, call: schema.DelegateCall) -> None:
        place = _STREAM_OUTPUT.get(len(call.args))
        shared = None if place is None else call.args[place]
        call.args = [self._renamed.get(value, value) for value in call.args]
        if place is not None and shared is not None:
            copy = self._private_copy(shared, None)
            call.args[place] = copy
            self.hidden.append(copy)


def trace_plan(plan: schema.ExecutionPlan, layers: int, path: Path) -> Sequence[int]:
    """Give watched values buffers of their own: L + 1 residuals, L attention outputs, rows.

    Raises:
        ArtifactError: The program does not have the instructions that llama-edge writes.
    """
    tracer = _Tracer(plan)
    for instruction in plan.chains[0].instructions:
        call = instruction.instr_args
        if isinstance(call, schema.KernelCall):
            tracer.kernel(call)
        elif isinstance(call, schema.DelegateCall):
            tracer.delegate(call)
    if len(tracer.hidden) != layers + 1 or len(tracer.attention) != layers:
        raise ArtifactError(
            f"{path}: {len(tracer.hidden)} residual values and {len(tracer.attention)} attention "
            f"outputs found; {layers + 1} and {layers} expected: the program was not written by "
            "llama-edge, or is damaged"
        )
    if not tracer.rows_are_in_order(layers):
        raise ArtifactError(
            f"{path}: the {len(tracer.rows)} values on their way to an int8 cache come in another "
            f"order than {layers} layers of queries, keys and values: the program was not written "
            "by llama-edge, or is damaged"
        )
    return [*tracer.hidden, *tracer.attention, *tracer.rows]


def write_traced_copy(source: Path, target: Path, layers: int) -> None:
    """Write `target`: outputs are the logits, L + 1 residual values, L attention outputs.

    Of a program with an int8 cache, `ROWS_PER_LAYER` values of each layer follow: codes int8
    (1, T, heads, H), steps float32 (1, T, heads, 1), zero points int8; of queries, keys, values.

    Raises:
        ArtifactError: The program does not have the instructions that llama-edge writes.
    """
    pte = PteFile(source)
    plan = pte.method("forward")
    plan.outputs = [*plan.outputs, *trace_plan(plan, layers, source)]
    front, _ = encode_program(pte.program)
    with open_new(target) as stream:
        stream.write(front)
        stream.write(pte.segment_data())
