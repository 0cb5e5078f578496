"""The whole way: load, quantize, lower, read back, run, and keep the bundle if every gate holds."""

from dataclasses import dataclass, replace
from pathlib import Path

from llama_edge.backends import Format, get_exporter, get_format, get_target
from llama_edge.backends.base import Exporter, LowerOptions, WrittenArtifact
from llama_edge.bundle.describe import describe_artifact, library_versions
from llama_edge.bundle.doctor_foreign import examine_checkpoint
from llama_edge.bundle.examination import Examination
from llama_edge.bundle.folder import (
    PARITY_FILE,
    Bundle,
    compare_tensors,
    list_files,
    list_tensors,
    write_manifest,
)
from llama_edge.bundle.licences import copy_licences, write_notice
from llama_edge.bundle.manifest import Manifest, Model, TensorEntry, Verdict
from llama_edge.checkpoints import split_adapters
from llama_edge.core.artifact import KVCacheDtype
from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.errors import CheckFailedError, OutputError
from llama_edge.core.files import (
    output_folder,
    replace_folder,
    require_free_space,
    require_place,
    write_json,
)
from llama_edge.core.progress import Job, Progress, SilentProgress
from llama_edge.core.quantized import QuantizedCheckpoint
from llama_edge.core.recipe import Device, Recipe
from llama_edge.core.text_assets import TextAssets
from llama_edge.formats.quantized_checkpoint import read_quantized_checkpoint
from llama_edge.gate.gate import GateOutcome, GateSubject, run_gate
from llama_edge.gate.prompts import ALL_PROMPTS, PromptPlan, check_context
from llama_edge.pipeline.given_codes import open_model
from llama_edge.pipeline.quantize import (
    check_request,
    quantized_size_bytes,
    short_name,
    source_name,
    with_seed,
)
from llama_edge.pipeline.quantized import quantize_with_cache
from llama_edge.pipeline.stages import QUANTIZED, Stages, export_key, lowered_stage
from llama_edge.pipeline.suite import SUITE_FILE, OpenSuite
from llama_edge.pipeline.text_cache import calibration_texts
from llama_edge.quantize.stage import hash_weights
from llama_edge.report.write import with_report
from llama_edge.runtimes import get_runtime
from llama_edge.runtimes.child import ChildRuntime
from llama_edge.suites.request import SuiteRequest
from llama_edge.suites.scores import SuiteReport
from llama_edge.text.contract import build_text_contract
from llama_edge.text.text_assets import read_text_assets, write_text_assets
from llama_edge.text.tokenizer import Tokenizer
from llama_edge.text.tool_form import ToolForm


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRequest:
    """What to export, for where, and how."""

    model: str
    target: str
    #: a backend of the target; None: its first
    format: str | None = None
    #: a name or a file; None: the default one, or what a checkpoint that came with codes is
    recipe: str | None = None
    #: None: the recipe's own
    seed: int | None = None
    #: text files; empty lets the model write its own, where the recipe needs any
    calibration: tuple[Path, ...] = ()
    #: keeps the text that the model wrote; instead of `calibration`
    text_cache: Path | None = None
    #: None: `bundles/MODEL-TARGET` under the current folder, and `-FORMAT` for another than the
    #: target's first
    out: Path | None = None
    options: LowerOptions = LowerOptions()  # noqa: RUF009 (frozen)
    force: bool = False
    #: where it calibrates
    device: Device = Device.CPU
    #: what else the bundle must reach; None: nothing
    suite: SuiteRequest | None = None
    #: what the gate runs
    prompts: PromptPlan = ALL_PROMPTS


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lowered:
    """What is in the bundle's folder before anything has run."""

    source: QuantizedCheckpoint
    written: WrittenArtifact
    tensors: tuple[TensorEntry, ...]


def export_model(request: ExportRequest, progress: Progress) -> Bundle:
    """Write a bundle whose files were run and found right.

    Raises:
        CheckFailedError: A gate failed; what was written is next to the target as `OUT.failed`.
        ConfigError: The model, the recipe, the context or the gate's prompts do not go together.
        UnknownNameError: No such target or recipe.
        UsageError: The target has no such format, or an option would not be used.
        LlamaEdgeError: What a reader, a backend or the disk says.
    """
    form = get_format(request.target, request.format)
    exporter = get_exporter(form.backend)
    get_runtime(form.backend)  # a missing package is worth knowing before the work
    out = request.out or _default_place(request, form)
    require_place(out, force=request.force)
    _require_failed_place(out)
    texts = calibration_texts(request.calibration, request.text_cache)
    checkpoint, recipe = open_model(request.model, request.recipe)
    recipe = with_seed(recipe, request.seed, texts)
    check_request(checkpoint, recipe, texts, request.device)
    exporter.check_supported(checkpoint.config, recipe, request.options)
    suite = None if request.suite is None else OpenSuite.of(request.suite)
    warnings = _check_text(checkpoint, request, progress)
    if suite is not None:
        suite.encode(checkpoint.text, request.options.context_for(checkpoint.config))
    # The quantized checkpoint and the artifact, which holds the same codes.
    require_free_space(out, 2 * quantized_size_bytes(checkpoint, recipe))
    progress.expect(
        Job(
            config=checkpoint.config,
            recipe=recipe,
            backend=form.backend,
            besides=None if request.suite is None else "the suite",
        )
    )
    key = export_key(checkpoint, recipe, form.backend, request.options)
    with output_folder(out, force=request.force) as folder:
        stages = Stages(folder.parent, key, progress)
        quantized = _quantize(checkpoint, recipe, request, stages, progress)
        lowered = _lower(quantized, exporter, request.options, stages, progress)
        kv_cache = request.options.kv_cache or form.kv_cache
        outcome = _gate(lowered, checkpoint, kv_cache, request.prompts, progress)
        scores = None
        if suite is not None and outcome.passed:
            scores = _measure_suite(suite, lowered, checkpoint, progress)
            outcome = _judged(outcome, scores)
        lowered.written.artifact.root.replace(folder)
        moved = replace(lowered, written=exporter.open(folder))
        _copy_licences(request.model, checkpoint, folder)
        if scores is not None:
            write_json(folder / SUITE_FILE, scores.to_json())
        bundle = _write(moved, request, outcome, warnings)
        if not outcome.passed:
            raise CheckFailedError(_keep_failed(folder, out, outcome))
    return Bundle(root=out, manifest=bundle.manifest, source=bundle.source)


def _check_text(
    checkpoint: Checkpoint, request: ExportRequest, progress: Progress
) -> tuple[str, ...]:
    """What the bundle says of its text, and what the gate will run, can both be made.

    Returns:
        What is unusual about the checkpoint's text, and what `doctor` finds in its files. None of
        it makes the bundle wrong; programs that read the source's files may go wrong by it.
    """
    build_text_contract(checkpoint.text)
    max_context = request.options.context_for(checkpoint.config)
    check_context(Tokenizer(checkpoint.text), max_context, request.prompts)
    found: tuple[str, ...] = ()
    if checkpoint.folder is not None:
        examination = Examination(checkpoint.folder, "checkpoint", SilentProgress())
        examine_checkpoint(examination, checkpoint.folder)
        found = tuple(
            f"the checkpoint's {finding.message}" for finding in examination.diagnosis().findings
        )
    warnings = (*checkpoint.text.warnings, *found)
    for warning in warnings:
        progress.remark(f"warning: {warning}")
    return warnings


def _default_place(request: ExportRequest, form: Format) -> Path:
    name = f"{short_name(request.model)}-{request.target}"
    is_first = form is get_target(request.target).formats[0]
    return Path("bundles") / (name if is_first else f"{name}-{form.backend}")


def _quantize(
    checkpoint: Checkpoint,
    recipe: Recipe,
    request: ExportRequest,
    stages: Stages,
    progress: Progress,
) -> QuantizedCheckpoint:
    """From the cache, from what an interrupted run of this export had finished, or now."""
    kept = stages.finished(QUANTIZED)
    if kept is not None:
        found = read_quantized_checkpoint(kept)
        if found.source_sha256 == hash_weights(checkpoint.weights):
            return replace(found, text=checkpoint.text)
        stages.forget()
    scratch = stages.begin(QUANTIZED)
    texts = calibration_texts(request.calibration, request.text_cache)
    found = quantize_with_cache(checkpoint, recipe, texts, scratch, progress, request.device)
    if found.root == scratch:
        return read_quantized_checkpoint(stages.finish(QUANTIZED))
    return found


def _lower(
    quantized: QuantizedCheckpoint,
    exporter: Exporter,
    options: LowerOptions,
    stages: Stages,
    progress: Progress,
) -> _Lowered:
    stage = lowered_stage(quantized)
    folder = stages.finished(stage)
    if folder is None:
        unfinished = stages.begin(stage)
        exporter.lower(quantized, unfinished, options, progress)
        write_text_assets(unfinished, quantized.text)
        folder = stages.finish(stage)
    written = exporter.open(folder)
    tensors = list_tensors(written.weights(), progress)
    return _Lowered(source=quantized, written=written, tensors=tensors)


def _gate(
    lowered: _Lowered,
    checkpoint: Checkpoint,
    kv_cache: KVCacheDtype,
    prompts: PromptPlan,
    progress: Progress,
) -> GateOutcome:
    source, written = lowered.source, lowered.written
    try:
        given = list_tensors(source.weights, progress, "hash the quantized values")
        compare_tensors(given, lowered.tensors)
    except CheckFailedError as error:
        return GateOutcome.failed(error)
    subject = GateSubject(
        artifact=written.artifact,
        config=source.config,
        kv_cache=kv_cache,
        end_tokens=written.end_tokens(),
        reference=source.weights,
        recipe=source.recipe,
        text=read_text_assets(written.artifact.root),
        contract=build_text_contract(source.text),
        full=checkpoint,
        prompts=prompts,
    )
    return run_gate(subject, progress)


def _measure_suite(
    suite: OpenSuite, lowered: _Lowered, checkpoint: Checkpoint, progress: Progress
) -> SuiteReport:
    artifact = lowered.written.artifact
    with ChildRuntime(artifact.backend).open(artifact) as session:
        return suite.measure(session, read_text_assets(artifact.root), checkpoint, progress)


def _judged(outcome: GateOutcome, scores: SuiteReport) -> GateOutcome:
    """What the suite missed fails the bundle as the gate does."""
    if scores.passed:
        return outcome
    more = f" (and {len(scores.missed) - 1} more)" if len(scores.missed) > 1 else ""
    return replace(outcome, reason=f"suite {scores.suite}: {scores.missed[0]}{more}")


def _write(
    lowered: _Lowered, request: ExportRequest, outcome: GateOutcome, warnings: tuple[str, ...]
) -> Bundle:
    written, quantized = lowered.written, lowered.source
    folder = written.artifact.root
    measured = outcome.to_json()
    write_json(folder / PARITY_FILE, measured)
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
        backend=written.artifact.backend,
        files=list_files(folder, written.artifact.files),
        artifact=describe_artifact(written),
        text=build_text_contract(quantized.text),
        tensors=lowered.tensors,
        placement=written.placement(),
        parity=outcome.parity_summary(),
        fidelity=outcome.fidelity_summary(),
        versions=library_versions(written.artifact.backend),
        warnings=warnings,
        tools=_tool_form(quantized.text),
    )
    return write_manifest(folder, with_report(folder, manifest, measured))


def _tool_form(text: TextAssets) -> ToolForm | None:
    return None if text.chat_template is None else Tokenizer(text).tool_form


def _copy_licences(model: str, checkpoint: Checkpoint, folder: Path) -> None:
    base = Path(split_adapters(model)[0])
    source = base if base.is_dir() else checkpoint.folder
    if source is not None:
        copy_licences(source, folder)
    write_notice(source_name(model), folder)


def _failed_place(out: Path) -> Path:
    """Where the bundle goes if the gate refuses it, in the place of one that it refused before."""
    return out.with_name(f"{out.name}.failed")


def _require_failed_place(out: Path) -> None:
    try:
        require_place(_failed_place(out), force=True)
    except OutputError as error:
        raise OutputError(f"{error} (a bundle that the gate refuses would be put there)") from error


def _keep_failed(folder: Path, out: Path, outcome: GateOutcome) -> str:
    """Move the failed bundle next to its place; the message says where and why."""
    failed = _failed_place(out)
    replace_folder(folder, failed)
    return (
        f"{out}: not put in place, because {outcome.reason}; what was written is in {failed}, "
        f"with the measurements in {PARITY_FILE}"
    )
