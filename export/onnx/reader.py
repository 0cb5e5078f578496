"""Codes, scales and norms back out of a written ONNX folder, and what its graph is made of."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import onnx
import torch
from torch import Tensor

from llama_edge.backends.onnx.external_data import (
    DATA_FILE,
    MODEL_FILE,
    ExternalDataReader,
    ExternalPlace,
)
from llama_edge.backends.onnx.genai_config import CONFIG_FILE as GENAI_CONFIG_FILE
from llama_edge.backends.onnx.graph import FUSED_OPERATORS, INT8_BLOCK
from llama_edge.backends.onnx.metadata import read_metadata
from llama_edge.core.artifact import Artifact, Interface, Placement, TensorSpec
from llama_edge.core.errors import ArtifactError, UnknownNameError
from llama_edge.core.packing import QuantizedTensor, unpack_uint4
from llama_edge.formats.quantized_checkpoint import matrix_shape, quantized_names
from llama_edge.models.network import network_of, product_name
from llama_edge.models.weight_names import EMBEDDING, LM_HEAD
from llama_edge.models.weights import float_shapes

#: Operators that are a linear.
_LINEARS: Final = frozenset({"MatMulNBits", "MatMul", "Gemm"})


class OnnxWeights:
    """`QuantizedWeights` out of `model.onnx` and its data file; each read touches one matrix.

    Raises:
        ArtifactError: A file is missing or damaged, or a tensor is not where it must be.
    """

    def __init__(self, path: Path, model: onnx.ModelProto) -> None:
        self._config, self._lowering = read_metadata(path, model)
        self._path = path
        self._tensors = ExternalDataReader(path, model)

    def quantized_names(self) -> tuple[str, ...]:
        """See `QuantizedWeights`."""
        return quantized_names(self._config)

    def quantized(self, name: str) -> QuantizedTensor:
        """See `QuantizedWeights`."""
        if name not in self.quantized_names():
            raise UnknownNameError(f"{self._path}: {name} is not a quantized matrix of this model")
        if name in (EMBEDDING, LM_HEAD):
            tied = self._config.tie_word_embeddings
            return self._table(EMBEDDING if tied else name)
        return self._linear(name)

    def vector(self, name: str) -> Tensor:
        """See `QuantizedWeights`."""
        shapes = float_shapes(self._config)
        if name not in shapes:
            raise UnknownNameError(f"{self._path}: {name} is not a float weight of this model")
        return self._tensors.read(name, torch.float32, shapes[name])

    def _table(self, name: str) -> QuantizedTensor:
        return self._int8(name, matrix_shape(self._config, name))

    def _int8(self, name: str, shape: tuple[int, int]) -> QuantizedTensor:
        """What `GraphBuilder.int8_matrix` stored."""
        rows, columns = shape
        blocks = (rows, columns // INT8_BLOCK, INT8_BLOCK)
        codes = self._tensors.read(f"{name}.codes", torch.uint8, blocks)
        return QuantizedTensor(
            codes=codes.view(rows, columns).bitwise_xor_(0x80).view(torch.int8),
            scales=self._tensors.read(f"{name}.scales", torch.bfloat16, (rows, 1)),
            bits=8,
            group_size=columns,
        )

    def _int4(self, name: str, shape: tuple[int, int]) -> QuantizedTensor:
        (rows, columns), group = shape, self._lowering.group_size
        blocks = (rows, columns // group, group // 2)
        packed = self._tensors.read(f"{name}.codes", torch.uint8, blocks)
        return QuantizedTensor(
            codes=unpack_uint4(packed.flatten(1)),
            scales=self._tensors.read(f"{name}.scales", torch.bfloat16, blocks[:2]),
            bits=4,
            group_size=group,
        )

    def _linear(self, name: str) -> QuantizedTensor:
        """The rows of one linear out of those that were stacked with it."""
        network = network_of(self._config)
        layer = network.by_name[name.removesuffix(".weight")].layer
        assert layer is not None, f"{name} is in no block"  # of our own table of names
        stacks = network.stacked_linears(layer)
        linears = next(stack for stack in stacks if name in [node.weight for node in stack])
        matrices = [node.weight for node in linears]
        heights = [matrix_shape(self._config, each)[0] for each in matrices]
        stored = f"{product_name(linears)}.weight"
        columns = matrix_shape(self._config, name)[1]
        # The file itself says how wide the codes are: a byte for each input, or half of one.
        is_int8 = self._tensors.row_items(f"{stored}.codes") == columns
        read = self._int8 if is_int8 else self._int4
        start = sum(heights[: matrices.index(name)])
        rows = torch.arange(start, start + matrix_shape(self._config, name)[0])
        return read(stored, (sum(heights), columns)).rows(rows)


def read_artifact(folder: Path, model: onnx.ModelProto) -> Artifact:
    """Describe a written folder from its files alone.

    Raises:
        ArtifactError: A file is missing or damaged.
    """
    config, lowering = read_metadata(folder / MODEL_FILE, model)
    files = (MODEL_FILE, DATA_FILE, GENAI_CONFIG_FILE)
    for name in files:
        if not (folder / name).is_file():
            raise ArtifactError(f"{folder / name}: the file is missing; export the model again")
    return Artifact(
        backend="onnx",
        root=folder,
        files=files,
        config=config,
        activation=lowering.activation,
        max_context=lowering.max_context,
        max_prefill=lowering.max_context,
    )


def read_placement(path: Path, graph: onnx.GraphProto) -> Placement:
    """Which linears, weights and operators run on ONNX Runtime's quantized and fused kernels.

    A linear counts when its weight is stored as codes. Weights count by their bytes in the file, a
    table that embedding and head share once. Work on constants, done while loading, counts nowhere.

    Args:
        path: The model file, for messages.
        graph: What it holds.

    Raises:
        ArtifactError: A stored tensor's place is damaged.
    """
    constants = _constants(graph)
    nodes = [node for node in graph.node if not constants.keys() >= {*node.output}]
    linears = [node for node in nodes if node.op_type in _LINEARS]
    quantized = [node for node in linears if any(constants.get(name) for name in node.input)]
    sizes = {proto.name: _size_bytes(path, proto) for proto in graph.initializer}
    weights = {name for name in sizes if ".weight" in name}
    portable = Counter(node.op_type for node in nodes if node.op_type not in FUSED_OPERATORS)
    return Placement(
        linears=len(linears),
        linears_delegated=len(quantized),
        weight_bytes=sum(sizes[name] for name in weights),
        weight_bytes_delegated=sum(
            sizes[name] for name in weights & _sources(graph, quantized, constants)
        ),
        operators=len(nodes),
        operators_delegated=len(nodes) - portable.total(),
        portable=dict(sorted(portable.items())),
    )


def _size_bytes(path: Path, proto: onnx.TensorProto) -> int:
    return ExternalPlace.of(path, proto).length or 0


def _constants(graph: onnx.GraphProto) -> dict[str, bool]:
    """Every value that depends on no input, and whether it comes from codes."""
    constants = {proto.name: proto.name.endswith(".codes") for proto in graph.initializer}
    for node in graph.node:
        if all(name in constants for name in node.input):
            coded = any(constants[name] for name in node.input)
            constants.update(dict.fromkeys(node.output, coded))
    return constants


def _sources(
    graph: onnx.GraphProto, linears: Sequence[onnx.NodeProto], constants: Mapping[str, bool]
) -> set[str]:
    """Constants that any of the linears comes from, each looked at once."""
    makers = {name: node for node in graph.node for name in node.output if name in constants}
    found: set[str] = set()
    waiting = [name for node in linears for name in node.input]
    while waiting:
        name = waiting.pop()
        if name in constants and name not in found:
            found.add(name)
            waiting += makers[name].input if name in makers else ()
    return found


def read_interface(path: Path, graph: onnx.GraphProto) -> Interface:
    """Inputs and outputs as the written graph declares them.

    Args:
        path: The model file, for messages.
        graph: What it holds.

    Raises:
        ArtifactError: One has elements of no type that ONNX knows.
    """
    return Interface(
        inputs=tuple(_tensor_spec(path, value) for value in graph.input),
        outputs=tuple(_tensor_spec(path, value) for value in graph.output),
        cache=(
            "past_key_values.L.key and .value go in, present.L.key and .value come out, float32 "
            "(batch, key/value heads, tokens, head_dim); one buffer may serve as both"
        ),
    )


def _tensor_spec(path: Path, value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    if tensor.elem_type not in onnx.helper.get_all_tensor_dtypes():
        raise ArtifactError(
            f"{path}: {value.name} has elements of type {tensor.elem_type}, which ONNX does not "
            "know: it is damaged; copy or export it again"
        )
    return TensorSpec(
        name=value.name,
        dtype=onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name,
        shape=tuple(dim.dim_param or dim.dim_value for dim in tensor.shape.dim),
    )
