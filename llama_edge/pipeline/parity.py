"""The whole gate again, on a bundle that may have travelled."""

from pathlib import Path

from llama_edge.checkpoints import BUILTIN_MODELS, load_checkpoint
from llama_edge.core.errors import CheckFailedError, CheckpointError
from llama_edge.core.manifest import Manifest
from llama_edge.core.progress import Progress
from llama_edge.core.text_assets import read_text_assets
from llama_edge.core.types import Checkpoint
from llama_edge.export import get_exporter
from llama_edge.export.bundle import compare_tensors, list_tensors, open_bundle
from llama_edge.pipeline.gate import GateOutcome, GateSubject, run_gate


def check_bundle(folder: Path, against: str | None, progress: Progress) -> GateOutcome:
    """Hashes, codes, text, blocks and sequences; fidelity where the source model is at hand.

    The reference computes with the codes and norms read out of the artifact: that these are the
    source's is what the hashes say.

    Raises:
        ArtifactError: Not a bundle, or an unsafe one.
        CheckpointError: `against` is not a model of this shape.
    """
    try:
        manifest = open_bundle(folder).manifest
    except CheckFailedError as error:
        return GateOutcome.failed(error)
    exporter = get_exporter(manifest.backend)
    artifact = exporter.read_artifact(folder)
    weights = exporter.read_weights(artifact)
    try:
        compare_tensors(manifest.tensors, list_tensors(weights, progress))
    except CheckFailedError as error:
        return GateOutcome.failed(error)
    subject = GateSubject(
        artifact=artifact,
        end_tokens=exporter.end_tokens(artifact),
        text=read_text_assets(folder),
        contract=manifest.text,
        reference=weights,
        recipe=manifest.recipe,
        full=_full_precision(manifest, against),
    )
    return run_gate(subject, progress)


def _full_precision(manifest: Manifest, against: str | None) -> Checkpoint | None:
    """The model that `against` names, or the built-in one that the manifest names, or none."""
    source = manifest.model.source
    model = against if against is not None else source if source in BUILTIN_MODELS else None
    if model is None:
        return None
    checkpoint = load_checkpoint(model)
    if checkpoint.config != manifest.model.config:
        raise CheckpointError(
            f"{model}: its config is not that of the bundle's source ({source}); "
            "give the model that the bundle was exported from"
        )
    return checkpoint
