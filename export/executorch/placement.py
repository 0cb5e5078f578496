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
from llama_edge.formats.xnnpack import read_payload
from llama_edge.models.weight_names import EMBEDDING


@dataclass(frozen=True, slots=True)
class _Payload:
    """One delegate's graph: node kinds, and the data keys of the weights its linears use."""

    nodes: Counter[str]
    filters: tuple[str, ...]


def _read_payload(payload: bytes, where: str) -> _Payload:
    graph = read_payload(payload, where)
    constants = [part.text("named_key") for part in graph.parts("constant_data")]
    filters = {}
    for value in graph.parts("xvalues"):
        tensor = value.part("xvalue_union").part("tensor_value")
        index = tensor.number("constant_buffer_idx")
        if index:
            if not index < len(constants):
                raise ArtifactError(
                    f"{where}: a delegate names constant {index}, and has {len(constants)} of "
                    "them: it is damaged; copy or export it again"
                )
            filters[tensor.number("id_out")] = constants[index]
    nodes: Counter[str] = Counter()
    used = []
    for node in graph.parts("xnodes"):
        nodes[node.text("xnode_union_type").removeprefix("XNN")] += 1
        fields = node.part("xnode_union")
        if "filter_id" in fields.values and fields.number("filter_id") in filters:
            used.append(filters[fields.number("filter_id")])
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
    for delegate in plan.delegates:
        payload = _read_payload(pte.delegate_payload(plan, delegate), str(pte.path))
        nodes += payload.nodes
        delegated.update(payload.filters)
    portable: Counter[str] = Counter()
    for instruction in pte.instructions(plan):
        if isinstance(instruction.instr_args, schema.KernelCall):
            portable[pte.operator(plan, instruction.instr_args)] += 1
    linears = [name for name in quantized_names(config) if name != EMBEDDING]
    in_delegates = {
        name for key in delegated for name in key.removesuffix(CODES).split(STACK_JOINT)
    }
    sizes = {key: len(pte.segment(index)) for key, index in pte.named().items()}
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
