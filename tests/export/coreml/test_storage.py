import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from llama_edge.backends.base import LowerOptions
from llama_edge.backends.coreml.exporter import CoreMLExporter
from llama_edge.core.artifact import Artifact, PrefillLengths
from llama_edge.core.progress import SilentProgress
from llama_edge.formats.quantized_checkpoint import quantized_names
from tests.conftest import DEBUG_CONFIG
from tests.export.coreml.conftest import Package, Quantized


def sizes(artifact: Artifact) -> dict[tuple[str, str], int]:
    stored = CoreMLExporter().open(artifact.path).storage()
    assert sum(one.size_bytes for one in stored) == artifact.size_bytes
    assert all(one.why for one in stored)
    return {(one.dtype, one.what): one.size_bytes for one in stored}


def test_every_byte_has_its_place(package: Package) -> None:
    found = sizes(package("tied"))
    weights = CoreMLExporter().open(package("tied").path).weights()
    matrices = {name: weights.quantized(name) for name in quantized_names(DEBUG_CONFIG)[:-1]}
    four = sum(one.codes.numel() for one in matrices.values() if one.bits == 4)
    assert found["int4", "codes of block linears"] == four // 2
    table = DEBUG_CONFIG.vocab_size * DEBUG_CONFIG.hidden_size
    assert found["int8", "codes of embedding and head"] == table
    assert found["fp16", "scales"] == 2 * sum(one.scales.numel() for one in matrices.values())
    assert found["fp32", "RoPE's cosines and sines"] == 2 * 256 * 8 * 4
    assert found["fp32", "norm weights"] == 5 * 96 * 4


@pytest.mark.parametrize(
    ("name", "dtype", "what"),
    [
        ("mixed", "int8", "codes of block linears"),
        ("rotated", "fp32", "rotations that stay in the graph"),
        ("untied", "int8", "codes of embedding and head"),
    ],
)
def test_other_recipes_and_models(name: str, dtype: str, what: str, package: Package) -> None:
    assert sizes(package(name))[dtype, what] > sizes(package("tied")).get((dtype, what), 0)


def test_int4_tables_take_half_the_bytes(package: Package) -> None:
    small, usual = sizes(package("small")), sizes(package("tied"))
    what = "codes of embedding and head"
    assert small["int4", what] * 2 == usual["int8", what]
    assert ("int8", what) not in small


def test_what_two_functions_share_counts_once(
    quantized: Quantized, package: Package, tmp_path: Path
) -> None:
    options = LowerOptions(max_context=256, prefill=PrefillLengths.FIXED)
    fixed = CoreMLExporter().lower(quantized("tied"), tmp_path, options, SilentProgress())
    found, one = sizes(fixed), sizes(package("tied"))
    rest = ("", "program, manifest and headers")
    assert found.pop(rest) > one.pop(rest)
    assert found == one


def test_bytes_that_nothing_names_are_not_weights(package: Package, tmp_path: Path) -> None:
    shutil.copytree(package("tied").root, tmp_path / "copied")
    artifact = replace(package("tied"), root=tmp_path / "copied")
    before = sizes(artifact)
    with (artifact.root / artifact.files[2]).open("ab") as stream:
        stream.write(bytes(1000))
    after = sizes(artifact)
    rest = ("", "program, manifest and headers")
    assert after.pop(rest) == before.pop(rest) + 1000
    assert after == before
