"""What is checked is what is used: a file that changes in between is refused, or does not count.

Each test changes a file at a boundary: after the check, and before or after the use.
"""

import io
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from llama_edge.bundle import doctor_bundle
from llama_edge.bundle.examine import examine
from llama_edge.bundle.folder import Bundle, open_bundle
from llama_edge.bundle.signing import Trust, load_public_key, new_key
from llama_edge.core.artifact import Artifact
from llama_edge.core.progress import SilentProgress
from llama_edge.core.regular import read_regular
from llama_edge.generate.assistant import AnswerConfig
from llama_edge.generate.chat import Chat
from llama_edge.report import write
from llama_edge.runtimes.child import ChildRuntime, ChildSession
from tests.cli.conftest import Program
from tests.faults.forging import edit_json, edit_manifest, put, sign

COMMANDS: Mapping[str, tuple[str, ...]] = {
    "run": ("hi", "--max-new-tokens", "1"),
    "serve": ("--stdio",),
    "eval": ("--text", "text.txt", "--window", "16"),
    "bench": ("--new-tokens", "1", "--prompt-tokens", "2", "--repeats", "1"),
    "parity": (),
}


def linked(path: Path) -> None:
    path.rename("elsewhere")
    path.symlink_to("../elsewhere")


CHANGES: Mapping[str, Callable[[Path], object]] = {
    "another file": lambda path: Path(shutil.copy2(path, "new")).replace(path),
    "written in place": lambda path: path.write_bytes(path.read_bytes()),
    "a link": linked,
    "gone": Path.unlink,
}


@pytest.fixture
def folder(
    debug_bundles: Mapping[str, Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    shutil.copytree(debug_bundles["onnx"].root, tmp_path / "bundle")
    (tmp_path / "text.txt").write_text("the rain in Spain stays mainly in the plain " * 8)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"op": "open"}\n')))
    return tmp_path / "bundle"


def after_loading(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """The runtime has opened the artifact, and nothing has been computed."""
    real = ChildRuntime.open

    def opened(self: ChildRuntime, artifact: Artifact) -> ChildSession:
        session = real(self, artifact)
        act()
        return session

    monkeypatch.setattr(ChildRuntime, "open", opened)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_change_before_the_model_runs_is_refused(
    program: Program, folder: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert program(command, folder, *COMMANDS[command]).code == 0
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"op": "open"}\n')))
    after_loading(monkeypatch, lambda: CHANGES["another file"](folder / "tokenizer_config.json"))
    result = program(command, folder, *COMMANDS[command])
    assert result.code == 1
    said = " ".join((result.out + result.err).replace("│", " ").split())
    assert "was changed since" in said
    assert "opened" not in result.out


@pytest.mark.parametrize("kind", CHANGES)
@pytest.mark.parametrize("name", ["model.onnx.data", "tokenizer.json"])
def test_every_change_is_seen(
    program: Program, folder: Path, name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    after_loading(monkeypatch, lambda: CHANGES[kind](folder / name))
    result = program("run", folder, *COMMANDS["run"])
    assert result.code == 1
    assert f"{name}: A file has other content" in result.err
    assert result.out == ""


def test_a_chat_ends_its_runtime(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    after_loading(monkeypatch, lambda: CHANGES["gone"](folder / "tokenizer.json"))
    with pytest.raises(Exception, match="was changed since"):
        Chat(folder, system=None, config=AnswerConfig(max_new_tokens=4))


def test_the_manifest_that_was_signed_is_the_one_that_is_parsed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    public = new_key(Path("key"))
    sign(folder, Path("key"))
    signed = open_bundle(folder).manifest
    real = Trust.check

    def checked(self: Trust, place: Path, manifest: bytes) -> object:
        finding = real(self, place, manifest)
        edit_manifest(place, lambda value: put(value, "model.source", "a stranger's"))
        return finding

    monkeypatch.setattr(Trust, "check", checked)
    trust = Trust(key=load_public_key(public))
    assert open_bundle(folder, trust).manifest == signed


def during_doctor(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    real = doctor_bundle._check_verdict

    def checked(bundle: Bundle) -> object:
        act()
        return real(bundle)

    monkeypatch.setattr(doctor_bundle, "_check_verdict", checked)


def test_doctor_and_sign_see_a_change_while_they_look(
    program: Program, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_key(Path("key"))
    during_doctor(monkeypatch, lambda: CHANGES["another file"](folder / "model.onnx.data"))
    findings = examine(folder, None, SilentProgress()).findings  # as in doctor's own process
    assert [(one.code, one.where) for one in findings] == [("files.sha256", "model.onnx.data")]
    assert program("sign", folder, "--key", "key").code == 1
    assert not (folder / "manifest.sig").exists()


def test_what_was_examined_is_what_is_signed(
    program: Program, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another manifest takes the place of the one that `doctor` looked at."""
    new_key(Path("key"))
    examined = (folder / "manifest.json").read_bytes()
    during_doctor(
        monkeypatch,
        lambda: edit_manifest(folder, lambda value: put(value, "model.source", "a stranger's")),
    )
    assert program("sign", folder, "--key", "key").code == 0
    result = program("verify", folder, "--public-key", "key.pub", "--json")
    assert [one["code"] for one in result.json["findings"]] == ["signature.invalid"]
    (folder / "manifest.json").write_bytes(examined)
    assert program("verify", folder, "--public-key", "key.pub").code == 0


def test_the_measurements_that_were_hashed_are_those_that_are_drawn(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = json.loads((folder / "parity.json").read_text())

    def read(path: Path, limit: int, *, follow_links: bool) -> bytes:
        data = read_regular(path, limit, follow_links=follow_links)
        edit_json(path, lambda value: put(value, "passed", "a lie"))
        return data

    monkeypatch.setattr("llama_edge.report.write.read_regular", read)
    assert write._read_parity(folder, open_bundle(folder).manifest) == wanted


def test_a_bundle_that_stays_as_it_is_passes(folder: Path) -> None:
    bundle = open_bundle(folder)
    assert bundle.checked.keys() == {entry.path for entry in bundle.manifest.files}
    bundle.require_unchanged()
