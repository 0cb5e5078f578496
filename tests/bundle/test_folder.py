import json
from dataclasses import replace
from pathlib import Path

import pytest

from llama_edge.bundle.folder import (
    Bundle,
    compare_tensors,
    is_bundle,
    list_files,
    list_tensors,
    open_bundle,
    write_manifest,
)
from llama_edge.bundle.manifest import MANIFEST_FILE, Manifest
from llama_edge.core.errors import ArtifactError, CheckFailedError
from llama_edge.core.progress import SilentProgress
from llama_edge.core.quantized import QuantizedCheckpoint


@pytest.fixture
def bundle(tmp_path: Path, debug_manifest: Manifest) -> Bundle:
    root = tmp_path / "bundle"
    root.mkdir()
    (root / "zebra.bin").write_bytes(b"weights" * 100)
    (root / "a.json").write_text("{}")
    (root / "sub").mkdir()
    (root / "sub" / "b.txt").write_text("text")
    return write_manifest(root, replace(debug_manifest, files=list_files(root, ["zebra.bin"])))


def change(bundle: Bundle, **fields: object) -> None:
    path = bundle.root / MANIFEST_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_first_file_leads_and_the_others_follow_by_name(bundle: Bundle) -> None:
    assert [entry.path for entry in bundle.manifest.files] == ["zebra.bin", "a.json", "sub/b.txt"]


def test_opens_what_was_written(bundle: Bundle) -> None:
    assert is_bundle(bundle.root)
    assert open_bundle(bundle.root) == bundle


def test_a_flipped_bit_names_the_file(bundle: Bundle) -> None:
    path = bundle.root / "zebra.bin"
    data = bytearray(path.read_bytes())
    data[350] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckFailedError, match=r"zebra\.bin: A file has other content"):
        open_bundle(bundle.root)


def test_a_truncated_file_names_both_sizes(bundle: Bundle) -> None:
    (bundle.root / "zebra.bin").write_bytes(b"weights")
    with pytest.raises(CheckFailedError, match="Expected 700 bytes; found 7 bytes"):
        open_bundle(bundle.root)


def test_a_missing_file_is_named(bundle: Bundle) -> None:
    (bundle.root / "a.json").unlink()
    with pytest.raises(CheckFailedError, match=r"a\.json: A file that the manifest lists"):
        open_bundle(bundle.root)


def test_no_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="not a llama-edge bundle"):
        open_bundle(tmp_path)


def test_a_newer_bundle_is_refused(bundle: Bundle) -> None:
    change(bundle, format_version=2)
    with pytest.raises(ArtifactError, match=r"newer format.*at most 1; found format_version 2"):
        open_bundle(bundle.root)


def test_a_manifest_that_is_no_json_is_refused(bundle: Bundle) -> None:
    (bundle.root / MANIFEST_FILE).write_bytes(b"\xff{")
    with pytest.raises(ArtifactError, match=r"is not a JSON object.*is not UTF-8 text"):
        open_bundle(bundle.root)


def test_a_huge_manifest_is_refused_unread(bundle: Bundle) -> None:
    with (bundle.root / MANIFEST_FILE).open("r+b") as stream:
        stream.truncate(1 << 30)
    with pytest.raises(ArtifactError, match="at most"):
        open_bundle(bundle.root)


@pytest.mark.parametrize("path", ["../secret", "sub/../../secret"])
def test_a_path_may_not_leave_the_folder(bundle: Bundle, path: str) -> None:
    secret = bundle.root.parent / "secret"
    secret.write_text("secret")
    entry = {"path": path, "size_bytes": 6, "sha256": "0" * 64}
    change(bundle, files=[entry])
    with pytest.raises(ArtifactError, match="outside of the bundle"):
        open_bundle(bundle.root)


def test_a_symlink_may_not_leave_the_folder(bundle: Bundle) -> None:
    outside = bundle.root.parent / "outside"
    (bundle.root / "zebra.bin").rename(outside)
    (bundle.root / "zebra.bin").symlink_to(outside)
    with pytest.raises(ArtifactError, match="There is a symbolic link in the bundle"):
        open_bundle(bundle.root)


def test_tensors_are_listed_in_canonical_order(debug_quantized: QuantizedCheckpoint) -> None:
    tensors = list_tensors(debug_quantized.weights, SilentProgress())
    assert [tensor.name for tensor in tensors] == list(debug_quantized.weights.quantized_names())
    assert tensors[0].name == "model.embed_tokens.weight"
    assert tensors[0].group_size == tensors[0].shape[1]
    assert tensors[0].codes_sha256 == tensors[-1].codes_sha256, "the tables are tied"
    assert tensors[1].group_size == 32
    compare_tensors(tensors, tensors)


def test_another_code_is_found_and_named(debug_quantized: QuantizedCheckpoint) -> None:
    tensors = list_tensors(debug_quantized.weights, SilentProgress())
    broken = (*tensors[:3], replace(tensors[3], codes_sha256="0" * 64), *tensors[4:])
    with pytest.raises(CheckFailedError, match=f"{tensors[3].name}: codes_sha256"):
        compare_tensors(tensors, broken)
    with pytest.raises(CheckFailedError, match="quantized matrices"):
        compare_tensors(tensors, tensors[:-1])
