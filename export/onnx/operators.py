"""Every node of a written ONNX graph, and the constants that are no weights."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import onnx

from llama_edge.backends.onnx.external_data import DATA_FILE
from llama_edge.core.artifact import GraphOperator
from llama_edge.core.errors import ArtifactError
from llama_edge.core.regular import open_regular


def read_operators(path: Path, graph: onnx.GraphProto) -> tuple[GraphOperator, ...]:
    """Nodes in the file's order, then constants.

    Raises:
        ArtifactError: A file is missing or damaged.
    """
    return (*_nodes(graph), *_constants(graph, path))


def _nodes(graph: onnx.GraphProto) -> Iterator[GraphOperator]:
    for node in graph.node:
        attributes = {item.name: _value(item) for item in node.attribute}
        yield GraphOperator(
            kind=node.op_type, name=node.name or node.output[0], attributes=attributes
        )


def _value(attribute: onnx.AttributeProto) -> str:
    value = onnx.helper.get_attribute_value(attribute)
    return f"{value:.9g}" if isinstance(value, float) else str(value)


def _constants(graph: onnx.GraphProto, path: Path) -> Iterator[GraphOperator]:
    for proto in graph.initializer:
        if ".weight" not in proto.name:
            yield GraphOperator(
                kind="constant",
                name=proto.name,
                attributes={"shape": str(list(proto.dims)), "sha256": _sha256(proto, path)},
            )


def _sha256(proto: onnx.TensorProto, path: Path) -> str:
    if proto.data_location != onnx.TensorProto.EXTERNAL:
        return hashlib.sha256(onnx.numpy_helper.to_array(proto).tobytes()).hexdigest()
    place = {entry.key: entry.value for entry in proto.external_data}
    numbers = [place.get(key, "0") for key in ("offset", "length")]
    if not all(number.isascii() and number.isdigit() for number in numbers):
        raise ArtifactError(f"{path}: {proto.name} is at {numbers}: it is damaged")
    offset, length = map(int, numbers)
    data = path.with_name(DATA_FILE)
    with open_regular(data) as stream:
        if offset + length > os.fstat(stream.fileno()).st_size:
            raise ArtifactError(f"{data}: {proto.name} ends after the file: it is truncated")
        stream.seek(offset)
        return hashlib.sha256(stream.read(length)).hexdigest()
