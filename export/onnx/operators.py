"""Every node of a written ONNX graph, and the constants that are no weights."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import onnx

from llama_edge.backends.onnx.external_data import DATA_FILE, ExternalPlace
from llama_edge.core.artifact import GraphOperator
from llama_edge.core.errors import ArtifactError
from llama_edge.core.regular import map_regular


def read_operators(path: Path, graph: onnx.GraphProto) -> tuple[GraphOperator, ...]:
    """Nodes in the file's order, then constants.

    Raises:
        ArtifactError: A file is missing or damaged.
    """
    return (*_nodes(graph, path), *_constants(graph, path))


def _nodes(graph: onnx.GraphProto, path: Path) -> Iterator[GraphOperator]:
    for node in graph.node:
        name = node.name or next(iter(node.output), node.op_type)
        where = f"{path}: {name}"
        attributes = {item.name: _value(item, where) for item in node.attribute}
        yield GraphOperator(kind=node.op_type, name=name, attributes=attributes)


def _value(attribute: onnx.AttributeProto, where: str) -> str:
    known = onnx.AttributeProto.AttributeType.values()
    if attribute.ref_attr_name or attribute.type not in known or not attribute.type:
        raise ArtifactError(
            f"{where}: its attribute {attribute.name!r} has no value of its own: the model is "
            "damaged; copy or export it again"
        )
    value = onnx.helper.get_attribute_value(attribute)
    return f"{value:.9g}" if isinstance(value, float) else str(value)


def _constants(graph: onnx.GraphProto, path: Path) -> Iterator[GraphOperator]:
    data = path.with_name(DATA_FILE)
    view = map_regular(data)
    constants = [proto for proto in graph.initializer if ".weight" not in proto.name]
    total = sum(ExternalPlace.of(path, proto).length or 0 for proto in constants)
    if total > len(view):
        raise ArtifactError(
            f"{data}: has {len(view)} bytes; the model's constants alone take {total}: it is "
            "truncated, or the model damaged; copy or export it again"
        )
    for proto in constants:
        digest = hashlib.sha256(_stored(proto, path, view)).hexdigest()
        attributes = {"shape": str(list(proto.dims)), "sha256": digest}
        yield GraphOperator(kind="constant", name=proto.name, attributes=attributes)


def _stored(proto: onnx.TensorProto, path: Path, view: memoryview) -> memoryview:
    """A constant's bytes: those of the file, or the message itself where it holds numbers."""
    if proto.data_location != onnx.TensorProto.EXTERNAL:
        return memoryview(proto.raw_data or proto.SerializeToString(deterministic=True))
    place = ExternalPlace.of(path, proto)
    end = place.offset + (place.length or 0)
    if end > len(view):
        raise ArtifactError(
            f"{path.with_name(DATA_FILE)}: {proto.name} ends at byte {end}, after the file's at "
            f"{len(view)}: it is truncated; copy or export it again"
        )
    return view[place.offset : end]
