"""How many bytes of a written package are stored as what, and why they are not fewer."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from llama_edge.backends.coreml.package import CODED, mil_name
from llama_edge.core.artifact import StoredBytes
from llama_edge.core.walk import walk
from llama_edge.formats.mlpackage import MLPackage, StoredTensor
from llama_edge.formats.quantized_checkpoint import TABLES
from llama_edge.models.weight_names import HEAD_ROTATION

_TABLES: Final = frozenset(map(mil_name, TABLES))
_ROPE: Final = "RoPE's cosines and sines"
_NORMS: Final = "norm weights"
_ROTATIONS: Final = "rotations that stay in the graph"
_OTHER: Final = "zero biases and the cache's places"
_LINEARS: Final = "codes of block linears"
_TABLE: Final = "codes of embedding and head"
_SCALES: Final = "scales"
_REST: Final = "program, manifest and headers"
_WHY: Final = {
    _LINEARS: "the recipe's, the same as in every other target",
    _TABLE: "the recipe's, the same as in every other target; a tied table is stored once",
    _SCALES: "bfloat16 numbers within the range where float16 holds them exactly",
    _ROPE: "in float16 they would put attention 4e-4 off, four times the gate's limit",
    _NORMS: "the norm computes in float32, and not every weight is exact in float16",
    _ROTATIONS: "they compute in float32, next to the norms",
    _OTHER: "shared: a linear would store a bias of its own",
    _REST: "one operator after the other, by name, and 64 bytes before each stored tensor",
}


def read_storage(package: MLPackage) -> tuple[StoredBytes, ...]:
    """Every byte of the package, largest share first; what functions share counts once.

    Raises:
        ArtifactError: The package is damaged.
    """
    found: Counter[tuple[str, str]] = Counter()
    seen: set[tuple[str, int]] = set()
    for function in package.functions:
        for operation in package.block(function).operations:
            for what, value in _stored(operation):
                place = (value.blobFileValue.fileName, value.blobFileValue.offset)
                if value.WhichOneof("value") != "blobFileValue" or place in seen:
                    continue
                seen.add(place)
                tensor = package.constant(value, what)
                if isinstance(tensor, StoredTensor):
                    found[tensor.element.name, what] += tensor.size_bytes
    found["", _REST] = _size(package.path) - found.total()
    return tuple(
        StoredBytes(dtype=dtype, what=what, size_bytes=size, why=_WHY[what])
        for (dtype, what), size in found.most_common()
    )


def _stored(operation: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401
    """What an operator's constants are, and their `MIL_pb2.Value`s."""
    if operation.type == "const":
        yield _float_kind(_output_name(operation)), operation.attributes["val"]
        return
    for key, argument in operation.inputs.items():
        for binding in argument.arguments:
            if binding.WhichOneof("binding") == "value":
                yield _argument_kind(operation, key), binding.value


def _argument_kind(operation: Any, key: str) -> str:  # noqa: ANN401
    if operation.type != CODED:
        return _OTHER
    if key != "data":
        return _SCALES
    return _TABLE if _output_name(operation) in _TABLES else _LINEARS


def _output_name(operation: Any) -> str:  # noqa: ANN401
    return operation.outputs[0].name if operation.outputs else ""


def _float_kind(name: str) -> str:
    if name.startswith("rope_"):
        return _ROPE
    if name.startswith("hadamard_") or name == mil_name(HEAD_ROTATION):
        return _ROTATIONS
    return _NORMS if name.endswith("_weight") else _OTHER


def _size(path: Path) -> int:
    files = (path / entry.name for entry in walk(path) if not entry.is_folder)
    return sum(file.stat().st_size for file in files if file.is_file())
