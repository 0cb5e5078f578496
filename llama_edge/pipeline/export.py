"""The whole way: load, quantize, lower, read back, run, and keep the bundle if every gate holds."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llama_edge.core.errors import CheckFailedError
from llama_edge.core.files import output_folder, require_free_space, write_json
from llama_edge.core.manifest import Manifest, Model, TensorEntry, Verdict
from llama_edge.core.progress import Progress
from llama_edge.core.text_assets import read_text_assets, write_text_assets
from llama_edge.core.text_contract import build_text_contract
from llama_edge.core.types import (
    Artifact,
    Checkpoint,
    Device,
    KVCacheDtype,
    QuantizedCheckpoint,
)
from llama_edge.export import Format, get_exporter, get_format, get_target
from llama_edge.export.base import Exporter, LowerOptions
from llama_edge.export.bundle import (
    PARITY_FILE,
    Bundle,
    compare_tensors,
    list_files,
    list_tensors,
    write_manifest,
)
from llama_edge.pipeline.describe import describe_artifact, library_versions
from llama_edge.pipeline.gate import GateOutcome, GateSubject, run_gate
from llama_edge.pipeline.given_codes import open_model
from llama_edge.pipeline.names import short_name, source_name
from llama_edge.pipeline.quantize import (
    check_calibration,
    check_learning_device,
    quantized_size_bytes,
    require_absent,
)
from llama_edge.pipeline.quantized import quantize_with_cache
from llama_edge.runtimes import get_runtime


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRequest:
    """What to export, for where, and how."""

    model: str
    target: str
    #: a backend of the target; None: its first
    format: str | None = None
    #: None: the default one, or what a checkpoint that came with codes is
    recipe: str | None = None
    #: text files; empty lets the model write its own, where the recipe needs any
    calibration: tuple[Path, ...] = ()
    #: None: `bundles/MODEL-TARGET` under the current folder, and `-FORMAT` for another than the
    #: target's first
    out: Path | None = None
    options: LowerOptions = LowerOptions()  # noqa: RUF009 (frozen)
    force: bool = False
    #: where rotations are learned
    device: Device = Device.CPU


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lowered:
    """What lies in the bundle's folder before anything has run."""

    source: QuantizedCheckpoint
    exporter: Exporter
    artifact: Artifact
    tensors: tuple[TensorEntry, ...]


def export_model(request: ExportRequest, progress: Progress) -> Bundle:
    """Write a bundle whose files were run and found right.

    Raises:
        CheckFailedError: A gate failed; what was written lies beside the target as `OUT.failed`.
        UnknownNameError: No such target or recipe.
        UsageError: The target has no such format.
        LlamaEdgeError: What a reader, a backend or the disk says.
    """
    form = get_format(request.target, request.format)
    exporter = get_exporter(form.backend)
    get_runtime(form.backend)  # a missing package is worth knowing before the work
    out = request.out or _default_place(request, form)
    require_absent(out, force=request.force)
    checkpoint, recipe = open_model(request.model, request.recipe)
    check_calibration(recipe, request.calibration)
    check_learning_device(recipe, request.device)
    exporter.requires(checkpoint.config, recipe, request.options)
    # The quantized checkpoint and the artifact, which holds the same codes.
    require_free_space(out, 2 * quantized_size_bytes(checkpoint, recipe))
    with output_folder(out, force=request.force) as folder, _scratch_beside(folder) as scratch:
        quantized = quantize_with_cache(
            checkpoint, recipe, request.calibration, scratch, progress, request.device
        )
        lowered = _lower(quantized, exporter, request.options, folder, progress)
        kv_cache = request.options.kv_cache or form.kv_cache
        outcome = _gate(lowered, checkpoint, kv_cache, progress)
        bundle = _write(lowered, request, outcome)
        if not outcome.passed:
            raise CheckFailedError(_keep_failed(folder, out, outcome))
    return Bundle(root=out, manifest=bundle.manifest)


def _default_place(request: ExportRequest, form: Format) -> Path:
    name = f"{short_name(request.model)}-{request.target}"
    is_first = form is get_target(request.target).formats[0]
    return Path("bundles") / (name if is_first else f"{name}-{form.backend}")


@contextmanager
def _scratch_beside(folder: Path) -> Iterator[Path]:
    """A folder on the same disk for what no bundle holds."""
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}.scratch.", dir=folder.parent) as name:
        yield Path(name)


def _lower(
    quantized: QuantizedCheckpoint,
    exporter: Exporter,
    options: LowerOptions,
    folder: Path,
    progress: Progress,
) -> _Lowered:
    exporter.lower(quantized, folder, options, progress)
    write_text_assets(folder, quantized.text)
    artifact = exporter.read_artifact(folder)
    tensors = list_tensors(exporter.read_weights(artifact), progress)
    return _Lowered(source=quantized, exporter=exporter, artifact=artifact, tensors=tensors)


def _gate(
    lowered: _Lowered, checkpoint: Checkpoint, kv_cache: KVCacheDtype, progress: Progress
) -> GateOutcome:
    source = lowered.source
    try:
        given = list_tensors(source.weights, progress, "hash the codes given")
        compare_tensors(given, lowered.tensors)
    except CheckFailedError as error:
        return GateOutcome.failed(error)
    subject = GateSubject(
        artifact=lowered.artifact,
        config=source.config,
        kv_cache=kv_cache,
        end_tokens=lowered.exporter.end_tokens(lowered.artifact),
        reference=source.weights,
        recipe=source.recipe,
        text=read_text_assets(lowered.artifact.root),
        contract=build_text_contract(source.text),
        full=checkpoint,
    )
    return run_gate(subject, progress)


def _write(lowered: _Lowered, request: ExportRequest, outcome: GateOutcome) -> Bundle:
    folder, quantized = lowered.artifact.root, lowered.source
    write_json(folder / PARITY_FILE, outcome.to_json())
    manifest = Manifest(
        verdict=Verdict.PASSED if outcome.passed else Verdict.FAILED,
        model=Model(
            source=source_name(request.model),
            source_sha256=quantized.source_sha256,
            config=quantized.config,
            note=quantized.note,
        ),
        recipe=quantized.recipe,
        calibration=quantized.calibration,
        scale_rounding=quantized.scale_rounding,
        mixed_precision=quantized.mixed_precision,
        target=request.target,
        backend=lowered.artifact.backend,
        files=list_files(folder, lowered.artifact.files),
        artifact=describe_artifact(lowered.exporter, lowered.artifact),
        text=build_text_contract(quantized.text),
        tensors=lowered.tensors,
        placement=lowered.exporter.placement(lowered.artifact),
        parity=outcome.parity_summary(),
        fidelity=outcome.fidelity_summary(),
        versions=library_versions(lowered.artifact.backend),
    )
    return write_manifest(folder, manifest)


def _keep_failed(folder: Path, out: Path, outcome: GateOutcome) -> str:
    """Move the failed bundle beside its place; the message says where and why."""
    failed = out.with_name(f"{out.name}.failed")
    shutil.rmtree(failed, ignore_errors=True)
    folder.chmod(0o755)
    folder.rename(failed)
    return (
        f"{out}: not put in place, because {outcome.reason}; what was written lies in {failed}, "
        f"with the measurements in {PARITY_FILE}"
    )
