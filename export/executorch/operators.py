"""Every instruction of a written `.pte`, every node of its delegates, and its other constants."""

import hashlib
from collections.abc import Iterator
from typing import Any, Final

from executorch.exir import schema

from llama_edge.core.artifact import GraphOperator
from llama_edge.core.errors import ArtifactError
from llama_edge.formats.pte import PteFile
from llama_edge.formats.xnnpack import parse_payload

#: What a node computes with; all else of it are numbers of values.
_PLACES: Final = ("_id", "id_out")


def read_operators(pte: PteFile) -> tuple[GraphOperator, ...]:
    """Instructions with the nodes of each delegate in its turn, then constants.

    Raises:
        ArtifactError: The file or a delegate's payload is damaged.
    """
    try:
        return (*_instructions(pte), *_constants(pte))
    except (ValueError, KeyError, IndexError, RuntimeError) as error:
        raise ArtifactError(
            f"{pte.path}: a delegate's payload cannot be parsed: {error}"
        ) from error


def _instructions(pte: PteFile) -> Iterator[GraphOperator]:
    plan = pte.method("forward")
    for place, instruction in enumerate(plan.chains[0].instructions):
        call = instruction.instr_args
        if isinstance(call, schema.KernelCall):
            kind = plan.operators[call.op_index].name
            yield GraphOperator(kind=kind, name=f"instruction {place}", attributes={})
        elif isinstance(call, schema.DelegateCall):
            delegate = plan.delegates[call.delegate_index]
            payload = parse_payload(bytes(pte.segment(delegate.processed.index)))
            yield from _nodes(f"delegate {call.delegate_index}", payload)


def _nodes(where: str, payload: dict[str, Any]) -> Iterator[GraphOperator]:
    for place, node in enumerate(payload.get("xnodes", [])):
        attributes = {
            key: str(value)
            for key, value in sorted(node["xnode_union"].items())
            if not key.endswith(_PLACES)
        }
        kind = node["xnode_union_type"]
        yield GraphOperator(kind=kind, name=f"{where}, node {place}", attributes=attributes)


def _constants(pte: PteFile) -> Iterator[GraphOperator]:
    for key, segment in sorted(pte.named().items()):
        if ".weight" not in key:
            yield _constant(key, bytes(pte.segment(segment)))
    stored = pte.program.constant_segment
    data = pte.segment(stored.segment_index)
    ends = [*stored.offsets[2:], len(data)]
    # The first is a placeholder, then the embedding's codes and scales; RoPE's tables follow.
    for place, (start, end) in enumerate(zip(stored.offsets[1:], ends, strict=True)):
        if place > 1:
            yield _constant(f"constant {place}", bytes(data[start:end]))


def _constant(name: str, data: bytes) -> GraphOperator:
    attributes = {"bytes": str(len(data)), "sha256": hashlib.sha256(data).hexdigest()}
    return GraphOperator(kind="constant", name=name, attributes=attributes)
