"""A bundle's signature: Ed25519 over the bytes of `manifest.json`, which has every file's hash.

The file is JSON of four fields, so that a phone reads it with what its system has: Ed25519 in
`java.security` (Android 13 and later) and in CryptoKit. `docs/signing.md` has the format.
"""

import base64
import binascii
import hashlib
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from llama_edge.bundle.finding_codes import ContractFinding, not_a_file
from llama_edge.bundle.manifest import SIGNATURE_FILE
from llama_edge.core.errors import ArtifactError, OutputError, UsageError
from llama_edge.core.files import explained, write_json, write_new
from llama_edge.core.json_files import read_json_object
from llama_edge.core.regular import read_regular

ALGORITHM: Final = "ed25519"
_FORMAT_VERSION: Final = 1
_SIGNATURE_BYTES: Final = 64
#: A PEM key has some 120 bytes.
_MAX_KEY_BYTES: Final = 1 << 16
_MAX_SIGNATURE_BYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """What `manifest.sig` holds."""

    #: SHA-256 of the 32 bytes of the public key, in hexadecimal digits
    key_id: str
    signature: bytes


def key_id(key: Ed25519PublicKey) -> str:
    """SHA-256 of the key's 32 bytes."""
    return hashlib.sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()


def new_key(path: Path) -> Path:
    """Write a new private key, readable by its owner alone, and its public half next to it.

    Returns:
        The public key's file: `path` with `.pub` after it.

    Raises:
        OutputError: One of the two files exists; a key is never replaced.
    """
    private, public = Ed25519PrivateKey.generate(), Path(f"{path}.pub")
    for place in (path, public):
        if os.path.lexists(place):
            raise OutputError(f"{place}: exists already; a key is never replaced: name another")
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public_pem = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    with explained(path):
        write_new(public, public_pem)
        try:
            write_new(path, pem, 0o600)
        except BaseException:
            public.unlink()
            raise
    return public


def _read_key(path: Path, kind: str) -> bytes:
    try:
        return read_regular(path, _MAX_KEY_BYTES, UsageError)
    except UsageError as error:
        raise UsageError(f"{error}; give a PEM file with a {kind} key of Ed25519") from error


def load_private_key(path: Path) -> Ed25519PrivateKey:
    """An unencrypted PEM file.

    Raises:
        UsageError: It is no Ed25519 private key.
    """
    try:
        key = load_pem_private_key(_read_key(path, "private"), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise UsageError(
            f"{path}: not an unencrypted PEM private key; llama-edge keygen writes one"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"{path}: holds another kind of key; Ed25519 is needed")
    return key


def load_public_key(path: Path) -> Ed25519PublicKey:
    """A PEM file.

    Raises:
        UsageError: It is no Ed25519 public key.
    """
    try:
        key = load_pem_public_key(_read_key(path, "public"))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(
            f"{path}: not a PEM public key; give the .pub file that llama-edge keygen wrote"
        ) from error
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(f"{path}: holds another kind of key; Ed25519 is needed")
    return key


def sign_manifest(folder: Path, manifest: bytes, key: Ed25519PrivateKey) -> Signature:
    """Write `manifest.sig`; the same manifest and key give the same bytes (RFC 8032).

    Args:
        folder: The bundle.
        manifest: The bytes of its `manifest.json`, as they were examined.
        key: The publisher's.
    """
    signature = Signature(key_id=key_id(key.public_key()), signature=key.sign(manifest))
    value = {
        "algorithm": ALGORITHM,
        "format_version": _FORMAT_VERSION,
        "key_id": signature.key_id,
        "signature": base64.b64encode(signature.signature).decode(),
    }
    with explained(folder / SIGNATURE_FILE):
        write_json(folder / SIGNATURE_FILE, value)
    return signature


def _read_signature(folder: Path) -> Signature:
    """An untrusted `manifest.sig`.

    Raises:
        ArtifactError: It is absent, damaged or of another format.
    """
    path = folder / SIGNATURE_FILE
    value = read_json_object(path, limit=_MAX_SIGNATURE_BYTES, follow_links=False)
    form = value.get("algorithm"), value.get("format_version")
    if form != (ALGORITHM, _FORMAT_VERSION):
        raise ArtifactError(f"{path}: {form[0]!r} of version {form[1]!r} is not known here")
    found, text = value.get("key_id"), value.get("signature")
    try:
        if not isinstance(found, str) or not isinstance(text, str):
            raise ArtifactError(f"{path}: key_id and signature must be texts")
        signature = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ArtifactError(f"{path}: the signature is not base64: {error}") from error
    if len(signature) != _SIGNATURE_BYTES:
        raise ArtifactError(f"{path}: the signature has {len(signature)} bytes, not 64")
    return Signature(key_id=found, signature=signature)


def check_signature(
    folder: Path, manifest: bytes, key: Ed25519PublicKey | None
) -> ContractFinding | None:
    """The signature of `manifest.json`; None: it holds, or nobody asks for one and there is none.

    Args:
        folder: A bundle.
        manifest: The bytes of its `manifest.json`, of which nothing has been parsed.
        key: The one that is trusted; None reads a signature without being able to verify it against
            anything.
    """
    return _examine(folder, manifest, key)[0]


def _examine(
    folder: Path, manifest: bytes, key: Ed25519PublicKey | None
) -> tuple[ContractFinding | None, Signature | None]:
    """As `check_signature`, and the signature that was read."""

    def finding(kind: str, expected: str, found: str) -> ContractFinding:
        code = f"signature.{kind}"
        return ContractFinding(code=code, where=SIGNATURE_FILE, expected=expected, found=found)

    trusted = "a signature" if key is None else f"a signature with the key {key_id(key)}"
    try:
        mode = (folder / SIGNATURE_FILE).lstat().st_mode
    except FileNotFoundError:
        return None if key is None else finding("missing", trusted, "no such file"), None
    if not stat.S_ISREG(mode):
        return not_a_file(SIGNATURE_FILE, mode), None
    try:
        signature = _read_signature(folder)
    except ArtifactError as error:
        found = str(error).removeprefix(f"{folder / SIGNATURE_FILE}: ")
        return finding("unreadable", trusted, found), None
    if key is None:
        return None, signature
    if signature.key_id != key_id(key):
        return finding("unknown_key", trusted, f"one with {signature.key_id}"), signature
    try:
        key.verify(signature.signature, manifest)
    except InvalidSignature:
        return finding("invalid", trusted, "a signature of other bytes"), signature
    return None, signature


def _say_nothing(note: str) -> None:
    del note


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """Whose signature a bundle must have when it is opened, and who is told where none is asked."""

    #: None: a signature is not demanded, and one that is there cannot be checked
    key: Ed25519PublicKey | None = None
    #: told in one sentence of a signature that nobody checks
    tell: Callable[[str], None] = _say_nothing

    def check(self, folder: Path, manifest: bytes) -> ContractFinding | None:
        """What is wrong with the signature of `manifest.json`; see `check_signature`."""
        finding, signature = _examine(folder, manifest, self.key)
        if finding is None and self.key is None and signature is not None:
            self.tell(
                f"{folder}: is signed with the key {signature.key_id}, and the signature was not "
                "checked: give the publisher's key with --public-key"
            )
        return finding

    def require_bundle(self, name: object) -> None:
        """Refuse a key for `name`, which is no bundle.

        Raises:
            UsageError: There is a key: only a bundle has a signature.
        """
        if self.key is not None:
            raise UsageError(f"{name}: --public-key belongs to a bundle, and this is none")


#: No signature is demanded.
NO_KEY: Final = Trust()
