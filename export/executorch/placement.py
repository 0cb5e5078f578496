"""What of a written `.pte` runs in XNNPACK: counted in the delegates' payloads, not assumed."""

from collections import Counter
from dataclasses import dataclass

from executorch.exir import schema

from llama_edge.backends.executorch.reader import read_description
from llama_edge.backends.executorch.weights import CODES
from llama_edge.core.artifact import Placement
from llama_edge.core.errors import ArtifactError
from llama_edge.formats.pte import PteFile
from llama_edge.formats.pte_stacks import STACK_JOINT
from llama_edge.formats.quantized_checkpoint import quantized_names
from llama_edge.formats.xnnpack import parse_payload
from llama_edge.models.weight_names import EMBEDDING


@dataclass(frozen=True, slots=True)
class _Payload:
    """One delegate's graph: node kinds, and the data keys of the weights its linears use."""

    nodes: Counter[str]
    filters: tuple[str, ...]


def _read_payload(payload: bytes) -> _Payload:
    graph = parse_payload(payload)
    constants = graph.get("constant_data", [])
    filters = {}
    for value in graph.get("xvalues", []):
        union = value["xvalue_union"]
        tensor = union.get("tensor_value")
        if tensor is not None and tensor.get("constant_buffer_idx", 0):
            filters[tensor.get("id_out", 0)] = constants[tensor["constant_buffer_idx"]]["named_key"]
    nodes: Counter[str] = Counter()
    used = []
    for node in graph.get("xnodes", []):
        nodes[node["xnode_union_type"].removeprefix("XNN")] += 1
        weight = node["xnode_union"].get("filter_id")
        if weight in filters:
            used.append(filters[weight])
    return _Payload(nodes, tuple(used))


def read_placement(pte: PteFile) -> Placement:
    """Count linears, weight bytes and operators inside and outside the delegates.

    Raises:
        ArtifactError: A payload cannot be parsed.
    """
    config, _ = read_description(pte)
    plan = pte.method("forward")
    delegated: set[str] = set()
    nodes: Counter[str] = Counter()
    try:
        for delegate in plan.delegates:
            payload = _read_payload(bytes(pte.segment(delegate.processed.index)))
            nodes += payload.nodes
            delegated.update(payload.filters)
    except (ValueError, KeyError, IndexError, RuntimeError) as error:
        raise ArtifactError(
            f"{pte.path}: a delegate's payload cannot be parsed: {error}"
        ) from error
    portable: Counter[str] = Counter()
    for instruction in plan.chains[0].instructions:
        if isinstance(instruction.instr_args, schema.KernelCall):
            portable[plan.operators[instruction.instr_args.op_index].name] += 1
    linears = [name for name in quantized_names(config) if name != EMBEDDING]
    in_delegates = {
        name for key in delegated for name in key.removesuffix(CODES).split(STACK_JOINT)
    }
    sizes = {key: pte.program.segments[index].size for key, index in pte.named().items()}
    codes = {key: size for key, size in sizes.items() if key.endswith(CODES)}
    return Placement(
        linears=len(linears),
        linears_delegated=len(in_delegates.intersection(linears)),
        weight_bytes=sum(codes.values()),
        weight_bytes_delegated=sum(size for key, size in codes.items() if key in delegated),
        operators=nodes.total() + portable.total(),
        operators_delegated=nodes.total(),
        portable=dict(sorted(portable.items())),
    )
