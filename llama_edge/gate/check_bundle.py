"""The whole gate again, on a bundle that may have travelled."""

from pathlib import Path

from llama_edge.backends import get_exporter
from llama_edge.bundle.folder import Bundle, compare_tensors, list_tensors, open_bundle
from llama_edge.bundle.full_precision import load_full_precision
from llama_edge.bundle.manifest import Manifest
from llama_edge.bundle.prompt_state import PromptState, read_prompt_state, why_unusable
from llama_edge.bundle.signing import NO_KEY, Trust
from llama_edge.core.artifact import Artifact, KVCacheDtype
from llama_edge.core.errors import CheckFailedError, MissingComponentError, SessionError
from llama_edge.core.progress import Progress
from llama_edge.gate.gate import GateOutcome, GateSubject, run_gate
from llama_edge.gate.prompt_state import StateLimits, StateReport, check_state
from llama_edge.gate.tolerances import Tolerances
from llama_edge.runtimes.child import ChildRuntime
from llama_edge.text.text_assets import read_text_assets
from llama_edge.text.tokenizer import Tokenizer


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
    state = read_prompt_state(folder, manifest, written.artifact)
    text = read_text_assets(folder)
    subject = GateSubject(
        artifact=written.artifact,
        config=manifest.model.config,
        kv_cache=KVCacheDtype(manifest.artifact.kv_cache),
        end_tokens=written.end_tokens(),
        text=text,
        contract=manifest.text,
        reference=weights,
        recipe=manifest.recipe,
        full=load_full_precision(manifest, against),
    )
    outcome = run_gate(subject, progress)
    if state is None:
        return outcome
    try:
        report = prove_state(state, manifest, written.artifact, Tokenizer(text), progress)
    except SessionError as error:
        return GateOutcome.failed(error)
    return outcome.with_prompt_state(report)


def prove_state(
    state: PromptState,
    manifest: Manifest,
    artifact: Artifact,
    tokenizer: Tokenizer,
    progress: Progress,
) -> StateReport:
    """`check_state` on the runtime that the state was made with, where that is installed here.

    Raises:
        CheckFailedError: Logits hold NaN or infinity, or the runtime died.
        SessionError: The runtime refuses the artifact or the state.
    """
    runtime, tolerances = state.origin.runtime, Tolerances()
    not_run = why_unusable(state, runtime, artifact.backend)
    if not_run is None:
        # Of the runtimes that are no gate's, nobody knows the noise.
        limits = StateLimits(mean_kl=None, row_error=tolerances.block)
        if runtime == artifact.backend:
            floor = manifest.parity.get("noise_floor_kl")
            limits = StateLimits.of(artifact.activation, floor, tolerances)
        with ChildRuntime(runtime) as child:
            try:
                return check_state(state, lambda: child.open(artifact), tokenizer, limits, progress)
            except MissingComponentError as error:
                not_run = str(error)
    return StateReport.without_run(state, not_run)
