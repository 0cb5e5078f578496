"""A stranger's manifest costs no more than its length: twice the entries, twice the work.

Work is counted in calls of functions, Python's and C's, since no clock is the same twice.
"""

import dataclasses
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Final

import pytest

from llama_edge.bundle.examination import Examination
from llama_edge.bundle.folder import check_listed, check_unlisted, open_bundle, parse_manifest
from llama_edge.bundle.manifest import MANIFEST_FILE, Manifest, check_schema
from llama_edge.bundle.sign import verify_bundle
from llama_edge.bundle.signing import Trust, load_public_key, new_key
from llama_edge.core.errors import ArtifactError, CheckFailedError
from llama_edge.core.files import output_folder
from llama_edge.core.ownership import RECORD_FILE, require_own
from llama_edge.core.progress import SilentProgress
from llama_edge.core.quantized import MixedPrecision
from llama_edge.formats.quantized_checkpoint import Layout, quantized_names
from tests.faults.forging import sign

MANY: Final = 100_000
SOME: Final = 2_000


def work(run: Callable[[], object]) -> int:
    """How many functions are called."""
    count = 0

    def profile(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(profile)
    try:
        run()
    finally:
        sys.setprofile(None)
    return count


def assert_linear(run: Callable[[int], object], size: int = SOME) -> None:
    run(10)  # what is loaded and cached once
    once, twice = work(partial(run, size)), work(partial(run, 2 * size))
    assert once > size / 10, "the work has to be seen"
    assert twice < 2.5 * once


@pytest.fixture
def value(debug_manifest: Manifest) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(debug_manifest.to_json()))
    return found


def files(count: int) -> list[dict[str, object]]:
    return [{"path": f"f{n}", "size_bytes": 1, "sha256": "0" * 64} for n in range(count)]


def test_quadratic_work_would_be_seen() -> None:
    def search(count: int) -> None:
        found: list[MixedPrecision] = []
        for number in range(count):
            one = MixedPrecision(int8_linears=(), spent_bytes=number, budget_bytes=0)
            if one not in found:
                found.append(one)

    with pytest.raises(AssertionError):
        assert_linear(search, 100)


@pytest.mark.parametrize("entry", [lambda n: n, lambda n: {"a": n}, lambda n: [n], str])
def test_end_tokens_that_are_all_different(
    value: dict[str, Any], entry: Callable[[int], object]
) -> None:
    def check(count: int) -> None:
        value["text"]["eos_token_ids"] = [entry(n) for n in range(count)]
        try:
            check_schema(value, "manifest")
        except ArtifactError:
            return

    assert_linear(check)


def test_so_many_end_tokens_are_compared_by_a_set(value: dict[str, Any]) -> None:
    value["text"]["eos_token_ids"] = [*range(MANY), 0]
    with pytest.raises(ArtifactError, match="has an item twice"):
        check_schema(value, "manifest")


def test_files_that_are_all_different(value: dict[str, Any], tmp_path: Path) -> None:
    def examine(count: int) -> None:
        value["files"] = files(count)
        (tmp_path / MANIFEST_FILE).write_text(json.dumps(value))
        bundle = parse_manifest(tmp_path)
        examination = Examination(tmp_path, "bundle", SilentProgress())
        examination.check("files", (*check_listed(bundle), *check_unlisted(bundle)))
        assert len(examination.diagnosis().findings) == count

    assert_linear(examine, 500)


def test_matrices_that_are_all_different(value: dict[str, Any]) -> None:
    entry = value["tensors"][0]

    def read(count: int) -> None:
        value["tensors"] = [entry | {"name": f"t{n}"} for n in range(count)]
        Manifest.from_json(value, "manifest")

    assert_linear(read, 500)


def test_more_values_than_any_bundle_has_are_refused_before_the_schema(
    value: dict[str, Any],
) -> None:
    value["files"] = files(MANY)

    def read() -> None:
        with pytest.raises(ArtifactError, match="at most 200000 values"):
            Manifest.from_json(value, "manifest")

    assert work(read) < 10 * MANY


@pytest.mark.parametrize("kind", ["files", "tensors"])
def test_one_name_twice_is_refused(value: dict[str, Any], kind: str) -> None:
    """A large file that is listed a thousand times would be hashed as often."""
    value[kind] = [*value[kind], value[kind][0] | {"sha256": "1" * 64, "codes_sha256": "1" * 64}]
    value[kind][-1] = {key: value[kind][-1][key] for key in value[kind][0]}
    with pytest.raises(ArtifactError, match=f"manifest.json: {kind}.*once; found 2 times"):
        Manifest.from_json(value, "manifest.json: " + kind)


def test_names_of_raised_linears_are_looked_up_in_a_set(debug_manifest: Manifest) -> None:
    compared = 0

    class Counted(str):
        __slots__ = ()
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return str.__eq__(self, other)

    names = tuple(Counted(f"model.layers.{n}.x") for n in range(MANY))
    mixed = MixedPrecision(int8_linears=names, spent_bytes=0, budget_bytes=0)
    layout = Layout(debug_manifest.model.config, debug_manifest.recipe, mixed)
    for name in quantized_names(debug_manifest.model.config):
        layout.bits(name)
    assert compared < 100


def test_a_record_of_many_files_is_compared_by_a_set(tmp_path: Path) -> None:
    def replace(count: int) -> None:
        with output_folder(tmp_path / "out", force=True) as folder:
            for name in ("a", "b", "c"):
                (folder / name).mkdir()
                (folder / name / "file").touch()
        record = tmp_path / "out" / RECORD_FILE
        listed = [f"{name}/file" for name in "abc"] + [f"x{n}/y" for n in range(count)]
        record.write_text(json.dumps({"written_by": "llama-edge", "files": listed}))
        require_own(tmp_path / "out")

    replace(MANY)
    replace(1000)
    twice = work(partial(replace, 10))  # which looks at a record of 1000
    assert twice < work(partial(replace, 10)) + 20 * 1000


def test_of_a_manifest_that_nobody_signed_nothing_is_parsed(
    value: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    public, other = new_key(tmp_path / "key"), new_key(tmp_path / "other")
    (folder / MANIFEST_FILE).write_text(json.dumps(value))
    sign(folder, tmp_path / "key")
    (folder / MANIFEST_FILE).write_text("[" * MANY)

    def parsed(*_: object) -> None:
        raise AssertionError("parsed")

    monkeypatch.setattr("llama_edge.bundle.folder.parse_json_object", parsed)
    monkeypatch.setattr(Manifest, "from_json", parsed)
    for key, code in ((public, "signature.invalid"), (other, "signature.unknown_key")):
        assert [found.code for found in verify_bundle(folder, key).findings] == [code]
        with pytest.raises(CheckFailedError, match="signature"):
            open_bundle(folder, Trust(key=load_public_key(key)))
    (folder / "manifest.sig").unlink()
    assert [found.code for found in verify_bundle(folder, public).findings] == ["signature.missing"]


def test_findings_are_kept_once_and_in_order(debug_manifest: Manifest, tmp_path: Path) -> None:
    bundle_files = tuple(
        dataclasses.replace(debug_manifest.files[0], path=name) for name in ("b", "a")
    )
    value = dataclasses.replace(debug_manifest, files=bundle_files).to_json()
    (tmp_path / MANIFEST_FILE).write_text(json.dumps(value))
    bundle = parse_manifest(tmp_path)
    examination = Examination(tmp_path, "bundle", SilentProgress())
    for _ in range(2):
        examination.check("files", check_listed(bundle))
    assert [found.where for found in examination.diagnosis().findings] == ["b", "a"]
