"""Signed manifests and what can be wrong with a signature."""

import base64
import json
from collections.abc import Iterator
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from llama_edge.bundle.manifest import SIGNATURE_FILE
from llama_edge.bundle.signing import key_id
from tests.app_fixtures.files import Files, compact_json

#: Of fixed bytes: fixtures are the same each time, and nothing about these keys is secret.
_KEY: Final = Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32)
_OTHER: Final = Ed25519PrivateKey.from_private_bytes(bytes([2]) * 32)
#: What the app trusts: 32 bytes, base64.
PUBLIC_KEY: Final = base64.b64encode(
    _KEY.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
).decode()


def signed_files(manifest: bytes) -> Iterator[tuple[str, Files, tuple[str, ...]]]:
    """Names, the files that a good bundle gets besides or instead, and the codes to expect."""

    def signed(**fields: object) -> Files:
        text = base64.b64encode(_KEY.sign(manifest)).decode()
        form = {"algorithm": "ed25519", "format_version": 1, "key_id": key_id(_KEY.public_key())}
        return {SIGNATURE_FILE: compact_json({**form, "signature": text, **fields})}

    foreign = base64.b64encode(_OTHER.sign(manifest)).decode()
    changed = compact_json(json.loads(manifest) | {"versions": {"llama-edge": "changed"}})
    unreadable = ("signature.unreadable",)
    yield "signed", signed(), ()
    yield "signature-missing", {}, ("signature.missing",)
    yield "signed-then-changed", {**signed(), "manifest.json": changed}, ("signature.invalid",)
    yield "signature-of-other", signed(signature=foreign), ("signature.invalid",)
    other_key = signed(key_id=key_id(_OTHER.public_key()))
    yield "signature-other-key", other_key, ("signature.unknown_key",)
    yield "signature-newer", signed(format_version=2), unreadable
    yield "signature-short", signed(signature="QUJD"), unreadable
    yield "signature-no-base64", signed(signature="*"), unreadable
    yield "signature-no-json", {SIGNATURE_FILE: b"-----BEGIN"}, unreadable
