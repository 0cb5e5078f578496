"""Codes, scales and norms back out of a written package."""

import math
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llama_edge.backends.coreml.metadata import read_metadata, text_contract_sha256
from llama_edge.backends.coreml.package import CODED, PACKAGE, mil_name, package_files
from llama_edge.backends.coreml.program import read_cache_dtype
from llama_edge.core.artifact import ActivationQuantization, Artifact
from llama_edge.core.errors import ArtifactError, CheckFailedError, QuantizeError, UnknownNameError
from llama_edge.core.packing import QuantizedTensor
from llama_edge.formats.mlpackage import MLPackage, StoredTensor
from llama_edge.formats.quantized_checkpoint import matrix_shape, quantized_names
from llama_edge.models.weight_names import EMBEDDING, LM_HEAD
from llama_edge.models.weights import float_shapes
from llama_edge.text.text_assets import read_text_assets

#: Where a bundle keeps its tokenizer.
_TOKENIZER_FILE: Final = "tokenizer.json"
_BITS: Final = {"int4": 4, "int8": 8}


class PackageWeights:
    """`QuantizedWeights` out of a package; each read touches one matrix.

    Raises:
        ArtifactError: A file is missing or damaged, or a weight is not where it must be.
    """

    def __init__(self, package: MLPackage) -> None:
        self._package = package
        self._path = path = package.path
        self._config = read_metadata(path, package.metadata).config
        first, *others = [self._stored(name) for name in self._package.functions]
        self._constants = first
        for name, other in zip(self._package.functions[1:], others, strict=True):
            # Nobody else would notice codes of its own: what is read here is the default's.
            wrong = [
                key
                for key in sorted(first)
                if self._is_weight(key) and other.get(key) != first[key]
            ]
            if wrong:
                raise ArtifactError(
                    f"{path}: {wrong[0]} is another in its function {name!r}; export it again"
                )

    def _stored(self, function: str) -> dict[str, Any]:
        return {
            operation.outputs[0].name: operation
            for operation in self._package.block(function).operations
            if operation.type in ("const", CODED) and len(operation.outputs) == 1
        }

    def _is_weight(self, name: str) -> bool:
        return name.endswith("_weight") or self._constants[name].type == CODED

    def quantized_names(self) -> tuple[str, ...]:
        """See `QuantizedWeights`."""
        return quantized_names(self._config)

    def quantized(self, name: str) -> QuantizedTensor:
        """See `QuantizedWeights`."""
        if name not in self.quantized_names():
            raise UnknownNameError(f"{self._path}: {name} is not a quantized matrix of this model")
        stored = EMBEDDING if name == LM_HEAD and self._config.tie_word_embeddings else name
        operation = self._operation(stored, CODED)
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
        arguments = [*operation.inputs[key].arguments] if key in operation.inputs else []
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


def package_path(place: Path) -> Path:
    """The package `place`, whatever its name, or with the file `place`, or of the folder."""
    path = place if place.is_dir() else place.parent
    return path if path.suffix == Path(PACKAGE).suffix else path / PACKAGE


def require_files(path: Path) -> tuple[str, ...]:
    """The package's files, relative to the folder that it is in.

    Raises:
        ArtifactError: One is missing.
    """
    files = package_files(path.name)
    for name in files:
        if not (path.parent / name).is_file():
            raise ArtifactError(
                f"{path.parent / name}: the file is missing; export the model again"
            )
    return files


def read_artifact(package: MLPackage) -> Artifact:
    """Describe a package.

    Raises:
        ArtifactError: It is damaged.
    """
    path = package.path
    metadata = read_metadata(path, package.metadata)
    return Artifact(
        backend="coreml",
        root=path.parent,
        files=package_files(path.name),
        config=metadata.config,
        activation=ActivationQuantization.NONE,
        max_context=metadata.lowering.max_context,
        max_prefill=metadata.lowering.max_prefill,
        kv_cache=read_cache_dtype(package),
    )


def read_end_tokens(package: MLPackage) -> tuple[int, ...]:
    """The end tokens that a package tells; text files next to it must be those it was written for.

    Raises:
        ArtifactError: The package is damaged.
        CheckFailedError: The text files next to it are another model's.
    """
    path = package.path
    metadata = read_metadata(path, package.metadata)
    if (path.parent / _TOKENIZER_FILE).is_file():
        found = text_contract_sha256(read_text_assets(path.parent))
        if found != metadata.text_contract_sha256:
            raise CheckFailedError(
                f"{path}: was written for text files whose contract has the SHA-256 "
                f"{metadata.text_contract_sha256}; those next to it have {found}: export it again"
            )
    return metadata.eos_token_ids
