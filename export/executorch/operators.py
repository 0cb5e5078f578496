"""Every instruction of a written `.pte`, every node of its delegates, and its other constants."""

import hashlib
from collections.abc import Iterator
from typing import Final

from executorch.exir import schema

from llama_edge.core.artifact import GraphOperator
from llama_edge.formats.pte import PteFile
from llama_edge.formats.xnnpack import PayloadPart, read_payload

#: What a node computes with; all else of it are numbers of values.
_PLACES: Final = ("_id", "id_out")


def read_operators(pte: PteFile) -> tuple[GraphOperator, ...]:
    """Instructions with the nodes of each delegate in its turn, then constants.

    Raises:
        ArtifactError: The file or a delegate's payload is damaged.
    """
    return (*_instructions(pte), *_constants(pte))


def _instructions(pte: PteFile) -> Iterator[GraphOperator]:
    plan = pte.method("forward")
    for place, instruction in enumerate(pte.instructions(plan)):
        call = instruction.instr_args
        if isinstance(call, schema.KernelCall):
            kind = pte.operator(plan, call)
            yield GraphOperator(kind=kind, name=f"instruction {place}", attributes={})
        elif isinstance(call, schema.DelegateCall):
            delegate = pte.item(plan.delegates, call.delegate_index, "delegate")
            payload = read_payload(pte.delegate_payload(plan, delegate), str(pte.path))
            yield from _nodes(f"delegate {call.delegate_index}", payload)


def _nodes(where: str, payload: PayloadPart) -> Iterator[GraphOperator]:
    for place, node in enumerate(payload.parts("xnodes")):
        attributes = {
            key: str(value)
            for key, value in sorted(node.part("xnode_union").values.items())
            if not key.endswith(_PLACES)
        }
        kind = node.text("xnode_union_type")
        yield GraphOperator(kind=kind, name=f"{where}, node {place}", attributes=attributes)


def _constants(pte: PteFile) -> Iterator[GraphOperator]:
    for key, segment in sorted(pte.named().items()):
        if ".weight" not in key:
            yield _constant(key, bytes(pte.segment(segment)))
    # The first is a placeholder, then the embedding's codes and scales; RoPE's tables follow.
    for place, data in enumerate(pte.constants(), start=-1):
        if place > 1:
            yield _constant(f"constant {place}", bytes(data))


def _constant(name: str, data: bytes) -> GraphOperator:
    attributes = {"bytes": str(len(data)), "sha256": hashlib.sha256(data).hexdigest()}
    return GraphOperator(kind="constant", name=name, attributes=attributes)
