"""Anything that `diff` opens, as one value."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from llama_edge.backends import SUFFIXES, artifact_backend, get_exporter
from llama_edge.bundle.folder import is_bundle, read_manifest
from llama_edge.bundle.manifest import Manifest
from llama_edge.bundle.signing import NO_KEY, Trust
from llama_edge.checkpoints import load_checkpoint
from llama_edge.checkpoints.recognise import PARAMS_FILE
from llama_edge.core.artifact import Artifact, GraphOperator
from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.errors import ArtifactError, QuantizeError, TokenizerError
from llama_edge.core.model_config import ModelConfig
from llama_edge.core.packing import QuantizedTensor
from llama_edge.core.quantized import QuantizedWeights
from llama_edge.core.text_assets import TextAssets
from llama_edge.core.walk import walk
from llama_edge.formats.quantized_checkpoint import (
    CONFIG_FILE,
    quantized_names,
    read_quantized_checkpoint,
)
from llama_edge.models.weight_names import LM_HEAD
from llama_edge.models.weights import float_shapes
from llama_edge.text.text_assets import read_text_assets


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the two; a part that such a thing does not have is None."""

    kind: str
    config: Mapping[str, Any]
    model: ModelConfig
    #: None for a checkpoint
    backend: str | None
    recipe: Mapping[str, Any] | None
    codes: QuantizedWeights | None
    #: full precision; one of the two is there
    checkpoint: Checkpoint | None
    operators: tuple[GraphOperator, ...] | None
    #: how activations and the cache are kept
    arithmetic: Mapping[str, Any] | None
    text: TextAssets | None
    metadata: Mapping[str, Any] | None
    files: Mapping[str, int]

    def matrix_names(self) -> tuple[str, ...]:
        """Matrices that can be quantized; a tied head is the embedding."""
        names = quantized_names(self.model)
        return (
            names
            if not self.model.tie_word_embeddings
            else tuple(name for name in names if name != LM_HEAD)
        )

    def float_names(self) -> tuple[str, ...]:
        """Norms, and a head's rotation."""
        return tuple(float_shapes(self.model))

    def matrix(self, name: str) -> QuantizedTensor | Tensor | str | None:
        """One matrix; why it cannot be read; None if this model has none of that name."""
        if name not in self.matrix_names():
            return None
        try:
            if self.codes is not None:
                return self.codes.quantized(name)
            assert self.checkpoint is not None
            return self.checkpoint.weights.read(name)
        except (ArtifactError, QuantizeError) as error:
            return f"cannot be read: {error}"

    def vector(self, name: str) -> Tensor | None:
        """One weight that stays float32; None if this model has none of that name."""
        if name not in self.float_names():
            return None
        if self.codes is not None:
            return self.codes.vector(name)
        assert self.checkpoint is not None
        return self.checkpoint.weights.read(name)


def open_side(name: str, trust: Trust = NO_KEY) -> Side:
    """A bundle, an artifact, a quantized checkpoint, or a checkpoint in any of its forms.

    Raises:
        LlamaEdgeError: What the reader says.
    """
    path = Path(name)
    if is_bundle(path):
        manifest = read_manifest(path, trust).manifest
        return _artifact(path, manifest.backend, manifest)
    if (path / CONFIG_FILE).is_file():
        return _quantized(path)
    if _holds_artifact(path):
        return _artifact(path, artifact_backend(path), None)
    return _checkpoint(name)


def _holds_artifact(path: Path) -> bool:
    if path.suffix in SUFFIXES and path.exists():
        return True
    is_plain = path.is_dir() and not (path / PARAMS_FILE).is_file()
    return is_plain and any(Path(each.name).suffix in SUFFIXES for each in walk(path, depth=1))


def _files(path: Path) -> dict[str, int]:
    if path.is_file():
        return {path.name: path.stat().st_size}
    # Links are followed, since a checkpoint from the Hugging Face cache is made of them.
    names = (entry.name for entry in walk(path) if not entry.is_folder)
    found = {name: path / name for name in sorted(names)}
    return {name: file.stat().st_size for name, file in found.items() if file.is_file()}


def _artifact(path: Path, backend: str, manifest: Manifest | None) -> Side:
    written = get_exporter(backend).open(path)
    artifact = written.artifact
    return Side(
        kind=f"{'artifact' if manifest is None else 'bundle'} ({backend}) {path}",
        config=artifact.config.to_json(),
        model=artifact.config,
        backend=backend,
        recipe=None if manifest is None else manifest.recipe.to_json(),
        codes=written.weights(),
        checkpoint=None,
        operators=written.operators(),
        arithmetic={
            "activation": artifact.activation.value,
            "kv_cache": artifact.kv_cache.value,
            "max_context": artifact.max_context,
            "max_prefill": artifact.max_prefill,
        },
        text=_text(artifact),
        metadata=None if manifest is None else _metadata(manifest),
        files=_files(path),
    )


def _metadata(manifest: Manifest) -> dict[str, Any]:
    value = manifest.to_json()
    kept = ("model", "target", "backend", "verdict", "calibration", "versions", "placement")
    return {name: value[name] for name in kept} | {"interface": value["artifact"]["interface"]}


def _text(artifact: Artifact) -> TextAssets | None:
    try:
        return read_text_assets(artifact.root)
    except (ArtifactError, TokenizerError):
        return None  # a bare file has none next to it


def _quantized(path: Path) -> Side:
    found = read_quantized_checkpoint(path)
    return Side(
        kind=f"quantized checkpoint {path}",
        config=found.config.to_json(),
        model=found.config,
        backend=None,
        recipe=found.recipe.to_json(),
        codes=found.weights,
        checkpoint=None,
        operators=None,
        arithmetic=None,
        text=found.text,
        metadata={"source_sha256": found.source_sha256, "note": found.note},
        files=_files(path),
    )


def _checkpoint(name: str) -> Side:
    found = load_checkpoint(name)
    path = Path(name)
    return Side(
        kind=f"checkpoint {name}",
        config=found.config.to_json(),
        model=found.config,
        backend=None,
        recipe=None if found.codes is None else {"name": found.codes.recipe},
        codes=None,
        checkpoint=found,
        operators=None,
        arithmetic=None,
        text=found.text,
        metadata={"precision": found.precision, "note": found.note},
        files=_files(path) if path.exists() else {},
    )
