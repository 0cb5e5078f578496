"""What a written package's program is made of, and how it is called."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from llama_edge.backends.coreml.package import CODED
from llama_edge.core.artifact import Interface, KVCacheDtype, Placement, TensorSpec
from llama_edge.core.errors import ArtifactError
from llama_edge.formats.mlpackage import MLPackage, StoredTensor, element_type

_CONSTANTS: Final = frozenset({"const", CODED})
#: By the number that `FeatureTypes.proto` gives the elements of an input or output.
_ARRAY_TYPES: Final = {65552: "float16", 65568: "float32", 65600: "float64", 131104: "int32"}


def read_placement(package: MLPackage) -> Placement:
    """Which linears, weights and operators are in the form that Apple's accelerators take.

    Where an operator really runs is for Core ML to decide on the device. What the file shows: a
    linear counts when its weight is stored as codes; weights count by their bytes; an operator
    counts when what it gives is fp16, the one float type of the Neural Engine. Of several
    functions, the default one counts: they differ in sizes alone.

    Raises:
        ArtifactError: The package is damaged.
    """
    operations = package.block(package.functions[0]).operations
    sizes = {
        output.name: _weight_bytes(package, operation)
        for operation in operations
        for output in operation.outputs
        if operation.type in _CONSTANTS and output.name.endswith("_weight")
    }
    coded = {
        output.name
        for operation in operations
        for output in operation.outputs
        if operation.type == CODED
    }
    linears = [
        {binding.name for binding in operation.inputs["weight"].arguments}
        for operation in operations
        if operation.type == "linear"
    ]
    running = [operation for operation in operations if operation.type not in _CONSTANTS]
    portable = Counter(entry.type for entry in running if not _gives_fp16(entry, package.path))
    return Placement(
        linears=len(linears),
        linears_delegated=sum(bool(names & coded) for names in linears),
        weight_bytes=sum(sizes.values()),
        weight_bytes_delegated=sum(sizes[name] for name in coded if name in sizes),
        operators=len(running),
        operators_delegated=len(running) - portable.total(),
        portable=dict(sorted(portable.items())),
    )


def _weight_bytes(package: MLPackage, operation: Any) -> int:  # noqa: ANN401
    if operation.type == "const":
        values = [operation.attributes["val"]]
    else:
        values = [part.value for entry in operation.inputs.values() for part in entry.arguments]
    stored = [package.constant(value, operation.type) for value in values]
    return sum(entry.size_bytes for entry in stored if isinstance(entry, StoredTensor))


def _gives_fp16(operation: Any, path: Path) -> bool:  # noqa: ANN401
    """`write_state` gives nothing; what it writes is a state's fp16."""
    return all(
        element_type(output.type.tensorType, str(path)).name == "fp16"
        for output in operation.outputs
        if output.type.WhichOneof("type") == "tensorType"
    )


def read_interface(package: MLPackage) -> Interface:
    """Inputs, outputs and states as the package declares them, for all its functions together.

    Raises:
        ArtifactError: The package is damaged.
    """
    parts = [_function_interface(package, name) for name in package.functions]
    return Interface(
        inputs=_merged([part.inputs for part in parts], package.path),
        outputs=_merged([part.outputs for part in parts], package.path),
        cache=parts[0].cache,
    )


def _merged(parts: list[tuple[TensorSpec, ...]], path: Path) -> tuple[TensorSpec, ...]:
    """One description of all functions: where their sizes differ, "1 or 64"."""
    names = {tuple((spec.name, spec.dtype, len(spec.shape)) for spec in part) for part in parts}
    if len(names) != 1:
        raise ArtifactError(f"{path}: its functions take or give different things")
    return tuple(
        replace(same[0], shape=tuple(_sizes(sizes) for sizes in _columns(same)))
        for same in zip(*parts, strict=True)
    )


def _columns(specs: tuple[TensorSpec, ...]) -> list[tuple[int | str, ...]]:
    return list(zip(*(spec.shape for spec in specs), strict=True))


def _sizes(sizes: tuple[int | str, ...]) -> int | str:
    return sizes[0] if len(set(sizes)) == 1 else " or ".join(map(str, sizes))


def _function_interface(package: MLPackage, name: str) -> Interface:
    path, description, block = package.path, package.described(name), package.block(name)
    given = {
        output.name: output.type.tensorType
        for operation in block.operations
        for output in operation.outputs
    }
    for entry in description.output:
        if entry.name not in given:
            raise ArtifactError(
                f"{path}: its output {entry.name!r} is made nowhere in its program; export it again"
            )
    states = [
        f"{state.name} {_dtype(state.type.stateType.arrayType)} "
        f"{tuple(state.type.stateType.arrayType.shape)}"
        for state in description.state
    ]
    return Interface(
        inputs=tuple(
            TensorSpec(
                name=entry.name,
                dtype=_dtype(entry.type.multiArrayType),
                shape=_input_shape(entry.type.multiArrayType),
            )
            for entry in description.input
        ),
        outputs=tuple(
            TensorSpec(
                name=entry.name,
                dtype=_dtype(entry.type.multiArrayType),
                shape=_output_shape(given[entry.name]),
            )
            for entry in description.output
        ),
        cache=(
            f"states {' and '.join(states)}: (layers, 1, key/value heads, tokens, head_dim); "
            "position says where the first of the call's tokens belongs"
        ),
    )


def read_cache_dtype(package: MLPackage) -> KVCacheDtype:
    """What the package's states declare.

    Raises:
        ArtifactError: They are none, differ, or are of a type that no cache has.
    """
    states = [state for name in package.functions for state in package.described(name).state]
    found = {_dtype(state.type.stateType.arrayType) for state in states}
    if len(found) != 1 or not found < {"float16", "float32"}:
        raise ArtifactError(
            f"{package.path}: its states hold {' and '.join(sorted(found)) or 'nothing'}; keys and "
            "values are kept in one float type: export it again"
        )
    return KVCacheDtype(found.pop())


def _dtype(array: Any) -> str:  # noqa: ANN401
    return _ARRAY_TYPES.get(array.dataType, f"type {array.dataType}")


def _input_shape(array: Any) -> tuple[int | str, ...]:  # noqa: ANN401
    ranges = array.shapeRange.sizeRanges
    if not ranges:
        return tuple(array.shape)
    return tuple(
        f"tokens <= {size.upperBound}" if size.lowerBound != size.upperBound else size.lowerBound
        for size in ranges
    )


def _output_shape(tensor: Any) -> tuple[int | str, ...]:  # noqa: ANN401
    return tuple(
        dimension.constant.size if dimension.WhichOneof("dimension") == "constant" else "tokens"
        for dimension in tensor.dimensions
    )
