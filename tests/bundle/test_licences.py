"""A bundle carries the licence texts of its source, and a known model's NOTICE."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from llama_edge.bundle.doctor import diagnose
from llama_edge.bundle.licences import (
    NOTICE_FILE,
    copy_licences,
    known_licence,
    missing_notice,
    write_notice,
)
from llama_edge.bundle.manifest import FileEntry, Manifest
from llama_edge.checkpoints.known_models import LLAMA_32
from llama_edge.core.progress import SilentProgress
from llama_edge.pipeline.export import export_model
from tests.conftest import debug_request

LLAMA = "meta-llama/Llama-3.2-1B-Instruct"


@pytest.mark.onnx
def test_an_exported_bundle_has_them(debug_folder: Path, tmp_path: Path) -> None:
    texts = {"LICENSE.txt": "one", "Notice": "two", "USE_POLICY.md": "three"}
    source = tmp_path / "model"
    source.mkdir()
    for path in debug_folder.iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    for name, text in texts.items():
        (source / name).write_text(text)
    (source / "LICENSES_of_others.py").write_text("not a licence")
    bundle = export_model(debug_request(source, "onnx", tmp_path / "bundle"), SilentProgress())
    listed = {file.path for file in bundle.manifest.files}
    for name, text in texts.items():
        assert name in listed
        assert (bundle.root / name).read_text() == text
    assert "LICENSES_of_others.py" not in listed
    assert diagnose(bundle.root, None, SilentProgress()).passed


def test_what_is_no_text_is_left_out(tmp_path: Path) -> None:
    source, bundle = tmp_path / "source", tmp_path / "bundle"
    source.mkdir()
    bundle.mkdir()
    os.mkfifo(source / "LICENSE")
    (source / "NOTICE").mkdir()
    (source / "COPYING").write_bytes(bytes(2 << 20))
    (source / "LICENCE-é").write_text("a name that a manifest does not take")
    (source / "licence").write_text("kept")
    assert copy_licences(source, bundle) == ("licence",)
    assert [path.name for path in bundle.iterdir()] == ["licence"]


@pytest.mark.parametrize(
    ("source", "is_llama"),
    [
        (LLAMA, True),
        (f"{LLAMA.lower()}@main", True),
        (f"{LLAMA}+lora", True),
        ("meta-llama/Llama-9", False),
        ("Llama-3.2-1B-Instruct", False),
        ("smollm2-135m", False),
    ],
)
def test_a_known_models_licence(source: str, is_llama: bool) -> None:
    assert (known_licence(source) is LLAMA_32) is is_llama


def test_a_notice_is_written_once(tmp_path: Path) -> None:
    write_notice("somebody/else", tmp_path)
    assert not [*tmp_path.iterdir()]
    write_notice(LLAMA, tmp_path)
    assert (tmp_path / NOTICE_FILE).read_text() == LLAMA_32.notice + "\n"
    (tmp_path / NOTICE_FILE).write_text("the publisher's own")
    write_notice(LLAMA, tmp_path)
    assert (tmp_path / NOTICE_FILE).read_text() == "the publisher's own"


def test_doctor_misses_a_notice(debug_manifest: Manifest) -> None:
    assert missing_notice(debug_manifest) is None
    model = replace(debug_manifest.model, source=LLAMA)
    manifest = replace(debug_manifest, model=model)
    assert "asks for a file NOTICE" in str(missing_notice(manifest))
    entry = FileEntry(path="NOTICE.txt", size_bytes=1, sha256="3" * 64)
    assert missing_notice(replace(manifest, files=(*manifest.files, entry))) is None
