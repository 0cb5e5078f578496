"""`push` over a fake adb: a script that keeps a phone's files in a folder."""

import os
import shutil
from pathlib import Path
from typing import Final

import pytest

from llama_edge.bundle.signing import new_key
from llama_edge.core.errors import (
    CheckFailedError,
    MissingComponentError,
    OutputError,
    UsageError,
)
from llama_edge.core.regular import file_sha256
from llama_edge.phone.push import DEFAULT_PLACE, push_bundle
from tests.app_fixtures.files import FIXTURES
from tests.cli.conftest import Program, program
from tests.faults.forging import edit_manifest, sign

__all__ = ["program"]

#: As adb does, it joins the words after `shell` and gives them to a shell.
_ADB = """#!/bin/bash
echo "$@" >> "$FAKE_PHONE/log"
if [ "$1" = devices ]; then
    printf 'List of devices attached\\n'
    cat "$FAKE_PHONE/devices"
    exit 0
fi
shift 2
case "$1" in
    push)
        [ -e "$FAKE_PHONE/full" ] && { echo "adb: error: No space left on device" >&2; exit 1; }
        cp "$2" "$FAKE_PHONE$3"
        [ -e "$FAKE_PHONE/lossy" ] && : > "$FAKE_PHONE$3"
        exit 0 ;;
    shell)
        shift
        words="$*"
        cd "$FAKE_PHONE" && exec sh -c "${words//\\/sdcard/$FAKE_PHONE/sdcard}" ;;
esac
"""


@pytest.fixture
def phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the fake adb takes for a phone's storage; one phone is connected."""
    folder, binaries = tmp_path / "phone", tmp_path / "bin"
    folder.mkdir()
    binaries.mkdir()
    (folder / "devices").write_text("ABC123\tdevice\n")
    (binaries / "adb").write_text(_ADB)
    (binaries / "adb").chmod(0o755)
    monkeypatch.setenv("PATH", f"{binaries}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_PHONE", str(folder))
    return folder


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIXTURES / "bundles/good-android", tmp_path / "my-bundle"))


def test_every_file_arrives_the_manifest_last(phone: Path, bundle: Path) -> None:
    (phone / DEFAULT_PLACE[1:] / "my-bundle").mkdir(parents=True)
    (phone / DEFAULT_PLACE[1:] / "my-bundle/stale").write_text("of the last time")
    pushed = push_bundle(bundle)
    there = phone / DEFAULT_PLACE[1:] / "my-bundle"
    here = {path.name: path.read_bytes() for path in bundle.iterdir()}
    assert {path.name: path.read_bytes() for path in there.iterdir()} == here
    assert pushed.files == len(here)
    assert pushed.size_bytes == sum(map(len, here.values()))
    copies = [line for line in (phone / "log").read_text().splitlines() if " push " in line]
    assert copies[-1].endswith("/manifest.json")
    assert all(line.startswith("-s ABC123 ") for line in copies)


HOSTILE_NAMES: Final = (
    "a; touch PWNED; b",
    "$(touch PWNED)",
    "`touch PWNED`",
    "a' && touch PWNED && echo '",
    "a\ntouch PWNED",
    "a|touch PWNED",
    "a>PWNED",
    "a&touch PWNED&",
    "*",
    "a b",
    "~",
    "ü",
)


@pytest.mark.parametrize("name", [*HOSTILE_NAMES, *(f"{name}/x" for name in HOSTILE_NAMES)])
def test_no_name_of_a_manifest_reaches_the_phones_shell(
    program: Program, phone: Path, bundle: Path, name: str
) -> None:
    """A stranger's bundle, in which every hash agrees."""
    (bundle / name).parent.mkdir(exist_ok=True)
    (bundle / name).write_text("x")
    entry = {"path": name, "size_bytes": 1, "sha256": file_sha256(bundle / name)}
    edit_manifest(bundle, lambda value: value["files"].append(entry))
    with pytest.raises(CheckFailedError, match=r"files\.name"):
        push_bundle(bundle)
    assert [path.name for path in phone.iterdir()] == ["devices"]
    result = program("doctor", bundle, "--json")
    assert [found["code"] for found in result.json["findings"]] == ["files.name"]
    assert name not in result.err or name == "*"


def test_a_place_that_the_caller_chose_is_quoted(phone: Path, bundle: Path) -> None:
    place = "/sdcard/my apps; touch PWNED"
    (phone / place[1:]).mkdir(parents=True)
    push_bundle(bundle, place=place)
    assert (phone / place[1:] / "my-bundle/manifest.json").is_file()
    assert sorted(path.name for path in phone.iterdir()) == ["devices", "log", "sdcard"]


def test_the_signature_is_checked_and_goes_along(
    program: Program, phone: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    public = new_key(tmp_path / "key")
    assert program("push", bundle, "--public-key", public).code == 1, "not signed yet"
    sign(bundle, tmp_path / "key")
    result = program("push", bundle, "--public-key", public)
    assert (result.code, "note:" in result.err) == (0, False)
    assert (phone / DEFAULT_PLACE[1:] / "my-bundle/manifest.sig").is_file()
    other = new_key(tmp_path / "other")
    assert "signature.unknown_key" in program("push", bundle, "--public-key", other).err
    assert "signature was not checked" in program("push", bundle).err


def test_what_the_app_would_refuse_is_not_copied(phone: Path, bundle: Path) -> None:
    (bundle / "model.pte").write_bytes(b"cut")
    with pytest.raises(CheckFailedError, match=r"files\.size"):
        push_bundle(bundle)
    assert not (phone / "log").exists()


def test_a_copy_of_another_size_is_found(phone: Path, bundle: Path) -> None:
    (phone / "lossy").touch()
    with pytest.raises(CheckFailedError, match="free some space on the phone"):
        push_bundle(bundle)


def test_adbs_own_reason_is_told(phone: Path, bundle: Path) -> None:
    (phone / "full").touch()
    with pytest.raises(OutputError, match=r"copy model\.pte: adb: error: No space left"):
        push_bundle(bundle)


@pytest.mark.parametrize(
    ("devices", "serial", "expected", "says"),
    [
        ("", None, MissingComponentError, "no phone is ready; connect one"),
        ("A\tunauthorized\n", None, MissingComponentError, "A is unauthorized"),
        ("A\tdevice\nB\tdevice\n", None, UsageError, "2 phones are connected: A, B"),
        ("A\tdevice\n", "B", MissingComponentError, "B is not connected"),
        ("B\toffline\n", "B", MissingComponentError, "B is offline"),
    ],
)
def test_the_phone_that_is_meant(
    phone: Path,
    bundle: Path,
    devices: str,
    serial: str | None,
    expected: type[Exception],
    says: str,
) -> None:
    (phone / "devices").write_text(devices)
    with pytest.raises(expected, match=says):
        push_bundle(bundle, serial=serial)


@pytest.mark.parametrize(
    "name",
    ["", ".hidden", "..", "a/b", "$(reboot)", "a b", "-rf", "{a,b}", "a!b", "a#b", "[ab]", "ab\t"],
)
def test_a_name_that_a_shell_would_read_is_refused(phone: Path, bundle: Path, name: str) -> None:
    with pytest.raises(UsageError, match="no plain name"):
        push_bundle(bundle, name=name)
    assert not (phone / "log").exists()


def test_without_adb_the_exit_code_is_4(
    program: Program, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = program("push", bundle)
    assert result.code == 4
    assert "apt-get install adb" in result.err


def test_the_command_says_where_it_went(program: Program, phone: Path, bundle: Path) -> None:
    result = program("push", bundle, "--name", "other", "--json")
    value = result.json
    assert value["place"] == f"{DEFAULT_PLACE}/other"
    assert (phone / DEFAULT_PLACE[1:] / "other/manifest.json").is_file()
