"""`push` over a fake adb: a script that keeps a phone's files in a folder."""

import os
import shutil
from pathlib import Path

import pytest

from llama_edge.core.errors import (
    CheckFailedError,
    MissingComponentError,
    OutputError,
    UsageError,
)
from llama_edge.pipeline.push import DEFAULT_PLACE, push_bundle
from tests.app_fixtures.files import FIXTURES
from tests.cli.conftest import Program, program

__all__ = ["program"]

_ADB = """#!/bin/sh
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
        case "$1" in
            rm) rm -rf "$FAKE_PHONE$3" ;;
            mkdir) mkdir -p "$FAKE_PHONE$3" ;;
            stat) stat -c %s "$FAKE_PHONE$4" ;;
        esac ;;
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


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "$(reboot)", "a b", "-rf"])
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
