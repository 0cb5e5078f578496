"""QuantizedCheckpoint -> `model.onnx` and its data file, written directly: no exporter between."""

from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from llama_edge.core.errors import ExportError
from llama_edge.core.model import rope_tables
from llama_edge.core.model_config import ModelConfig
from llama_edge.core.packing import QuantizedTensor, concatenate_rows
from llama_edge.core.progress import Progress
from llama_edge.core.types import QuantizedCheckpoint, QuantizedWeights
from llama_edge.core.value_names import attention_value, hidden_value
from llama_edge.core.weight_names import (
    EMBEDDING,
    FINAL_NORM,
    FUSED_LINEARS,
    HEAD_ROTATION,
    LM_HEAD,
    block_weight,
)
from llama_edge.export.onnx.external_data import DATA_FILE, MODEL_FILE, ExternalDataWriter
from llama_edge.export.onnx.graph import IR_VERSION, OPSETS, GraphBuilder
from llama_edge.export.onnx.metadata import Lowering, metadata_entries


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
        _network(graph, checkpoint.weights, lowering.max_context, progress)
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
    path.write_bytes(model.SerializeToString(deterministic=True))
    try:
        onnx.checker.check_model(path)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"{path}: onnx.checker refuses the graph: {error}") from error


def _network(
    graph: GraphBuilder, weights: QuantizedWeights, max_context: int, progress: Progress
) -> None:
    tied = graph.config.tie_word_embeddings
    table = graph.int8_matrix(EMBEDDING, weights.quantized(EMBEDDING))
    x = graph.embedding("input_ids", table, hidden_value(0))
    progress.advance()
    cos, sin = rope_tables(graph.config, 0, max_context)
    graph.store("rope.cos", cos)
    graph.store("rope.sin", sin)
    graph.store_rotations()
    lengths = graph.sequence_lengths("attention_mask")
    norm = _store_norm(graph, weights, block_weight(0, "input_layernorm"))
    normed = graph.rms_norm(x, norm, "model.layers.0.input_layernorm.output")
    for layer in range(graph.config.num_hidden_layers):
        x, normed = _block(graph, weights, layer, (x, normed), lengths)
        progress.advance()
    if not tied:
        table = graph.int8_matrix(LM_HEAD, weights.quantized(LM_HEAD))
    if graph.config.head_rotation:
        rotation = graph.store(HEAD_ROTATION, weights.vector(HEAD_ROTATION))
        # The rotation is symmetric, so it needs no transpose before MatMul.
        normed = graph.add("MatMul", [normed, rotation], ["lm_head.rotated"])
    shape = (graph.config.vocab_size, graph.config.hidden_size)
    graph.int8_linear(normed, table, shape, "logits")
    progress.advance()


def _block(
    graph: GraphBuilder,
    weights: QuantizedWeights,
    layer: int,
    stream: tuple[str, str],
    lengths: tuple[str, str],
) -> tuple[str, str]:
    """One block; `stream` is the residual and its norm, and so is the result."""
    x, normed = stream
    prefix = f"model.layers.{layer}."

    def linear(source: str, part: str) -> str:
        weight = _fused(weights, layer, FUSED_LINEARS[part])
        return graph.linear(source, block_weight(layer, part), weight, f"{prefix}{part}.output")

    qkv = linear(normed, "self_attn.qkv_proj")
    attended = graph.attention(qkv, layer, lengths, attention_value(layer))
    attended = linear(attended, "self_attn.o_proj")
    norm = _store_norm(graph, weights, block_weight(layer, "post_attention_layernorm"))
    middle = (f"{prefix}post_attention_layernorm.output", f"{prefix}middle")
    normed = graph.add_rms_norm(x, attended, norm, middle)
    gate, up = linear(normed, "mlp.gate_proj"), linear(normed, "mlp.up_proj")
    product = graph.swiglu(gate, up, f"{prefix}mlp.product")
    product = graph.rotate_product(product, f"{prefix}mlp.rotated")
    branch = linear(product, "mlp.down_proj")
    norm = _store_norm(graph, weights, _next_norm(graph.config, layer))
    outputs = (f"{prefix}next_layernorm.output", hidden_value(layer + 1))
    return outputs[1], graph.add_rms_norm(middle[1], branch, norm, outputs)


def _next_norm(config: ModelConfig, layer: int) -> str:
    """The norm that the output of block `layer` meets first."""
    last = layer + 1 == config.num_hidden_layers
    return FINAL_NORM if last else block_weight(layer + 1, "input_layernorm")


def _store_norm(graph: GraphBuilder, weights: QuantizedWeights, name: str) -> str:
    return graph.store(name, weights.vector(name))


def _fused(weights: QuantizedWeights, layer: int, parts: Sequence[str]) -> QuantizedTensor:
    return concatenate_rows([weights.quantized(block_weight(layer, part)) for part in parts])


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
