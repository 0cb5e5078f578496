"""Every operator of a written Core ML program, with the constants that are numbers of its own."""

import hashlib
from collections.abc import Iterator
from typing import Any, Final

from llama_edge.backends.coreml.package import CODED, mil_name
from llama_edge.core.artifact import GraphOperator
from llama_edge.formats.mlpackage import MLPackage

#: Constants of more bytes are named by their hash.
_SHOWN_BYTES: Final = 64


def read_operators(package: MLPackage) -> tuple[GraphOperator, ...]:
    """Operators in the program's order; weights are left to `read_weights`.

    Raises:
        ArtifactError: The package is damaged.
    """
    return tuple(_operators(package))


def _operators(package: MLPackage) -> Iterator[GraphOperator]:
    for operation in package.block("main").operations:
        name = operation.outputs[0].name if operation.outputs else operation.type
        if operation.type == CODED or name.endswith(mil_name(".weight")):
            continue
        if operation.type == "const":
            text = _text(package, operation.attributes["val"], name)
            yield GraphOperator(kind="constant", name=name, attributes={"value": text})
        else:
            attributes = dict(_own_numbers(package, operation, name))
            yield GraphOperator(kind=operation.type, name=name, attributes=attributes)


def _own_numbers(
    package: MLPackage,
    operation: Any,  # noqa: ANN401
    name: str,
) -> Iterator[tuple[str, str]]:
    for key, argument in sorted(operation.inputs.items()):
        values = [part for part in argument.arguments if part.WhichOneof("binding") == "value"]
        for part in values:
            yield key, _text(package, part.value, f"{name}: {key}")


def _text(package: MLPackage, value: Any, where: str) -> str:  # noqa: ANN401
    found = package.constant(value, where)
    if isinstance(found, str):
        return found
    if found.size_bytes > _SHOWN_BYTES:
        return f"sha256 {hashlib.sha256(found.read().tobytes()).hexdigest()}"
    return str(found.read().tolist())
