"""Signing a bundle, and checking who signed it."""

from pathlib import Path

from llama_edge.core.errors import CheckFailedError
from llama_edge.core.finding_codes import BreachError
from llama_edge.core.manifest import Verdict
from llama_edge.core.progress import SilentProgress
from llama_edge.core.signing import (
    Signature,
    check_signature,
    load_private_key,
    load_public_key,
    sign_manifest,
)
from llama_edge.export.bundle import (
    check_listed,
    check_places,
    check_unlisted,
    open_bundle,
    parse_manifest,
)
from llama_edge.pipeline.examination import Diagnosis, Examination


def sign_bundle(folder: Path, private_key: Path) -> Signature:
    """Write `manifest.sig` into a whole bundle.

    Raises:
        ArtifactError: Not a bundle, or an unsafe one.
        CheckFailedError: A file is not the manifest's, or the bundle failed its gate.
        UsageError: The key cannot be read.
    """
    key = load_private_key(private_key)
    bundle = open_bundle(folder)
    if bundle.manifest.verdict is Verdict.FAILED:
        raise CheckFailedError(
            f"{folder}: failed its gate and is not signed; parity.json has the reason"
        )
    return sign_manifest(folder, key)


def verify_bundle(folder: Path, public_key: Path) -> Diagnosis:
    """The signature, and every file's hash; all of it without opening the model.

    Raises:
        UsageError: The key cannot be read.
    """
    key = load_public_key(public_key)
    examination = Examination(folder, "bundle", SilentProgress())
    try:
        bundle = parse_manifest(folder)
    except BreachError as error:
        examination.add(error.finding)
        return examination.diagnosis()
    signature = check_signature(folder, key)
    examination.check("signature", () if signature is None else (signature,))
    if examination.check("places of files", check_places(bundle)):
        examination.check("files and hashes", (*check_listed(bundle), *check_unlisted(bundle)))
    return examination.diagnosis()
