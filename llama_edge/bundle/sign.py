"""Signing a bundle, and checking who signed it."""

from pathlib import Path

from llama_edge.bundle.doctor_bundle import examine_before_signing
from llama_edge.bundle.examination import Diagnosis, Examination
from llama_edge.bundle.folder import (
    check_listed,
    check_places,
    check_unlisted,
    parse_manifest,
)
from llama_edge.bundle.signing import (
    Signature,
    Trust,
    load_private_key,
    load_public_key,
    sign_manifest,
)
from llama_edge.core.errors import CheckFailedError
from llama_edge.core.progress import Progress, SilentProgress


def sign_bundle(folder: Path, private_key: Path, progress: Progress) -> Signature:
    """Write `manifest.sig` into a bundle in which `doctor` finds nothing.

    Raises:
        ArtifactError: Not a bundle.
        CheckFailedError: `doctor` finds a fault: a file that the manifest does not list, say.
        UsageError: The key cannot be read.
    """
    key = load_private_key(private_key)
    bundle = parse_manifest(folder, None)
    findings = examine_before_signing(bundle, progress).findings
    if any(finding.code == "verdict.failed" for finding in findings):
        raise CheckFailedError(
            f"{folder}: failed its gate and is not signed; parity.json has the reason"
        )
    if findings:
        raise CheckFailedError(
            f"{folder}: is not signed, since `llama-edge doctor` finds {len(findings)} fault(s); "
            f"the first is {findings[0].code}: {findings[0].message}"
        )
    return sign_manifest(folder, bundle.source, key)


def verify_bundle(folder: Path, public_key: Path) -> Diagnosis:
    """The signature, and every file's hash; all of it without opening the model.

    Raises:
        UsageError: The key cannot be read.
    """
    key = load_public_key(public_key)
    examination = Examination(folder, "bundle", SilentProgress())
    bundle = examination.bundle(Trust(key=key))
    if bundle is not None and examination.check("places of files", check_places(bundle)):
        examination.check("files and hashes", (*check_listed(bundle), *check_unlisted(bundle)))
    return examination.diagnosis()
