"""Puts the KV cache of a fixed system prompt into a bundle, and takes it out again."""

import hashlib
import os
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

from llama_edge.backends import get_exporter
from llama_edge.bundle.finding_codes import ContractCheckError, ContractViolationError
from llama_edge.bundle.folder import (
    Bundle,
    check_listed,
    check_places,
    check_unlisted,
    parse_manifest,
    write_manifest,
)
from llama_edge.bundle.manifest import SIGNATURE_FILE, FileEntry, Manifest, Verdict
from llama_edge.bundle.prompt_state import (
    MAX_SYSTEM_BYTES,
    STATE_FILE,
    Origin,
    PromptState,
    artifact_sha256,
    is_listed,
    is_own,
    read_prompt_state,
    runtime_version,
    text_sha256,
    write_prompt_state,
)
from llama_edge.bundle.session import open_session
from llama_edge.bundle.sign import sign_bundle
from llama_edge.bundle.signing import NO_KEY, Trust, load_private_key
from llama_edge.core.artifact import Artifact
from llama_edge.core.errors import CheckFailedError, OutputError, UsageError
from llama_edge.core.files import explained, remove_file, write_bytes
from llama_edge.core.progress import Progress
from llama_edge.gate.check_bundle import prove_state
from llama_edge.gate.prompt_state import StateReport
from llama_edge.report.write import REPORT_FILE, rebuild_report
from llama_edge.runtimes import choose_runtime
from llama_edge.text.chat_template import REFERENCE_DATE
from llama_edge.text.prompt_prefix import depends_on_day, system_prefix
from llama_edge.text.text_assets import read_text_assets
from llama_edge.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmRequest:
    """Which system prompt is to be stored, and how."""

    system: str
    #: what the chat template is told, where it writes the current day
    day: date | None = None
    #: None takes the one that the gate uses
    runtime: str | None = None
    #: a private key's file, with which the bundle is signed afterwards
    key: Path | None = None

    def __post_init__(self) -> None:
        if not self.system.strip():
            raise UsageError("the system prompt is empty; there is nothing to store")
        size = len(self.system.encode())
        if size > MAX_SYSTEM_BYTES:
            raise UsageError(
                f"the system prompt has {size} bytes; at most {MAX_SYSTEM_BYTES} are taken"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmedBundle:
    """What was stored."""

    root: Path
    manifest: Manifest
    tokens: int
    #: of the file
    size_bytes: int
    #: that the template was told; None: it writes none
    day: date | None
    report: StateReport


def warm_bundle(
    folder: Path, request: WarmRequest, progress: Progress, trust: Trust = NO_KEY
) -> WarmedBundle:
    """Read a system prompt, prove that its state can be restored, and store it in the bundle.

    Args:
        folder: The bundle; an earlier state in it is replaced.
        request: What to store.
        progress: Told of each stage.
        trust: Whose signature the bundle must have.

    Raises:
        ArtifactError: Not a bundle, or an unsafe one.
        CheckFailedError: A file is not what the manifest says; or the bundle failed its gate; or
            the state, restored, does not give the logits of a prompt that was read.
        OutputError: A file in the state's place is not ours, or it cannot be written.
        TokenizerError: The bundle has no chat template, or one that takes no system prompt.
        UsageError: The bundle is signed and there is no key; or the template writes the current
            day and `request` has none; or the prompt leaves no room in the context; or the runtime
            is another backend's.
        SessionError: The runtime does not give out its cache.
        RuntimeCrashError: It died or hung.
    """
    bundle = _open(folder, request.key, trust)
    if bundle.manifest.verdict is Verdict.FAILED:
        raise CheckFailedError(
            f"{folder}: failed its gate; parity.json has the reason. Export the model again"
        )
    artifact = get_exporter(bundle.manifest.backend).open(folder).artifact
    tokenizer = Tokenizer(read_text_assets(folder))
    made = _read(bundle, artifact, tokenizer, request, progress)
    with TemporaryDirectory() as place:
        path = Path(place, STATE_FILE)
        with explained(path):
            write_prompt_state(path, made)
        data = path.read_bytes()
        sha256 = hashlib.sha256(data).hexdigest()
        entry = FileEntry(path=STATE_FILE, size_bytes=len(data), sha256=sha256)
        manifest = replace(bundle.manifest, files=(*bundle.manifest.files, entry))
        stored = read_prompt_state(path.parent, manifest, artifact)
    assert stored is not None, "the manifest lists it"
    report = prove_state(stored, manifest, artifact, tokenizer, progress)
    if report.findings:
        raise CheckFailedError(
            f"{folder}: the state is not stored: {report.findings[0].where}: "
            f"{report.findings[0].message}"
        )
    bundle.require_unchanged()
    with explained(folder / STATE_FILE):
        write_bytes(folder / STATE_FILE, data)
    return WarmedBundle(
        root=folder,
        manifest=_rewrite(folder, manifest, request.key, progress),
        tokens=len(stored.tokens),
        size_bytes=len(data),
        day=stored.origin.day,
        report=report,
    )


def remove_state(
    folder: Path, key: Path | None, progress: Progress, trust: Trust = NO_KEY
) -> Manifest:
    """Take the state out of a bundle.

    Args:
        folder: The bundle; all else in it must be what its manifest says.
        key: A private key's file, with which the bundle is signed afterwards.
        progress: Told of each stage.
        trust: Whose signature the bundle must have.

    Raises:
        ArtifactError: Not a bundle, or an unsafe one.
        CheckFailedError: A file is not what the manifest says.
        OutputError: The file is not ours, or cannot be removed.
        UsageError: There is none; or the bundle is signed and there is no key.
    """
    bundle = _open(folder, key, trust, must_have=True)
    with explained(folder / STATE_FILE):
        remove_file(folder / STATE_FILE)
    return _rewrite(folder, bundle.manifest, key, progress)


def _open(folder: Path, key: Path | None, trust: Trust, *, must_have: bool = False) -> Bundle:
    """The bundle without its state, which may be damaged or half put in place."""
    is_signed = os.path.lexists(folder / SIGNATURE_FILE)
    if is_signed and key is None:
        raise UsageError(
            f"{folder}: is signed, and its signature would not be that of the new manifest: give "
            "the private key with --key to sign it again, or remove manifest.sig yourself first"
        )
    if is_signed and key is not None:
        trust = Trust(key=load_private_key(key).public_key())
    bundle = parse_manifest(folder, trust)
    for finding in check_places(bundle):
        raise ContractViolationError(finding, folder / finding.where)
    is_there = os.path.lexists(folder / STATE_FILE)
    if must_have and not is_there and not is_listed(bundle.manifest):
        raise UsageError(f"{folder}: has no prompt state")
    if is_there and not is_own(folder):
        raise OutputError(
            f"{folder / STATE_FILE}: is no prompt state of llama-edge, so it is neither replaced "
            "nor removed; move it away"
        )
    files = tuple(entry for entry in bundle.manifest.files if entry.path != STATE_FILE)
    bundle = replace(bundle, manifest=replace(bundle.manifest, files=files))
    others = (finding for finding in check_unlisted(bundle) if finding.where != STATE_FILE)
    for finding in (*others, *check_listed(bundle)):
        raise ContractCheckError(finding, folder / finding.where)
    return bundle


def _read(
    bundle: Bundle,
    artifact: Artifact,
    tokenizer: Tokenizer,
    request: WarmRequest,
    progress: Progress,
) -> PromptState:
    manifest = bundle.manifest
    runtime = choose_runtime(artifact.backend, request.runtime)
    has_day = depends_on_day(tokenizer, request.system)
    day = request.day if has_day else None
    if has_day and day is None:
        raise UsageError(
            "the chat template writes the current day next to the system prompt, so that its state "
            "is of one day: name it with --date YYYY-MM-DD. `run` and `chat` then tell the "
            "template that day wherever they use this system prompt"
        )
    tokens = system_prefix(tokenizer, request.system, day or REFERENCE_DATE)
    if len(tokens) + 1 >= artifact.max_context:
        raise UsageError(
            f"the system prompt has {len(tokens)} tokens with the chat template, and the context "
            f"{artifact.max_context}: no question and answer would fit; shorten it, or export with "
            "a larger --max-context"
        )
    progress.start("prompt state: read the prompt", 1)
    with open_session(bundle, artifact, runtime) as session:
        session.prefill(tokens)
        cache = session.save()
    progress.advance()
    return PromptState(
        origin=Origin(
            artifact_sha256=artifact_sha256(manifest, artifact),
            text_sha256=text_sha256(manifest),
            runtime=runtime,
            runtime_version=runtime_version(artifact.backend),
            max_context=artifact.max_context,
            system=request.system,
            day=day,
        ),
        tokens=tokens,
        cache=cache,
    )


def _rewrite(folder: Path, manifest: Manifest, key: Path | None, progress: Progress) -> Manifest:
    """The manifest, the page that shows the bundle's size, and the signature."""
    with explained(folder):
        write_manifest(folder, manifest)
    if any(entry.path == REPORT_FILE for entry in manifest.files):
        # An old signature is not looked at: it is that of the old manifest.
        rebuild_report(folder)
    if key is not None:
        sign_bundle(folder, key, progress)
    return parse_manifest(folder).manifest
