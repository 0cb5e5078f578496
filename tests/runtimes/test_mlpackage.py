import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb  # noqa: N813

from llama_edge.formats.mlpackage import MLPackage, StoredTensor
from tests.runtimes.mil_packages import low_bits, save_program

GENERATOR = np.random.default_rng(0)
#: Odd rows: of 4-bit codes, every second row begins in the middle of a byte.
CODES = {
    name: GENERATOR.integers(low, high, (6, 7))
    for name, low, high in [
        ("int4", -8, 8),
        ("uint1", 0, 2),
        ("uint2", 0, 4),
        ("uint3", 0, 8),
        ("uint4", 0, 16),
        ("uint6", 0, 64),
    ]
}
WEIGHT = GENERATOR.standard_normal((5, 7)).astype(np.float16)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def body(x: Any) -> Any:
        for name, codes in CODES.items():
            if name == "int4" or name == "uint4":
                scale = np.ones((6, 1), np.float16)
                mb.constexpr_blockwise_shift_scale(
                    data=low_bits(codes, name), scale=scale, name=name
                )
            else:
                levels = 2 ** int(name[4:])
                table = np.arange(levels).astype(np.float16).reshape(1, 1, levels, 1)
                mb.constexpr_lut_to_dense(indices=low_bits(codes, name), lut=table, name=name)
        mb.const(val=np.array([3, -1], np.int32), name="ints")
        mb.const(val="half", name="text")
        return mb.linear(x=x, weight=mb.const(val=WEIGHT, name="weight"), name="y")

    return save_program(tmp_path_factory.mktemp("mil") / "a.mlpackage", body, [("fp16", (2, 7))])


@pytest.fixture
def damaged(package: Path, tmp_path: Path) -> Path:
    """A copy, for a test to damage."""
    copy = tmp_path / "b.mlpackage"
    shutil.copytree(package, copy)
    return copy


def constant(opened: MLPackage, name: str) -> StoredTensor | str:
    for operation in opened.block("main").operations:
        if operation.outputs[0].name == name:
            if operation.type == "const":
                return opened.constant(operation.attributes["val"], name)
            (binding,) = operation.inputs["data" if name.endswith("int4") else "indices"].arguments
            return read_binding(opened, binding, name)
    raise AssertionError(name)


def read_binding(opened: MLPackage, binding: Any, name: str) -> StoredTensor | str:
    return (
        opened.constant(binding.value, name)
        if binding.HasField("value")
        else (constant(opened, binding.name))
    )


def test_constants_come_back_as_they_were_written(package: Path) -> None:
    opened = MLPackage(package)
    for name, codes in CODES.items():
        stored = constant(opened, name)
        assert isinstance(stored, StoredTensor)
        assert stored.element.name == name
        np.testing.assert_array_equal(stored.read(), codes)
    weight = constant(opened, "weight")
    assert isinstance(weight, StoredTensor)
    np.testing.assert_array_equal(weight.read(), WEIGHT)
    ints = constant(opened, "ints")
    assert isinstance(ints, StoredTensor)
    np.testing.assert_array_equal(ints.read(), [3, -1])
    assert constant(opened, "text") == "half"
