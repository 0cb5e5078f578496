"""The whole gate again, on a bundle that may have travelled."""

from pathlib import Path

from llama_edge.backends import get_exporter
from llama_edge.bundle.folder import Bundle, compare_tensors, list_tensors, open_bundle
from llama_edge.bundle.full_precision import load_full_precision
from llama_edge.bundle.signing import NO_KEY, Trust
from llama_edge.core.artifact import KVCacheDtype
from llama_edge.core.errors import CheckFailedError
from llama_edge.core.progress import Progress
from llama_edge.gate.gate import GateOutcome, GateSubject, run_gate
from llama_edge.text.text_assets import read_text_assets


def check_bundle(
    folder: Path, against: str | None, progress: Progress, trust: Trust = NO_KEY
) -> GateOutcome:
    """Hashes, codes, text, blocks and sequences; fidelity where the source model is available.

    The reference computes with the codes and norms read out of the artifact: that these are the
    source's is what the hashes say.

    Raises:
        ArtifactError: Not a bundle, or an unsafe one.
        CheckpointError: `against` is not a model of this shape.
    """
    try:
        bundle = open_bundle(folder, trust)
        outcome = _run(bundle, against, progress)
        bundle.require_unchanged()
    except CheckFailedError as error:
        return GateOutcome.failed(error)
    return outcome


def _run(bundle: Bundle, against: str | None, progress: Progress) -> GateOutcome:
    folder, manifest = bundle.root, bundle.manifest
    exporter = get_exporter(manifest.backend)
    written = exporter.open(folder)
    weights = written.weights()
    compare_tensors(manifest.tensors, list_tensors(weights, progress))
    subject = GateSubject(
        artifact=written.artifact,
        config=manifest.model.config,
        kv_cache=KVCacheDtype(manifest.artifact.kv_cache),
        end_tokens=written.end_tokens(),
        text=read_text_assets(folder),
        contract=manifest.text,
        reference=weights,
        recipe=manifest.recipe,
        full=load_full_precision(manifest, against),
    )
    return run_gate(subject, progress)
