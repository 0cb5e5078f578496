"""Codes, scales and norms back out of a written package, and what its program is made of."""

import math
from collections import Counter
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llama_edge.core.errors import ArtifactError, QuantizeError, UnknownNameError
from llama_edge.core.packing import QuantizedTensor
from llama_edge.core.quantized_checkpoint import float_shapes, matrix_shape, quantized_names
from llama_edge.core.text_assets import read_text_assets
from llama_edge.core.types import (
    ActivationQuantization,
    Artifact,
    Interface,
    Placement,
    TensorSpec,
)
from llama_edge.core.weight_names import EMBEDDING, LM_HEAD
from llama_edge.export.coreml.metadata import (
    PackageMetadata,
    read_metadata,
    text_contract_sha256,
)
from llama_edge.export.coreml.package import FILES, PACKAGE, mil_name
from llama_edge.formats.mlpackage import MLPackage, StoredTensor, element_type

#: Where a bundle keeps its tokenizer.
_TOKENIZER_FILE: Final = "tokenizer.json"
_CONSTEXPR: Final = "constexpr_blockwise_shift_scale"
_BITS: Final = {"int4": 4, "int8": 8}
#: Operators that a linear is; R4's products turn activations by fixed matrices and are none.
_LINEARS: Final = frozenset({"linear"})
_CONSTANTS: Final = frozenset({"const", _CONSTEXPR})
#: By the number that `FeatureTypes.proto` gives the elements of an input or output.
_ARRAY_TYPES: Final = {65552: "float16", 65568: "float32", 65600: "float64", 131104: "int32"}


class PackageWeights:
    """`QuantizedWeights` out of a package; each read touches one matrix.

    Raises:
        ArtifactError: A file is missing or damaged, or a weight is not where it must be.
    """

    def __init__(self, path: Path) -> None:
        self._package = MLPackage(path)
        self._path = path
        self._config = read_metadata(path, self._package.metadata).config
        self._constants = {
            operation.outputs[0].name: operation
            for operation in self._package.block("main").operations
            if operation.type in _CONSTANTS and len(operation.outputs) == 1
        }

    def quantized_names(self) -> tuple[str, ...]:
        """See `QuantizedWeights`."""
        return quantized_names(self._config)

    def quantized(self, name: str) -> QuantizedTensor:
        """See `QuantizedWeights`."""
        if name not in self.quantized_names():
            raise UnknownNameError(f"{self._path}: {name} is not a quantized matrix of this model")
        stored = EMBEDDING if name == LM_HEAD and self._config.tie_word_embeddings else name
        operation = self._operation(stored, _CONSTEXPR)
        if "offset" in operation.inputs:
            raise ArtifactError(f"{self._path}: {stored} has zero points; its codes are symmetric")
        codes = self._argument(operation, "data", stored)
        scales = self._argument(operation, "scale", stored)
        rows, columns = matrix_shape(self._config, stored)
        groups = math.prod(scales.shape) // rows
        fits = codes.shape == (rows, columns) and scales.shape == (rows, groups)
        if not fits or not groups or columns % groups:
            raise ArtifactError(
                f"{self._path}: {stored} has codes {codes.shape} and scales {scales.shape}; the "
                f"model's config needs {(rows, columns)}, and scales that divide its rows"
            )
        if codes.element.name not in _BITS or scales.element.name != "fp16":
            raise ArtifactError(
                f"{self._path}: {stored} has {codes.element.name} codes and "
                f"{scales.element.name} scales; int4 or int8 and fp16 are needed"
            )
        return self._tensor(stored, codes, scales)

    def vector(self, name: str) -> Tensor:
        """See `QuantizedWeights`."""
        shapes = float_shapes(self._config)
        if name not in shapes:
            raise UnknownNameError(f"{self._path}: {name} is not a float weight of this model")
        operation = self._operation(name, "const")
        found = self._package.constant(operation.attributes["val"], name)
        if isinstance(found, str) or (found.element.name, found.shape) != ("fp32", shapes[name]):
            raise ArtifactError(f"{self._path}: {name} is not fp32 {shapes[name]}; export it again")
        values = torch.from_numpy(found.read())
        if not values.isfinite().all():
            raise ArtifactError(f"{self._path}: {name} is damaged: it holds NaN or infinity")
        return values

    def _operation(self, name: str, kind: str) -> Any:  # noqa: ANN401
        operation = self._constants.get(mil_name(name))
        if operation is None or operation.type != kind:
            found = "absent" if operation is None else f"a {operation.type}"
            raise ArtifactError(f"{self._path}: {name} is {found}; a {kind} is needed")
        return operation

    def _argument(self, operation: Any, key: str, name: str) -> StoredTensor:  # noqa: ANN401
        arguments = operation.inputs[key].arguments if key in operation.inputs else ()
        if len(arguments) != 1 or arguments[0].WhichOneof("binding") != "value":
            raise ArtifactError(f"{self._path}: {name}: its {key} is no constant of its own")
        found = self._package.constant(arguments[0].value, f"{name}: {key}")
        if isinstance(found, str):
            raise ArtifactError(f"{self._path}: {name}: its {key} is a text")
        return found

    def _tensor(self, name: str, codes: StoredTensor, scales: StoredTensor) -> QuantizedTensor:
        half = torch.from_numpy(scales.read())
        rounded = half.to(torch.bfloat16)
        if not torch.equal(rounded.float(), half.float()):
            raise ArtifactError(f"{self._path}: {name}: its scales are not exact in bfloat16")
        values: NDArray[np.int8] = codes.read()
        try:
            return QuantizedTensor(
                codes=torch.from_numpy(values),
                scales=rounded,
                bits=_BITS[codes.element.name],
                group_size=codes.shape[1] // scales.shape[1],
            )
        except QuantizeError as error:
            raise ArtifactError(f"{self._path}: {name} is damaged: {error}") from error


def read_artifact(place: Path) -> Artifact:
    """Describe the package `place`, or the one in the folder `place`, or with the file `place`.

    Raises:
        ArtifactError: There is none, or it is damaged.
    """
    folder = place if place.is_dir() else place.parent
    root = folder.parent if folder.name == PACKAGE else folder
    for name in FILES:
        if not (root / name).is_file():
            raise ArtifactError(f"{root / name}: the file is missing; export the model again")
    metadata = _metadata(root)
    return Artifact(
        backend="coreml",
        root=root,
        files=FILES,
        config=metadata.config,
        activation=ActivationQuantization.NONE,
        max_context=metadata.lowering.max_context,
        max_prefill=metadata.lowering.max_prefill,
    )


def _metadata(root: Path) -> PackageMetadata:
    package = root / PACKAGE
    return read_metadata(package, MLPackage(package).metadata)


def read_end_tokens(root: Path) -> tuple[int, ...]:
    """The end tokens that the package tells; text files beside it must be those it is made for.

    Raises:
        ArtifactError: The package is damaged, or its text files are another model's.
    """
    metadata = _metadata(root)
    if (root / _TOKENIZER_FILE).is_file():
        found = text_contract_sha256(read_text_assets(root))
        if found != metadata.text_contract_sha256:
            raise ArtifactError(
                f"{root / PACKAGE}: was written for text files whose contract has the SHA-256 "
                f"{metadata.text_contract_sha256}; those beside it have {found}: export it again"
            )
    return metadata.eos_token_ids


def read_placement(root: Path) -> Placement:
    """Which linears, weights and operators are in the form that Apple's accelerators take.

    Where an operator really runs is for Core ML to decide on the device. What the file shows: a
    linear counts when its weight is stored as codes; weights count by their bytes; an operator
    counts when what it gives is fp16, the one float type of the Neural Engine.

    Raises:
        ArtifactError: The package is damaged.
    """
    package = MLPackage(root / PACKAGE)
    operations = package.block("main").operations
    sizes = {
        operation.outputs[0].name: _weight_bytes(package, operation)
        for operation in operations
        if operation.type in _CONSTANTS and operation.outputs[0].name.endswith("_weight")
    }
    coded = {entry.outputs[0].name for entry in operations if entry.type == _CONSTEXPR}
    linears = [
        {binding.name for binding in operation.inputs["weight"].arguments}
        for operation in operations
        if operation.type in _LINEARS
    ]
    running = [operation for operation in operations if operation.type not in _CONSTANTS]
    portable = Counter(entry.type for entry in running if not _gives_fp16(entry, package.path))
    return Placement(
        linears=len(linears),
        linears_delegated=sum(names <= coded for names in linears),
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
        values = [entry.arguments[0].value for entry in operation.inputs.values()]
    stored = [package.constant(value, operation.outputs[0].name) for value in values]
    return sum(entry.size_bytes for entry in stored if isinstance(entry, StoredTensor))


def _gives_fp16(operation: Any, path: Path) -> bool:  # noqa: ANN401
    """`write_state` gives nothing; what it writes is a state's fp16."""
    return all(
        element_type(output.type.tensorType, str(path)).name == "fp16"
        for output in operation.outputs
        if output.type.WhichOneof("type") == "tensorType"
    )


def read_interface(root: Path) -> Interface:
    """Inputs, outputs and states as the package declares them.

    Raises:
        ArtifactError: The package is damaged.
    """
    package = MLPackage(root / PACKAGE)
    description = package.spec.description
    block = package.block("main")
    given = {
        output.name: output.type.tensorType
        for operation in block.operations
        for output in operation.outputs
    }
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
            if entry.name in given
        ),
        cache=(
            f"states {' and '.join(states)}: (layers, 1, key/value heads, tokens, head_dim); "
            "position says where the first of the call's tokens belongs"
        ),
    )


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
