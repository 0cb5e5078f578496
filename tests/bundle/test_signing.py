import base64
import json
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from llama_edge.bundle.signing import (
    check_signature,
    key_id,
    load_private_key,
    load_public_key,
    new_key,
    sign_manifest,
)
from llama_edge.core.errors import OutputError, UsageError

#: RFC 8032, section 7.1, test 2.
SECRET = "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb"
PUBLIC = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
SIGNATURE = (
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)


@pytest.fixture
def signed(tmp_path: Path) -> Path:
    (tmp_path / "manifest.json").write_bytes(b"\x72")
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(SECRET))
    sign_manifest(tmp_path, b"\x72", key)
    return tmp_path


@pytest.fixture
def key() -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(bytes.fromhex(PUBLIC))


def found(folder: Path, key: Ed25519PublicKey | None) -> str | None:
    finding = check_signature(folder, (folder / "manifest.json").read_bytes(), key)
    assert finding is None or finding.where == "manifest.sig"
    return None if finding is None else finding.code


def test_the_signature_is_the_standards(signed: Path, key: Ed25519PublicKey) -> None:
    value = json.loads((signed / "manifest.sig").read_text())
    assert value.keys() == {"algorithm", "format_version", "key_id", "signature"}
    assert base64.b64decode(value["signature"]).hex() == SIGNATURE
    assert value["key_id"] == key_id(key)
    assert found(signed, key) is None
    assert found(signed, None) is None


def test_a_changed_manifest(signed: Path, key: Ed25519PublicKey) -> None:
    (signed / "manifest.json").write_bytes(b"\x73")
    assert found(signed, key) == "signature.invalid"


def test_another_key(signed: Path) -> None:
    other = Ed25519PrivateKey.generate().public_key()
    assert found(signed, other) == "signature.unknown_key"


def test_another_key_under_the_trusted_ones_name(signed: Path) -> None:
    """Whoever signs can write any id: the signature itself decides."""
    other = Ed25519PrivateKey.generate().public_key()
    value = json.loads((signed / "manifest.sig").read_text()) | {"key_id": key_id(other)}
    (signed / "manifest.sig").write_text(json.dumps(value))
    assert found(signed, other) == "signature.invalid"


def test_no_signature(signed: Path, key: Ed25519PublicKey) -> None:
    (signed / "manifest.sig").unlink()
    assert found(signed, key) == "signature.missing"
    assert found(signed, None) is None


@pytest.mark.parametrize(
    "change",
    [
        {"algorithm": "none"},
        {"format_version": 2},
        {"signature": "!"},
        {"signature": "AAAA"},
        {"signature": None},
        {"key_id": 7},
    ],
)
def test_a_damaged_signature(
    signed: Path, key: Ed25519PublicKey, change: dict[str, object]
) -> None:
    value = json.loads((signed / "manifest.sig").read_text())
    (signed / "manifest.sig").write_text(json.dumps(value | change))
    assert found(signed, key) == "signature.unreadable"
    assert found(signed, None) == "signature.unreadable"


def test_new_keys_are_the_owners_alone_and_never_replaced(tmp_path: Path) -> None:
    private = tmp_path / "key"
    public = new_key(private)
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert key_id(load_private_key(private).public_key()) == key_id(load_public_key(public))
    with pytest.raises(OutputError, match="never replaced"):
        new_key(private)
    private.unlink()
    with pytest.raises(OutputError, match=r"key\.pub: exists already"):
        new_key(private)
    assert not private.exists()


@pytest.mark.parametrize("name", ["", ".", "..", "/", "/dev/null"])
def test_a_key_has_a_place_of_its_own(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match="exists already"):
        new_key(Path(name))
    assert not list(tmp_path.iterdir())


def test_what_is_no_key_is_refused(tmp_path: Path) -> None:
    new_key(tmp_path / "key")
    with pytest.raises(UsageError, match="not a PEM public key"):
        load_public_key(tmp_path / "key")
    with pytest.raises(UsageError, match="not an unencrypted PEM private key"):
        load_private_key(tmp_path / "key.pub")
    with pytest.raises(UsageError, match="the file is missing"):
        load_public_key(tmp_path / "nowhere")
    rsa = generate_private_key(public_exponent=65537, key_size=2048)
    (tmp_path / "rsa").write_bytes(
        rsa.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    with pytest.raises(UsageError, match="another kind of key"):
        load_private_key(tmp_path / "rsa")
