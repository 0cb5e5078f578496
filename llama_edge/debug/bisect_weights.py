"""What a bundle is bisected against, and whether its weights are the right ones."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from llama_edge.backends import get_exporter
from llama_edge.bundle.folder import is_bundle, read_manifest
from llama_edge.bundle.full_precision import load_full_precision
from llama_edge.bundle.manifest import Manifest, TensorEntry
from llama_edge.bundle.signing import NO_KEY, Trust
from llama_edge.core.artifact import ActivationQuantization
from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.errors import ArtifactError, QuantizeError
from llama_edge.core.model_config import ModelConfig
from llama_edge.core.packing import QuantizedTensor, tensor_sha256
from llama_edge.core.progress import Progress
from llama_edge.core.quantized import QuantizedWeights
from llama_edge.core.recipe import Rounding, Scales
from llama_edge.debug.matrix_difference import MatrixDifference
from llama_edge.formats.quantized_checkpoint import (
    CONFIG_FILE,
    Layout,
    matrix_shape,
    quantized_names,
    read_quantized_checkpoint,
)
from llama_edge.models.reference import Reference
from llama_edge.models.sources import DequantizedSource, FullPrecisionSource, MatrixSource
from llama_edge.models.weight_names import LM_HEAD
from llama_edge.models.weights import float_shapes
from llama_edge.quantize.stage import nearest_codes


@dataclass(frozen=True, slots=True, kw_only=True)
class Against:
    """What is held to be right."""

    name: str
    #: the codes that the artifact should hold; None: those whose hashes the manifest has
    codes: QuantizedWeights | None
    #: whose residual stream is followed; None: no other model is available
    network: Reference | None
    #: whether the two streams differ by a rotation
    aligned: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFinding:
    """A weight that is not what it must be."""

    name: str
    message: str
    #: what it should be, where that is known
    wanted: QuantizedTensor | None = None
    found: QuantizedTensor | None = None


class RoundedAgain:
    """`QuantizedWeights` of a recipe without calibration: rounded when asked for."""

    def __init__(self, checkpoint: Checkpoint, manifest: Manifest) -> None:
        self._checkpoint = checkpoint
        self._layout = Layout(checkpoint.config, manifest.recipe)

    def quantized_names(self) -> tuple[str, ...]:
        """See `QuantizedWeights`."""
        return quantized_names(self._checkpoint.config)

    def quantized(self, name: str) -> QuantizedTensor:
        """See `QuantizedWeights`."""
        tied = self._checkpoint.config.tie_word_embeddings and name == LM_HEAD
        stored = quantized_names(self._checkpoint.config)[0] if tied else name
        return nearest_codes(self._checkpoint, self._layout, stored)

    def vector(self, name: str) -> Tensor:
        """See `QuantizedWeights`."""
        return self._checkpoint.weights.read(name)


class ReadableSource:
    """A `MatrixSource` in which what cannot be read is NaN: found wrong, and not the end."""

    def __init__(self, source: MatrixSource, config: ModelConfig) -> None:
        self._source = source
        self._config = config

    def matrix(self, name: str) -> Tensor:
        """See `MatrixSource`."""
        try:
            return self._source.matrix(name)
        except (ArtifactError, QuantizeError):
            return torch.full(matrix_shape(self._config, name), torch.nan)

    def vector(self, name: str) -> Tensor:
        """See `MatrixSource`."""
        try:
            return self._source.vector(name)
        except ArtifactError:
            return torch.full(float_shapes(self._config)[name], torch.nan)

    def embedding_rows(self, tokens_T: Tensor) -> Tensor:
        """See `MatrixSource`."""
        return self._source.embedding_rows(tokens_T)


def open_against(against: str | None, manifest: Manifest, trust: Trust = NO_KEY) -> Against:
    """A bundle, a quantized checkpoint or a full-precision model.

    Raises:
        ArtifactError: It is of another shape than the bundle's model.
        CheckpointError: It is no model of the bundle's shape.
    """
    path = None if against is None else Path(against)
    if path is not None and is_bundle(path):
        return _open_bundle(path, manifest, trust)
    if path is not None and (path / CONFIG_FILE).is_file():
        quantized = read_quantized_checkpoint(path)
        return _of_codes(path, quantized.weights, quantized.config, manifest)
    full = load_full_precision(manifest, against)
    if full is None:
        return Against(name="", codes=None, network=None, aligned=False)
    recipe = manifest.recipe
    plain = not recipe.rotations and recipe.rounding is Rounding.NEAREST
    again = plain and recipe.scales is Scales.ABSMAX and manifest.mixed_precision is None
    return Against(
        name=f"{full.source} ({full.precision})",
        codes=RoundedAgain(full, manifest) if again else None,
        network=Reference(full.config, FullPrecisionSource(full.config, full.weights)),
        aligned=bool(recipe.rotations) or recipe.rounding is Rounding.GIVEN,
    )


def _open_bundle(path: Path, manifest: Manifest, trust: Trust) -> Against:
    other = read_manifest(path, trust).manifest
    written = get_exporter(other.backend).open(path)
    activation = written.artifact.activation
    return _of_codes(path, written.weights(), other.model.config, manifest, activation)


def _of_codes(
    path: Path,
    weights: QuantizedWeights,
    config: ModelConfig,
    manifest: Manifest,
    activation: ActivationQuantization = ActivationQuantization.NONE,
) -> Against:
    if config != manifest.model.config:
        raise ArtifactError(
            f"{path}: its model's config is not the bundle's, so its codes say nothing about the "
            "bundle's; give one that was made from the same model by the same recipe"
        )
    return Against(
        name=path.name,
        codes=weights,
        network=Reference(config, DequantizedSource(weights), activation),
        aligned=False,
    )


def check_weights(
    own: QuantizedWeights, manifest: Manifest, other: Against, progress: Progress
) -> tuple[WeightFinding, ...]:
    """Every matrix against the manifest's hashes and the other's codes; every norm likewise."""
    progress.start("read values back", len(manifest.tensors))
    return tuple(_findings(own, manifest, other, progress))


def _findings(
    own: QuantizedWeights, manifest: Manifest, other: Against, progress: Progress
) -> Iterator[WeightFinding]:
    config = manifest.model.config
    for name, shape in float_shapes(config).items():
        finding = _check_vector(own, other.codes, name)
        if finding is not None:
            assert shape
            yield finding
    for entry in manifest.tensors:
        # A tied head is the embedding, and is found there.
        if not (entry.name == LM_HEAD and config.tie_word_embeddings):
            finding = _check_matrix(own, entry, other.codes)
            if finding is not None:
                yield finding
        progress.advance()


def _check_vector(
    own: QuantizedWeights, right: QuantizedWeights | None, name: str
) -> WeightFinding | None:
    try:
        found = own.vector(name)
    except ArtifactError as error:
        return WeightFinding(name=name, message=f"cannot be read back: {error}")
    if right is None or torch.equal(found, wanted := right.vector(name)):
        return None
    count = int((found != wanted).sum())
    return WeightFinding(name=name, message=f"{count} of {found.numel()} values differ")


def _check_matrix(
    own: QuantizedWeights, entry: TensorEntry, right: QuantizedWeights | None
) -> WeightFinding | None:
    wanted = None if right is None else right.quantized(entry.name)
    try:
        found = own.quantized(entry.name)
    except (ArtifactError, QuantizeError) as error:
        message = f"cannot be read back: {error}"
        return WeightFinding(name=entry.name, message=message, wanted=wanted)
    if wanted is not None:
        difference = MatrixDifference.between(wanted, found)
        if difference is None:
            message = f"{found.bits} bits in groups of {found.group_size}, not {wanted.bits}"
        elif difference.equal:
            return None
        else:
            message = difference.describe()
        return WeightFinding(name=entry.name, message=message, wanted=wanted, found=found)
    hashes = tensor_sha256(found.codes), tensor_sha256(found.scales)
    parts = [
        part
        for part, has, wants in zip(
            ("codes", "scales"), hashes, (entry.codes_sha256, entry.scales_sha256), strict=True
        )
        if has != wants
    ]
    if not parts:
        return None
    message = f"the SHA-256 of its {' and '.join(parts)} is not the manifest's"
    return WeightFinding(name=entry.name, message=message, found=found)
