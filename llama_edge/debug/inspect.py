"""Codes and scales read back from whatever has been written, with their hashes."""

from dataclasses import dataclass
from pathlib import Path

from llama_edge.backends import BACKENDS, artifact_backend, get_exporter
from llama_edge.bundle.folder import is_bundle, list_tensors, read_manifest
from llama_edge.bundle.manifest import TensorEntry
from llama_edge.bundle.signing import NO_KEY, Trust
from llama_edge.checkpoints import load_checkpoint
from llama_edge.checkpoints.recognise import PARAMS_FILE
from llama_edge.core.artifact import Artifact, Interface, Placement, StoredBytes
from llama_edge.core.errors import ArtifactError
from llama_edge.core.progress import Progress
from llama_edge.formats.quantized_checkpoint import CONFIG_FILE, read_quantized_checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What a file holds; the last four are None where nothing has been lowered."""

    #: "quantized checkpoint", "checkpoint with codes (RECIPE)" or the backend's name
    kind: str
    tensors: tuple[TensorEntry, ...]
    artifact: Artifact | None
    interface: Interface | None
    placement: Placement | None
    storage: tuple[StoredBytes, ...] | None


def inspect(path: Path, progress: Progress, trust: Trust = NO_KEY) -> Inspection:
    """Look into a quantized checkpoint, a `.pte`, an ONNX folder, a bundle or Meta's own codes.

    Raises:
        ArtifactError: It is none of these, or damaged.
        CheckFailedError: A bundle has a file that its manifest does not list, or not the signature
            that `trust` demands.
        CheckpointError: A checkpoint with codes of its own is damaged.
        UsageError: `trust` has a key, and `path` is no bundle.
    """
    if not path.exists():
        raise ArtifactError(f"{path}: there is no such file or folder")
    if not is_bundle(path):
        trust.require_bundle(path)
    if (path / PARAMS_FILE).is_file():
        return _inspect_source(path, progress)
    if (path / CONFIG_FILE).is_file():
        weights = read_quantized_checkpoint(path).weights
        return Inspection(
            kind="quantized checkpoint",
            tensors=list_tensors(weights, progress),
            artifact=None,
            interface=None,
            placement=None,
            storage=None,
        )
    written = get_exporter(_backend(path, trust)).open(path)
    return Inspection(
        kind=written.artifact.backend,
        tensors=list_tensors(written.weights(), progress),
        artifact=written.artifact,
        interface=written.interface(),
        placement=written.placement(),
        storage=written.storage(),
    )


def _inspect_source(path: Path, progress: Progress) -> Inspection:
    """A checkpoint's own codes, with its scales rounded as every backend stores them."""
    codes = load_checkpoint(str(path)).codes
    if codes is None:
        raise ArtifactError(
            f"{path}: a checkpoint of weights, or one whose adapters must be merged; there are no "
            "quantized values before `llama-edge quantize` has written them"
        )
    return Inspection(
        kind=f"checkpoint with codes ({codes.recipe})",
        tensors=list_tensors(codes, progress),
        artifact=None,
        interface=None,
        placement=None,
        storage=None,
    )


def _backend(path: Path, trust: Trust) -> str:
    if not is_bundle(path):
        return artifact_backend(path)
    backend = read_manifest(path, trust).manifest.backend
    if backend not in BACKENDS:
        raise ArtifactError(
            f"{path}: its manifest names the backend {backend!r}; this program knows "
            f"{', '.join(BACKENDS)}"
        )
    return backend
