"""A builder for XNNPACK's serialized graph, as ExecuTorch's XNNPACK backend loads it.

Source: `backends/xnnpack/serialization/schema.fbs` and `backends/xnnpack/runtime/XNNCompiler.cpp`
in ExecuTorch. The leading dimension that counts tokens changes from call to call; the sizes given
here are upper bounds, and XNNPACK infers the real ones from its inputs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from executorch.backends.xnnpack.serialization import xnnpack_graph_schema as schema
from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import (
    serialize_xnnpack_binary,
)
from executorch.backends.xnnpack.utils.xnnpack_constants import (
    UINT64_MAX,
    XNN_INVALID_VALUE_ID,
    XNN_VALUE_FLAG_EXTERNAL_INPUT,
    XNN_VALUE_FLAG_EXTERNAL_OUTPUT,
)

#: schema.fbs asks for a debug handle on each node; ExecuTorch's own default for "none".
_NO_DEBUG_HANDLE = 65535

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of the graph: its id and largest shape."""

    index: int
    shape: Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterKeys:
    """Where a quantized weight is in the `.pte`'s named data."""

    codes: str
    scales: str
    codes_bytes: int
    scales_bytes: int


class XnnpackGraph:
    """Collects values and nodes in order; `serialize` gives the delegate's payload."""

    def __init__(self) -> None:
        self._values: list[schema.XValue] = []
        self._nodes: list[schema.XNode] = []
        # Index 0 means "no constant" to the loader.
        self._constants = [schema.ConstantDataOffset(0, 0)]
        self._inputs: list[int] = []
        self._outputs: list[int] = []

    # -- values --

    def _tensor(
        self,
        shape: Shape,
        datatype: schema.XNNDatatype,
        *,
        constant: int = 0,
        external: int = XNN_INVALID_VALUE_ID,
        flags: int = 0,
    ) -> schema.XNNTensorValue:
        return schema.XNNTensorValue(
            datatype=datatype,
            num_dims=len(shape),
            dims=list(shape),
            constant_buffer_idx=constant,
            external_id=external,
            flags=flags,
            id_out=len(self._values),
        )

    def _add_value(self, tensor: schema.XNNTensorValue, quant: object = None) -> Value:
        wrapped = tensor if quant is None else schema.XNNQuantizedTensorValue(tensor, quant)
        self._values.append(schema.XValue(wrapped))
        return Value(tensor.id_out, tuple(tensor.dims))

    def _constant(self, key: str, size_bytes: int) -> int:
        self._constants.append(schema.ConstantDataOffset(UINT64_MAX, size_bytes, key))
        return len(self._constants) - 1

    def _external(self, shape: Shape, flag: int) -> Value:
        external = len(self._inputs) + len(self._outputs)
        datatype = schema.XNNDatatype.xnn_datatype_fp32
        return self._add_value(self._tensor(shape, datatype, external=external, flags=flag))

    def input(self, shape: Shape) -> Value:
        """A float32 tensor that the caller passes; inputs are numbered in order of definition."""
        assert not self._outputs, "inputs come before outputs in the delegate's argument list"
        value = self._external(shape, XNN_VALUE_FLAG_EXTERNAL_INPUT)
        self._inputs.append(value.index)
        return value

    def output(self, shape: Shape) -> Value:
        """A float32 tensor that the caller receives; outputs are numbered after the inputs."""
        value = self._external(shape, XNN_VALUE_FLAG_EXTERNAL_OUTPUT)
        self._outputs.append(value.index)
        return value

    def constant(self, key: str, shape: Shape) -> Value:
        """A float32 tensor from the named data."""
        size_bytes = 4
        for length in shape:
            size_bytes *= length
        index = self._constant(key, size_bytes)
        return self._add_value(
            self._tensor(shape, schema.XNNDatatype.xnn_datatype_fp32, constant=index)
        )

    def int4_filter(self, keys: FilterKeys, shape: tuple[int, int], group_size: int) -> Value:
        """A linear's weight: offset-8 nibbles (O, I / 2) with bf16 scales per group of inputs."""
        codes = self._constant(keys.codes, keys.codes_bytes)
        scales = self._constant(keys.scales, keys.scales_bytes)
        quant = schema.PerChannelGroupQuant(
            scale=[],
            channel_dim=0,
            group_size=group_size,
            scale_buffer_idx=scales,
            num_scales=shape[0] * shape[1] // group_size,
        )
        datatype = schema.XNNDatatype.xnn_datatype_qbint4
        return self._add_value(self._tensor(shape, datatype, constant=codes), quant)

    def int8_filter(self, keys: FilterKeys, shape: tuple[int, int]) -> Value:
        """A linear's weight: int8 codes (O, I) with one float32 scale per row."""
        codes = self._constant(keys.codes, keys.codes_bytes)
        scales = self._constant(keys.scales, keys.scales_bytes)
        quant = schema.PerChannelQuant(
            scale=[], channel_dim=0, scale_buffer_idx=scales, num_scales=shape[0]
        )
        datatype = schema.XNNDatatype.xnn_datatype_qcint8
        return self._add_value(self._tensor(shape, datatype, constant=codes), quant)

    def _float(self, shape: Shape) -> Value:
        return self._add_value(self._tensor(shape, schema.XNNDatatype.xnn_datatype_fp32))

    # -- nodes; each takes an `out` where the result is an output of the graph --

    def _add_node(self, node: object) -> None:
        self._nodes.append(schema.XNode(node, _NO_DEBUG_HANDLE))

    def _binary(self, kind: type, left: Value, right: Value, out: Value | None) -> Value:
        shape = tuple(map(max, left.shape, right.shape))
        result = out or self._float(shape)
        self._add_node(kind(left.index, right.index, result.index, 0))
        return result

    def _unary(self, kind: type, value: Value) -> Value:
        result = self._float(value.shape)
        self._add_node(kind(value.index, result.index, 0))
        return result

    def multiply(self, left: Value, right: Value, out: Value | None = None) -> Value:
        """Elementwise product; shapes of one rank broadcast."""
        return self._binary(schema.XNNMultiply, left, right, out)

    def add(self, left: Value, right: Value, out: Value | None = None) -> Value:
        """Elementwise sum; shapes of one rank broadcast."""
        return self._binary(schema.XNNAdd, left, right, out)

    def subtract(self, left: Value, right: Value, out: Value | None = None) -> Value:
        """Elementwise difference; shapes of one rank broadcast."""
        return self._binary(schema.XNNSubtract, left, right, out)

    def square(self, value: Value) -> Value:
        """Elementwise square."""
        return self._unary(schema.XNNSquare, value)

    def reciprocal_square_root(self, value: Value) -> Value:
        """Elementwise 1 / sqrt."""
        return self._unary(schema.XNNReciprocalSquareRoot, value)

    def sigmoid(self, value: Value) -> Value:
        """Elementwise logistic function."""
        return self._unary(schema.XNNSigmoid, value)

    def quantize_per_token(self, value: Value) -> Value:
        """To asymmetric int8 with a scale and zero point per row of the last dimension."""
        tensor = self._tensor(value.shape, schema.XNNDatatype.xnn_datatype_qdint8)
        result = self._add_value(tensor, schema.PerTokenDynamicQuant(num_nonbatch_dims=1))
        self._add_node(schema.XNNConvert(value.index, result.index, 0))
        return result

    def linear(
        self, value: Value, weight: Value, bias: Value | None = None, out: Value | None = None
    ) -> Value:
        """`value @ weight.T + bias` over the last dimension."""
        result = out or self._float((*value.shape[:-1], weight.shape[0]))
        bias_index = XNN_INVALID_VALUE_ID if bias is None else bias.index
        self._add_node(
            schema.XNNFullyConnected(value.index, weight.index, bias_index, result.index, 0)
        )
        return result

    def reshape(self, value: Value, shape: Shape, out: Value | None = None) -> Value:
        """A new shape; a 0 in it is inferred (the tokens)."""
        known = 1
        for length in shape:
            known *= length or 1
        total = 1
        for length in value.shape:
            total *= length
        result = out or self._float(tuple(length or total // known for length in shape))
        self._add_node(
            schema.XNNStaticReshape(len(shape), list(shape), value.index, result.index, 0)
        )
        return result

    def transpose(self, value: Value, order: Sequence[int]) -> Value:
        """The axes in another order."""
        result = self._float(tuple(value.shape[axis] for axis in order))
        rank = len(order)
        self._add_node(schema.XNNStaticTranspose(rank, [*order], value.index, result.index, 0))
        return result

    def slice(
        self, value: Value, ranges: Mapping[int, tuple[int, int]], out: Value | None = None
    ) -> Value:
        """(start, length) by axis; other axes whole, whatever their size."""
        offsets = [0] * len(value.shape)
        sizes = [0] * len(value.shape)  # 0: to the end of the axis
        for axis, (start, length) in ranges.items():
            offsets[axis], sizes[axis] = start, length
        shape = tuple(cut or whole for cut, whole in zip(sizes, value.shape, strict=True))
        result = out or self._float(shape)
        self._add_node(
            schema.XNNStaticSlice(len(sizes), offsets, sizes, value.index, result.index, 0)
        )
        return result

    def concatenate(self, parts: Sequence[Value], axis: int) -> Value:
        """Two tensors one after the other along `axis`."""
        first, second = parts
        shape = tuple(
            size + second.shape[place] if place == axis else size
            for place, size in enumerate(first.shape)
        )
        result = self._float(shape)
        unused = XNN_INVALID_VALUE_ID
        self._add_node(
            schema.XNNConcatenate2(
                axis, first.index, second.index, unused, unused, result.index, 0, unused
            )
        )
        return result

    def serialize(self) -> bytes:
        """The payload that the XNNPACK backend compiles when the method is loaded."""
        graph = schema.XNNGraph(
            version="0",
            xnodes=self._nodes,
            xvalues=self._values,
            num_externs=len(self._inputs) + len(self._outputs),
            input_ids=self._inputs,
            output_ids=self._outputs,
            constant_data=self._constants,
        )
        payload: bytes = serialize_xnnpack_binary(graph, bytearray())
        return payload
