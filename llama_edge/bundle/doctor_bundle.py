"""`doctor` on a bundle: the whole contract, on any machine, in seconds, without running it."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from packaging.version import Version

from llama_edge.backends import BACKENDS, TARGETS, get_exporter
from llama_edge.backends.base import WrittenArtifact
from llama_edge.bundle.artifact_contract import (
    check_description,
    check_limits,
    check_placement,
    check_runner_values,
    check_tensor,
    check_tensor_list,
    unquantized_linears,
)
from llama_edge.bundle.contract import check_text
from llama_edge.bundle.describe import describe_artifact
from llama_edge.bundle.examination import Diagnosis, Examination, renderable
from llama_edge.bundle.finding_codes import ContractFinding
from llama_edge.bundle.folder import (
    MAX_MANIFEST_BYTES,
    PARITY_FILE,
    Bundle,
    check_listed,
    check_places,
    check_unchanged,
    check_unlisted,
    tensor_entry,
)
from llama_edge.bundle.licences import missing_notice
from llama_edge.bundle.manifest import MANIFEST_FILE, Manifest, Verdict
from llama_edge.bundle.prompt_state import check_prompt_state, is_listed
from llama_edge.bundle.signing import Trust
from llama_edge.bundle.text_files import (
    check_begin_flag,
    check_begin_tokens,
    check_end_token_files,
    check_special_tokens,
    check_vocabulary_size,
)
from llama_edge.core.errors import (
    ArtifactError,
    MissingComponentError,
    QuantizeError,
)
from llama_edge.core.json_files import read_json_object
from llama_edge.core.progress import Progress
from llama_edge.core.runner_values import RunnerField, RunnerWord
from llama_edge.core.text_assets import TextAssets
from llama_edge.text.contract import rebuild_text_contract
from llama_edge.text.text_assets import TOKENIZER_FILE, read_text_assets
from llama_edge.text.tokenizer import Tokenizer
from llama_edge.text.tool_form import ToolForm

_READABLE: Final = "a model file that can be read"
_NO_TEMPLATE: Final = (
    "there is no chat template: the model completes text only, and the demo apps, which chat, "
    "refuse the bundle (template.missing)"
)


def examine_bundle(folder: Path, key: Ed25519PublicKey | None, progress: Progress) -> Diagnosis:
    """Hold a bundle against its manifest, and the manifest against itself.

    Args:
        folder: The bundle.
        key: The public key that must have signed it; None demands no signature.
        progress: Told of each stage.
    """
    examination = Examination(folder, "bundle", progress)
    trust = Trust(key=key, tell=examination.note)
    bundle = examination.bundle(trust)
    if bundle is not None:
        _examine_contract(examination, bundle)
    return examination.diagnosis()


def examine_before_signing(bundle: Bundle, progress: Progress) -> Diagnosis:
    """As `examine_bundle`, but for the signature, which is about to be made or replaced."""
    examination = Examination(bundle.root, "bundle", progress)
    _examine_contract(examination, bundle)
    return examination.diagnosis()


def _examine_contract(examination: Examination, bundle: Bundle) -> None:
    if not examination.check("places of files", check_places(bundle)):
        return  # nothing outside of the folder is opened
    examination.check("files and hashes", (*check_listed(bundle), *check_unlisted(bundle)))
    examination.check("verdict", _check_verdict(bundle))
    examination.check("context and target", _check_promises(bundle.manifest))
    examination.check("list of weights", check_tensor_list(bundle.manifest))
    notice = missing_notice(bundle.manifest)
    if notice is not None:
        examination.note(notice)
    _examine_text(examination, bundle)
    _examine_artifact(examination, bundle)
    examination.add(*check_unchanged(bundle))


def _check_verdict(bundle: Bundle) -> Iterator[ContractFinding]:
    manifest = bundle.manifest
    if manifest.verdict is Verdict.FAILED:
        yield ContractFinding(
            code="verdict.failed",
            where=f"{MANIFEST_FILE}: verdict",
            expected=Verdict.PASSED.value,
            found=str(manifest.parity.get("reason") or Verdict.FAILED.value),
        )
    try:
        parity = read_json_object(bundle.root / PARITY_FILE, limit=MAX_MANIFEST_BYTES)
        measured = parity.get("passed")
    except ArtifactError as error:
        measured = str(error).replace(f"{bundle.root}/", "")
    summaries = (manifest.parity, manifest.fidelity or {"passed": True})
    claimed = all(summary["passed"] is True for summary in summaries)
    verdict = manifest.verdict is Verdict.PASSED
    for where, found in ((PARITY_FILE, measured), (f"{MANIFEST_FILE}: parity, fidelity", claimed)):
        if found is not verdict:
            yield ContractFinding(
                code="verdict.measurements",
                where=where if where != PARITY_FILE else f"{PARITY_FILE}: passed",
                expected=str(verdict),
                found=str(found),
            )


def _check_promises(manifest: Manifest) -> Iterator[ContractFinding]:
    yield from check_limits(manifest)
    fitting = [(entry.name, form.backend) for entry in TARGETS.values() for form in entry.formats]
    if (manifest.target, manifest.backend) not in fitting:
        known = ", ".join(f"{name} with {backend}" for name, backend in fitting)
        yield ContractFinding(
            code="target.backend",
            where=f"{MANIFEST_FILE}: target, backend",
            expected=known,
            found=f"{manifest.target} with {manifest.backend}",
        )


def _examine_text(examination: Examination, bundle: Bundle) -> None:
    folder, expected = bundle.root, bundle.manifest.text
    with examination.guarded("tokenizer.unreadable", TOKENIZER_FILE, "text files"):
        text = read_text_assets(folder)
        examination.check(
            "end tokens of each file", check_end_token_files(folder, text, expected.eos_token_ids)
        )
        examination.check("special tokens", check_special_tokens(folder, text))
        vocab_size = bundle.manifest.model.config.vocab_size
        examination.check("vocabulary", check_vocabulary_size(text, vocab_size))
        source = text.chat_template
        if source is None:
            examination.note(_NO_TEMPLATE)
        text = renderable(examination, text)
        examination.check(
            "begin tokens",
            (*check_begin_tokens(text), *check_begin_flag(folder, expected.add_bos)),
        )
        found = replace(rebuild_text_contract(text, expected), chat_template=source)
        examination.check(
            "tokenizer and chat template, over the golden texts",
            check_text(expected, found, vocab_size),
        )
        if bundle.manifest.tools is not None and text.chat_template is not None:
            examination.check("how tools are called", _check_tools(bundle.manifest.tools, text))


def _check_tools(expected: ToolForm, text: TextAssets) -> Iterator[ContractFinding]:
    found = Tokenizer(text).tool_form
    if found != expected:
        yield ContractFinding(
            code="template.text",
            where=f"{MANIFEST_FILE}: tools",
            expected=_tools_text(expected),
            found=_tools_text(found),
        )


def _tools_text(form: ToolForm) -> str:
    return ", ".join(f"{name} {value}" for name, value in asdict(form).items())


def expected_values(manifest: Manifest) -> dict[RunnerField, RunnerWord]:
    """What the files of this bundle must tell their runner."""
    config, text, artifact = manifest.model.config, manifest.text, manifest.artifact
    values: dict[RunnerField, RunnerWord] = {
        RunnerField.CACHE_TOKENS: artifact.max_context,
        RunnerField.EOS_TOKEN_IDS: text.eos_token_ids,
        RunnerField.HEAD_DIM: config.head_dim,
        RunnerField.HIDDEN_SIZE: config.hidden_size,
        RunnerField.MAX_CONTEXT: artifact.max_context,
        RunnerField.MAX_PREFILL: artifact.max_prefill,
        RunnerField.NUM_ATTENTION_HEADS: config.num_attention_heads,
        RunnerField.NUM_HIDDEN_LAYERS: config.num_hidden_layers,
        RunnerField.NUM_KEY_VALUE_HEADS: config.num_key_value_heads,
        RunnerField.TEXT_CONTRACT_SHA256: text.sha256(),
        RunnerField.USES_KV_CACHE: 1,
        RunnerField.VOCAB_SIZE: config.vocab_size,
    }
    # A model without BOS has no value of its own that a file could contradict.
    if text.bos_token_id is not None:
        values[RunnerField.BOS_TOKEN_ID] = text.bos_token_id
    return values


def _examine_artifact(examination: Examination, bundle: Bundle) -> None:
    manifest, file = bundle.manifest, bundle.manifest.files[0].path
    if manifest.backend not in BACKENDS:
        return  # the target says so already
    try:
        exporter = get_exporter(manifest.backend)
    except MissingComponentError as error:
        examination.add(_missing(manifest.backend, str(error)))
        return
    examination.check("versions of the runtime", _check_versions(manifest))
    with examination.guarded("artifact.unreadable", file, _READABLE):
        examination.check(
            "what the model tells its runner",
            check_runner_values(exporter.runner_values(bundle.root), expected_values(manifest)),
        )
    with examination.guarded("artifact.unreadable", file, _READABLE):
        written = exporter.open(bundle.root)
        found = describe_artifact(written)
        examination.check(
            "the model's interface and architecture",
            check_description(written.artifact, found, manifest),
        )
        placement = written.placement()
        examination.check("the model's kernels", check_placement(placement, manifest))
        # Where a kernel is not quantized, a weight that has no codes is no damage but a choice.
        lost = "codes.unquantized" if unquantized_linears(placement, manifest) else "codes.missing"
        if is_listed(manifest):
            found_state = check_prompt_state(bundle.root, manifest, written.artifact)
            examination.check("prompt state", found_state)
        examination.check("values and scales of all weights", _check_codes(written, manifest, lost))


def _check_codes(
    written: WrittenArtifact, manifest: Manifest, lost: str
) -> Iterator[ContractFinding]:
    weights, artifact = written.weights(), written.artifact
    file = artifact.files[0]
    listed = {entry.name: entry for entry in manifest.tensors}
    for name in weights.quantized_names():
        if name not in listed:
            continue
        try:
            yield from check_tensor(listed[name], tensor_entry(name, weights.quantized(name)), file)
        except (ArtifactError, QuantizeError) as error:
            yield ContractFinding(
                code=lost,
                where=f"{file}: {name}",
                expected=f"{listed[name].bits}-bit codes and their scales",
                found=str(error).replace(f"{artifact.root}/", ""),
            )


def _missing(backend: str, found: str) -> ContractFinding:
    return ContractFinding(
        code="runtime.missing",
        where=f"{MANIFEST_FILE}: backend",
        expected=f"the packages of {backend}",
        found=found,
    )


def _check_versions(manifest: Manifest) -> Iterator[ContractFinding]:
    """What is installed here must be at least what the bundle was checked with."""
    for name in BACKENDS[manifest.backend].libraries:
        where, wanted = f"{MANIFEST_FILE}: versions.{name}", manifest.versions.get(name)
        try:
            installed = version(name)
            older = wanted is None or Version(installed) < Version(wanted)
        except PackageNotFoundError:
            installed, older = "not installed", True
        except ValueError:  # no version, or one of more digits than Python reads
            older = True
        if older:
            yield ContractFinding(
                code="runtime.version",
                where=where,
                expected=f"{name} {wanted} or newer",
                found=installed,
            )
