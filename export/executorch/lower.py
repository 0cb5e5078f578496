"""QuantizedCheckpoint -> `model.pte`: one method, L + 2 XNNPACK delegates, one file."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from executorch.exir import schema
from executorch.exir.scalar_type import ScalarType

from llama_edge.backends.base import LowerOptions
from llama_edge.backends.executorch.attention import Positions, make_attention
from llama_edge.backends.executorch.blocks import BlockBuilder
from llama_edge.backends.executorch.program import PlanBuilder, constant_method
from llama_edge.backends.executorch.weights import CODES, SCALES, StoredData, WeightStore
from llama_edge.core.artifact import KVCacheDtype
from llama_edge.core.json_files import canonical_json
from llama_edge.core.model_config import ModelConfig
from llama_edge.core.packing import tensor_bytes
from llama_edge.core.progress import Progress
from llama_edge.core.quantized import QuantizedCheckpoint
from llama_edge.formats.pte import Segment, SegmentAlias, write_pte
from llama_edge.formats.quantized_checkpoint import Layout
from llama_edge.models.blocks import NOT_COMPUTED, OutputRows
from llama_edge.models.network import network_of
from llama_edge.models.rope import rope_tables
from llama_edge.models.weight_names import EMBEDDING, LM_HEAD

PTE_FILE: Final = "model.pte"
BACKEND: Final = "XnnpackBackend"
#: A constant method of ours: the model config and recipe as JSON, so that a bare file can be read.
CONFIG_METHOD: Final = "get_llama_edge_config"
#: Tokens of one forward call. The runner cuts longer prompts; a larger number costs arena memory
#: (about 2 KiB a token and 64 columns) and gains nothing once XNNPACK's tiles are full.
MAX_PREFILL: Final = 512

_CONSTANT_SEGMENT: Final = 0
_INT64_MAX: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class _Constant:
    """A tensor of the constant segment; the position in the list is its data_buffer_idx - 1."""

    offset: int
    data: StoredData


def _constants(config: ModelConfig, store: WeightStore, max_context: int) -> list[_Constant]:
    """Embedding codes and scales, RoPE's tables (max_context, H), and the places of logits."""
    keys, _ = store.int8([EMBEDDING])
    rope_bytes = max_context * config.head_dim // 2 * 4
    data = [
        store.entries.pop(keys.codes),
        store.entries.pop(keys.scales),
        StoredData("rope.cos", rope_bytes, lambda: rope_tables(config, 0, max_context)[0]),
        StoredData("rope.sin", rope_bytes, lambda: rope_tables(config, 0, max_context)[1]),
    ]
    for node in network_of(config).of_kind(OutputRows):
        assert isinstance(node.block, OutputRows)
        data.append(StoredData("output_rows", 8 * config.vocab_size, node.block.places))
    placed, offset = [], 0
    for entry in data:
        placed.append(_Constant(offset, entry))
        offset += entry.size_bytes + -entry.size_bytes % 64
    return placed


def _constant_bytes(constants: Sequence[_Constant]) -> Iterable[memoryview]:
    written = 0
    for constant in constants:
        yield memoryview(b"\0" * (constant.offset - written))
        yield tensor_bytes(constant.data.read())
        written = constant.offset + constant.data.size_bytes


def _forward_plan(
    config: ModelConfig, kv_cache: KVCacheDtype, max_context: int, max_prefill: int
) -> schema.ExecutionPlan:
    """Tokens (1, T) int64, input_pos (1,) int64 -> logits (1, 1, V) after the last token.

    Delegate i's payload is segment i + 1.
    """
    plan = PlanBuilder("forward")
    hidden, steps, half = config.hidden_size, max_prefill, config.head_dim // 2

    def activation(shape: tuple[int, ...]) -> int:
        size = 4
        for length in shape:
            size *= length
        return plan.tensor(shape, place=plan.arena.allocate(size), dynamic=True)

    tokens = plan.tensor((1, steps), dtype=ScalarType.LONG, dynamic=True)
    input_pos = plan.tensor((1,), dtype=ScalarType.LONG)
    table = plan.tensor((config.vocab_size, hidden), dtype=ScalarType.CHAR, constant=1)
    table_scales = plan.tensor((config.vocab_size, 1), constant=2)
    rope_constants = [plan.tensor((max_context, half), constant=index) for index in (3, 4)]
    zero, one, none = plan.integer(0), plan.integer(1), plan.null()

    # where we are, and how many tokens came
    count, position, end = (plan.integer_slot() for _ in range(3))
    scalar = plan.tensor((), dtype=ScalarType.LONG, place=plan.arena.allocate(8))
    plan.call("aten::sym_size", "int", [tokens, one, count])
    plan.call("aten::select_copy", "int_out", [input_pos, zero, zero, scalar, scalar])
    plan.call("aten::_local_scalar_dense", "", [scalar, position])
    plan.call("executorch_prim::add", "Scalar", [position, count, end])

    rope = []
    rope_view = plan.integer_list([one, count, one, plan.integer(half)])
    for constant in rope_constants:
        place = plan.arena.allocate(4 * steps * half)
        rows = plan.tensor((steps, half), place=place, dynamic=True)
        view = plan.tensor((1, steps, 1, half), place=place, dynamic=True)
        plan.call(
            "aten::slice_copy", "Tensor_out", [constant, zero, position, end, one, rows, rows]
        )
        plan.call("executorch_prim::et_view", "default", [rows, rope_view, view])
        rope.append(view)

    stream = [activation((1, steps, hidden)) for _ in range(2)]
    low, high = plan.integer(-128), plan.integer(127)
    plan.call(
        "quantized_decomposed::embedding_byte",
        "out",
        [table, table_scales, none, low, high, tokens, stream[0], stream[0]],
    )
    positions = Positions(count=count, known=position)
    attention = make_attention(plan, config, kv_cache, positions, max_context, max_prefill)
    values = attention.values
    heads = values.query, values.key, values.value

    plan.delegate(BACKEND, 1, [stream[0], *rope, *heads])
    for layer in range(config.num_hidden_layers):
        attention.attend()
        x, out = stream[layer % 2], stream[(layer + 1) % 2]
        if layer + 1 < config.num_hidden_layers:
            plan.delegate(BACKEND, layer + 2, [x, values.attended, *rope, out, *heads])
        else:
            plan.delegate(BACKEND, layer + 2, [x, values.attended, out])

    last = plan.tensor((1, 1, hidden), place=plan.arena.allocate(4 * hidden))
    final = stream[config.num_hidden_layers % 2]
    minus_one, to_end = plan.integer(-1), plan.integer(_INT64_MAX)
    plan.call("aten::slice_copy", "Tensor_out", [final, one, minus_one, to_end, one, last, last])
    computed_place = plan.arena.allocate(4 * config.head_rows)
    computed = plan.tensor((1, 1, config.head_rows), place=computed_place)
    plan.delegate(BACKEND, config.num_hidden_layers + 2, [last, computed])
    logits = computed if config.output_rows is None else _all_logits(plan, config, computed)
    return plan.build([tokens, input_pos], [logits])


def _all_logits(plan: PlanBuilder, config: ModelConfig, computed: int) -> int:
    """(1, 1, R) to (1, 1, V): one more column, then a selection (`OutputRows.places`)."""
    padded_shape = (1, 1, config.head_rows + 1)
    padded = plan.tensor(padded_shape, place=plan.arena.allocate(4 * padded_shape[-1]))
    pads = plan.integer_list([plan.integer(0), plan.integer(1)])
    fill = plan.number(NOT_COMPUTED)
    plan.call("aten::constant_pad_nd", "out", [computed, pads, fill, padded, padded])
    places = plan.tensor((config.vocab_size,), dtype=ScalarType.LONG, constant=5)
    logits_place = plan.arena.allocate(4 * config.vocab_size)
    logits = plan.tensor((1, 1, config.vocab_size), place=logits_place)
    plan.call("aten::index_select", "out", [padded, plan.integer(2), places, logits, logits])
    return logits


def _metadata(
    checkpoint: QuantizedCheckpoint, max_context: int, max_prefill: int
) -> list[schema.ExecutionPlan]:
    """What ExecuTorch's LLM runner asks a file for (`extension/llm/runner` in ExecuTorch)."""
    config, text = checkpoint.config, checkpoint.text
    methods: dict[str, bool | int | Sequence[int]] = {
        "enable_dynamic_shape": True,
        "get_eos_ids": list(text.eos_token_ids),
        "get_max_context_len": max_context,
        "get_max_seq_len": max_prefill,
        "get_n_layers": config.num_hidden_layers,
        "get_vocab_size": config.vocab_size,
        "use_kv_cache": True,
        "use_sdpa_with_kv_cache": True,
    }
    if text.bos_token_id is not None:
        methods["get_bos_id"] = text.bos_token_id
    plans = [constant_method(name, value) for name, value in methods.items()]
    description = {"config": config.to_json(), "recipe": checkpoint.recipe.to_json()}
    plans.append(_text_method(CONFIG_METHOD, canonical_json(description)))
    return plans


def _text_method(name: str, text: str) -> schema.ExecutionPlan:
    plan = constant_method(name, 0)
    plan.values = [schema.EValue(schema.String(text))]
    return plan


def _data_segment(entry: StoredData) -> Segment:
    return Segment(entry.size_bytes, lambda: [tensor_bytes(entry.read())])


def _payload_segment(payload: bytes) -> Segment:
    return Segment(len(payload), lambda: [memoryview(payload)])


def lower_to_pte(
    checkpoint: QuantizedCheckpoint, path: Path, options: LowerOptions, progress: Progress
) -> int:
    """Write the `.pte` and return the most tokens that one call takes."""
    config, kv_cache = checkpoint.config, options.kv_cache or KVCacheDtype.FLOAT32
    max_context = options.context_for(config)
    max_prefill = min(MAX_PREFILL, max_context)
    layout = Layout(config, checkpoint.recipe, checkpoint.mixed_precision)
    store = WeightStore(layout, checkpoint.weights)
    constants = _constants(config, store, max_context)
    builder = BlockBuilder(
        config=config,
        store=store,
        max_tokens=max_prefill,
        rotates_heads=kv_cache.rotates_heads,
    )
    progress.start("lower (executorch)", config.num_hidden_layers + 2)
    payloads = []
    for graph in builder.graphs():
        payloads.append(graph.serialize())
        progress.advance()

    constant_size = constants[-1].offset + constants[-1].data.size_bytes
    segments: list[Segment | SegmentAlias] = [
        Segment(constant_size, lambda: _constant_bytes(constants))
    ]
    segments += [_payload_segment(payload) for payload in payloads]
    named = []
    shared = store.shares_table()
    for key, entry in store.entries.items():
        named.append(schema.NamedData(key=key, segment_index=len(segments)))
        place = {LM_HEAD + CODES: 0, LM_HEAD + SCALES: 1}.get(key)
        if shared and place is not None:
            offset = constants[place].offset
            segments.append(SegmentAlias(_CONSTANT_SEGMENT, offset, entry.size_bytes))
        else:
            segments.append(_data_segment(entry))
    program = schema.Program(
        version=0,
        execution_plan=[
            _forward_plan(config, kv_cache, max_context, max_prefill),
            *_metadata(checkpoint, max_context, max_prefill),
        ],
        constant_buffer=[],
        backend_delegate_data=[],
        segments=[],
        constant_segment=schema.SubsegmentOffsets(
            segment_index=_CONSTANT_SEGMENT, offsets=[0, *(item.offset for item in constants)]
        ),
        named_data=named,
    )
    progress.start("write (executorch)", 1)
    write_pte(path, program, segments)
    progress.advance()
    return max_prefill
