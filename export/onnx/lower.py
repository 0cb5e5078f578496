"""QuantizedCheckpoint -> `model.onnx` and its data file, written directly: no exporter between."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from llama_edge.backends.onnx.external_data import DATA_FILE, MODEL_FILE, ExternalDataWriter
from llama_edge.backends.onnx.graph import IR_VERSION, OPSETS, GraphBuilder
from llama_edge.backends.onnx.metadata import Lowering, metadata_entries
from llama_edge.core.errors import ExportError
from llama_edge.core.files import write_bytes
from llama_edge.core.model_config import ModelConfig
from llama_edge.core.packing import concatenate_rows
from llama_edge.core.progress import Progress
from llama_edge.core.quantized import QuantizedCheckpoint, QuantizedWeights
from llama_edge.models.blocks import (
    Add,
    Attention,
    Embedding,
    Hadamard,
    HeadNorm,
    Linear,
    OutputRows,
    RMSNorm,
    Rope,
    Rotation,
    SwiGLU,
)
from llama_edge.models.network import (
    COS,
    SIN,
    TOKENS,
    VALUES,
    Emitters,
    Network,
    Node,
    network_of,
    product_name,
)
from llama_edge.models.rope import rope_tables
from llama_edge.models.value_names import attention_value, hidden_value


def write_model(
    checkpoint: QuantizedCheckpoint, out_dir: Path, lowering: Lowering, progress: Progress
) -> None:
    """Write both files; one matrix is in memory at a time.

    Raises:
        ExportError: `onnx.checker` refuses the written graph.
    """
    config = checkpoint.config
    progress.start("lower (onnx)", config.num_hidden_layers + 2)
    with ExternalDataWriter(out_dir / DATA_FILE) as data:
        graph = GraphBuilder(config, data, lowering.accuracy_level)
        network = network_of(config)
        lower = _Lowering(graph, network, checkpoint.weights, lowering.max_context, progress)
        inputs: dict[str, _Value] = {TOKENS: "input_ids", COS: "", SIN: ""}
        network.walk(inputs, lower.emit)
    model = helper.make_model(
        helper.make_graph(
            graph.nodes, "llama", _inputs(config), _outputs(config), graph.initializers
        ),
        opset_imports=OPSETS,
        ir_version=IR_VERSION,
        producer_name="llama-edge",
    )
    for key, value in metadata_entries(config, lowering):
        model.metadata_props.add(key=key, value=value)
    path = out_dir / MODEL_FILE
    write_bytes(path, model.SerializeToString(deterministic=True))
    try:
        onnx.checker.check_model(path)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"{path}: onnx.checker refuses the graph: {error}") from error


@dataclass(frozen=True, slots=True)
class _Packed:
    """One product for queries, keys and values: `GroupQueryAttention` takes it as it is."""

    value: str
    linears: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class _Sum:
    """A residual add that waits for the norm after it: the two are one operator."""

    node: Node
    x: str
    branch: str


_Value = str | _Packed | _Sum


class _Lowering:
    """One emitter for each building block; what ONNX Runtime has one kernel for is fused here.

    Args:
        graph: Gets the nodes; values are their names in it.
        network: The model.
        weights: Its codes and norms.
        max_context: Rows of RoPE's tables.
        progress: Advances once per attention, and at both ends.
    """

    def __init__(
        self,
        graph: GraphBuilder,
        network: Network,
        weights: QuantizedWeights,
        max_context: int,
        progress: Progress,
    ) -> None:
        self._graph = graph
        self._network = network
        self._weights = weights
        self._max_context = max_context
        self._progress = progress
        self._packed = {
            linear.name: linears
            for node in network.of_kind(Attention)
            for linears in [network.linears_before(node)]
            for linear in linears
        }
        self._made: dict[str, _Packed] = {}
        self._parts: dict[str, dict[str, str]] = {}
        self._sums: dict[str, str] = {}
        self._table = ("", "")
        self._lengths = ("", "")
        self.emit = Emitters[_Value](
            {
                Embedding: self._embedding,
                OutputRows: self._output_rows,
                RMSNorm: self._rms_norm,
                Linear: self._linear,
                Rotation: self._rotation,
                HeadNorm: self._head_norm,
                Rope: lambda node, x, *tables: x,  # the attention kernel's own work
                Attention: self._attention,
                SwiGLU: self._swiglu,
                Hadamard: self._hadamard,
                Add: self._add,
            }
        )

    def _embedding(self, node: Node, tokens: str) -> str:
        graph = self._graph
        self._table = graph.int8_matrix(node.weight, self._weights.quantized(node.weight))
        x = graph.embedding(tokens, self._table, hidden_value(0))
        self._progress.advance()
        cos, sin = rope_tables(graph.config, 0, self._max_context)
        graph.store("rope.cos", cos)
        graph.store("rope.sin", sin)
        graph.store_rotations()
        self._lengths = graph.sequence_lengths("attention_mask")
        return x

    def _rms_norm(self, node: Node, x: str | _Sum) -> str:
        weight = self._graph.store(node.weight, self._weights.vector(node.weight))
        if isinstance(x, str):
            return self._graph.rms_norm(x, weight, f"{node.name}.output")
        normed, total = self._sum_names(x.node, node)
        self._sums[x.node.name] = total
        return self._graph.add_rms_norm(x.x, x.branch, weight, (normed, total))

    def _sum_names(self, add: Node, norm: Node) -> tuple[str, str]:
        """Of the norm after a residual add, and of the sum: the gate looks for the latter."""
        layer = _layer(add)
        if self._network.leaves_layer(add):
            return f"model.layers.{layer}.next_layernorm.output", hidden_value(layer + 1)
        return f"{norm.name}.output", f"model.layers.{layer}.middle"

    def _linear(self, node: Node, x: str) -> str | _Packed:
        if node.name in self._packed:
            return self._packed_linear(node, x)
        if node.name == "lm_head":
            return self._head(node, x)
        weight = self._weights.quantized(node.weight)
        assert node.bias is None, "no network has a bias here"
        return self._graph.linear(x, node.weight, weight, f"{node.name}.output")

    def _packed_linear(self, node: Node, x: str) -> _Packed:
        linears = self._packed[node.name]
        name = product_name(linears)
        if name not in self._made:
            weight = concatenate_rows([self._weights.quantized(each.weight) for each in linears])
            has_bias = linears[0].bias is not None
            output = f"{name}.product" if has_bias else f"{name}.output"
            value = self._graph.linear(x, f"{name}.weight", weight, output)
            if has_bias:
                value = self._add_bias(value, linears, name)
            self._made[name] = _Packed(value, linears)
        return self._made[name]

    def _add_bias(self, value: str, linears: Sequence[Node], name: str) -> str:
        """Each linear's bias is stored for itself; ONNX Runtime joins them once, on load."""
        graph = self._graph
        biases = [
            graph.store(each.bias, self._weights.vector(each.bias))
            for each in linears
            if each.bias is not None
        ]
        bias = graph.add("Concat", biases, [f"{name}.bias"], {"axis": 0})
        return graph.add("Add", [value, bias], [f"{name}.output"])

    def _head_norm(self, node: Node, x: _Packed) -> str:
        assert isinstance(node.block, HeadNorm)
        weight = self._graph.store(node.weight, self._weights.vector(node.weight))
        part = self._split(x)[node.inputs[0]]
        shape = node.block.heads, node.block.head_dim
        return self._graph.head_norm(part, weight, shape, f"{node.name}.output")

    def _split(self, packed: _Packed) -> dict[str, str]:
        """The parts of a packed value by their linears' names."""
        if packed.value not in self._parts:
            linears = {each.name: each.shapes[each.weight][0] for each in packed.linears}
            sizes = self._graph.constant(f"{packed.value}.sizes", [*linears.values()])
            parts = {name: f"{name}.output" for name in linears}
            self._graph.add("Split", [packed.value, sizes], [*parts.values()], {"axis": -1})
            self._parts[packed.value] = parts
        return self._parts[packed.value]

    def _head(self, node: Node, x: str) -> str:
        config = self._graph.config
        if not config.tie_word_embeddings:
            self._table = self._graph.int8_matrix(node.weight, self._weights.quantized(node.weight))
        shape = (config.head_rows, config.hidden_size)
        output = "logits" if config.output_rows is None else f"{node.name}.output"
        logits = self._graph.int8_linear(x, self._table, shape, output)
        self._progress.advance()
        return logits

    def _output_rows(self, node: Node, x: str) -> str:
        assert isinstance(node.block, OutputRows)
        return self._graph.output_rows(x, node.block, "logits")

    def _rotation(self, node: Node, x: str) -> str:
        rotation = self._graph.store(node.weight, self._weights.vector(node.weight))
        # The rotation is symmetric, so it needs no transpose before MatMul.
        return self._graph.add("MatMul", [x, rotation], ["lm_head.rotated"])

    def _attention(self, node: Node, *inputs: str | _Packed) -> str:
        layer = _layer(node)
        self._progress.advance()
        packed = inputs[VALUES]
        assert isinstance(packed, _Packed)
        if inputs[0] is packed:
            qkv = packed.value, "", ""
        else:
            queries, keys = (str(value) for value in inputs[:VALUES])
            qkv = queries, keys, self._split(packed)[node.inputs[VALUES]]
        return self._graph.attention(qkv, layer, self._lengths, attention_value(layer))

    def _swiglu(self, node: Node, gate: str, up: str) -> str:
        return self._graph.swiglu(gate, up, f"model.layers.{_layer(node)}.mlp.product")

    def _hadamard(self, node: Node, x: str) -> str:
        return self._graph.rotate_product(x, f"model.layers.{_layer(node)}.mlp.rotated")

    def _add(self, node: Node, x: str | _Sum, branch: str) -> _Sum:
        return _Sum(node, x if isinstance(x, str) else self._sums[x.node.name], branch)


def _layer(node: Node) -> int:
    assert node.layer is not None, f"{node.name} is in no layer"
    return node.layer


def _inputs(config: ModelConfig) -> list[onnx.ValueInfoProto]:
    cache = _cache(config, "past_key_values", "past_sequence_length")
    return [
        helper.make_tensor_value_info(
            "input_ids", TensorProto.INT64, ["batch_size", "sequence_length"]
        ),
        helper.make_tensor_value_info(
            "attention_mask", TensorProto.INT64, ["batch_size", "total_sequence_length"]
        ),
        *cache,
    ]


def _outputs(config: ModelConfig) -> list[onnx.ValueInfoProto]:
    logits = helper.make_tensor_value_info(
        "logits", TensorProto.FLOAT, ["batch_size", "sequence_length", config.vocab_size]
    )
    return [logits, *_cache(config, "present", "total_sequence_length")]


def _cache(config: ModelConfig, prefix: str, length: str) -> list[onnx.ValueInfoProto]:
    """Keys and values of every layer, (B, K, S, H)."""
    shape = ["batch_size", config.num_key_value_heads, length, config.head_dim]
    return [
        helper.make_tensor_value_info(f"{prefix}.{layer}.{kind}", TensorProto.FLOAT, shape)
        for layer in range(config.num_hidden_layers)
        for kind in ("key", "value")
    ]
