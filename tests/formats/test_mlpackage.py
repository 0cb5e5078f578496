import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb  # noqa: N813
from coremltools.proto import Model_pb2

from llama_edge.core.errors import ArtifactError
from llama_edge.formats.mil_messages import MIL_pb2
from llama_edge.formats.mlpackage import MLPackage, StoredTensor, constant_shape
from tests.runtimes.mil_packages import low_bits, save_program

#: Values that a program builds with, and parts of a saved one; neither library has types.
Var = Any
Message = Any
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
MODEL = Path("Data", "com.apple.CoreML", "model.mlmodel")
WEIGHTS = Path("Data", "com.apple.CoreML", "weights", "weight.bin")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def body(x: Var) -> Var:
        for name, codes in CODES.items():
            if name.endswith("int4"):
                mb.constexpr_blockwise_shift_scale(
                    data=low_bits(codes, name), scale=np.ones((6, 1), np.float16), name=name
                )
            else:
                levels = 2 ** int(name[4:])
                table = np.arange(levels).astype(np.float16).reshape(1, 1, levels, 1)
                mb.constexpr_lut_to_dense(indices=low_bits(codes, name), lut=table, name=name)
        mb.const(val=np.array([3, -1], np.int32), name="ints")
        mb.const(val=np.array([[1.5], [-2.5]], np.float16), name="half")
        mb.const(val="a text", name="text")
        return mb.linear(x=x, weight=mb.const(val=WEIGHT, name="weight"), name="y")

    path = tmp_path_factory.mktemp("mil") / "a.mlpackage"
    return save_program(path, body, [("fp16", (2, 7))])


@pytest.fixture
def damaged(package: Path, tmp_path: Path) -> Path:
    """A copy, for a test to damage."""
    copy = tmp_path / "b.mlpackage"
    shutil.copytree(package, copy)
    return copy


def value_of(opened: MLPackage, name: str) -> Message:
    """The stored value of a constant, or the codes of a compressed one."""
    for operation in opened.block("main").operations:
        if operation.outputs[0].name == name:
            if operation.type == "const":
                return operation.attributes["val"]
            (binding,) = operation.inputs["data" if name.endswith("int4") else "indices"].arguments
            return binding.value if binding.HasField("value") else value_of(opened, binding.name)
    raise AssertionError(name)


def read(opened: MLPackage, name: str) -> StoredTensor:
    found = opened.constant(value_of(opened, name), name)
    assert isinstance(found, StoredTensor)
    return found


@pytest.mark.parametrize("name", CODES)
def test_codes_of_few_bits_come_back_as_they_were_written(package: Path, name: str) -> None:
    stored = read(MLPackage(package), name)
    assert (stored.element.name, stored.shape) == (name, (6, 7))
    np.testing.assert_array_equal(stored.read(), CODES[name])
    for start in range(6):
        for stop in range(start, 7):
            np.testing.assert_array_equal(stored.rows(start, stop), CODES[name][start:stop])


def test_other_constants_come_back_as_they_were_written(package: Path) -> None:
    opened = MLPackage(package)
    weight = read(opened, "weight")
    np.testing.assert_array_equal(weight.read(), WEIGHT)
    np.testing.assert_array_equal(weight.rows(1, 3), WEIGHT[1:3])
    assert weight.size_bytes == WEIGHT.nbytes
    np.testing.assert_array_equal(read(opened, "ints").read(), [3, -1])
    np.testing.assert_array_equal(read(opened, "half").read(), [[1.5], [-2.5]])
    assert opened.constant(value_of(opened, "text"), "text") == "a text"


def rewrite_manifest(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads((path / "Manifest.json").read_text())
    change(manifest)
    (path / "Manifest.json").write_text(json.dumps(manifest))


def point_root_at(place: str) -> Callable[[dict[str, Any]], None]:
    def change(manifest: dict[str, Any]) -> None:
        manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"] = place

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda manifest: manifest.pop("rootModelIdentifier"), "rootModelIdentifier None"),
        (lambda manifest: manifest.update(itemInfoEntries=[]), "names no item"),
        (lambda manifest: manifest.update(rootModelIdentifier=["x"]), "names no item"),
        (point_root_at("../../outside"), "outside of the package"),
        (point_root_at("/etc/passwd"), "outside of the package"),
        (point_root_at("com.apple.CoreML"), "the file is missing"),
        (point_root_at("a\0b"), "no path of a file"),
        (point_root_at("x" * 300), "no path of a file"),
    ],
)
def test_a_damaged_manifest_is_refused(
    damaged: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    rewrite_manifest(damaged, change)
    with pytest.raises(ArtifactError, match=message):
        MLPackage(damaged)


def test_a_link_to_itself_is_refused(damaged: Path) -> None:
    (damaged / "Data" / "loop").symlink_to("loop")
    rewrite_manifest(damaged, point_root_at("loop"))
    with pytest.raises(ArtifactError, match="no path of a file"):
        MLPackage(damaged)


def test_a_shape_of_no_array_is_refused() -> None:
    tensor = MIL_pb2.TensorType()
    for size in (0, 1 << 40, 1 << 40):
        tensor.dimensions.add().constant.size = size
    with pytest.raises(ArtifactError, match="elements are read"):
        constant_shape(tensor, "here")


def test_a_link_out_of_the_package_is_refused(damaged: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    (damaged / MODEL).rename(moved)
    (damaged / MODEL).symlink_to(moved)
    with pytest.raises(ArtifactError, match="outside of the package"):
        MLPackage(damaged)


def test_a_file_that_is_no_model_is_refused(damaged: Path) -> None:
    (damaged / MODEL).write_bytes(b"\xff" * 100)
    with pytest.raises(ArtifactError, match="cannot be read as a Core ML model"):
        MLPackage(damaged)
    (damaged / MODEL).write_bytes(b"")
    with pytest.raises(ArtifactError, match="an mlProgram is needed"):
        MLPackage(damaged)


def test_a_function_that_is_not_there_is_refused(damaged: Path) -> None:
    opened = MLPackage(damaged)
    with pytest.raises(ArtifactError, match="has no function 'decode'; it has: main"):
        opened.block("decode")
    opened.function("main").opset = "CoreML99"
    with pytest.raises(ArtifactError, match="no block for its opset 'CoreML99'"):
        opened.block("main")


def set_offset(value: Message) -> None:
    value.blobFileValue.offset = 1 << 40


def misplace_offset(value: Message) -> None:
    value.blobFileValue.offset += 64


def leave_the_folder(value: Message) -> None:
    value.blobFileValue.fileName = "@model_path/../../../outside"


def leave_the_root(value: Message) -> None:
    value.blobFileValue.fileName = "/etc/passwd"


def lose_the_file(value: Message) -> None:
    value.blobFileValue.fileName = "@model_path/weights/other.bin"


def grow(value: Message) -> None:
    value.type.tensorType.dimensions[0].constant.size = 1 << 20


def forget_size(value: Message) -> None:
    value.type.tensorType.dimensions[0].unknown.variadic = False


def change_type(value: Message) -> None:
    value.type.tensorType.dataType = 11


def make_unknown(value: Message) -> None:
    value.type.tensorType.dataType = 40


def make_list(value: Message) -> None:
    value.type.listType.SetInParent()


def forget_value(value: Message) -> None:
    value.ClearField("value")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (set_offset, "after the file's end"),
        (misplace_offset, "and not 0xdeadbeef"),
        (leave_the_folder, "outside of the package"),
        (leave_the_root, "a path below @model_path"),
        (lose_the_file, "the file is missing"),
        (grow, "has 70 bytes"),
        (forget_size, "no fixed size"),
        (change_type, "elements of type 1; fp32 has 2"),
        (make_unknown, "type 40 of MIL.proto"),
        (make_list, "a listType is not read"),
        (forget_value, "has no value"),
    ],
)
def test_a_damaged_constant_is_refused(
    package: Path, damage: Callable[[Message], None], message: str
) -> None:
    opened = MLPackage(package)
    value = value_of(opened, "weight")
    damage(value)
    with pytest.raises(ArtifactError, match=message):
        opened.constant(value, "weight")


def test_a_weight_file_that_ends_early_is_refused(damaged: Path) -> None:
    opened = MLPackage(damaged)
    offset = value_of(opened, "weight").blobFileValue.offset
    content = (damaged / WEIGHTS).read_bytes()
    (damaged / WEIGHTS).write_bytes(content[: offset + 64 + 3])
    with pytest.raises(ArtifactError, match=r"70 bytes at .*, after the file's end"):
        read(opened, "weight")


def test_a_blob_of_another_size_than_its_shape_is_refused(damaged: Path) -> None:
    opened = MLPackage(damaged)
    offset = value_of(opened, "weight").blobFileValue.offset
    content = bytearray((damaged / WEIGHTS).read_bytes())
    struct.pack_into("<Q", content, offset + 8, 68)
    (damaged / WEIGHTS).write_bytes(content)
    with pytest.raises(ArtifactError, match="68 bytes; 35 elements of fp16 take 70"):
        read(opened, "weight")


def test_an_empty_weight_file_is_refused(damaged: Path) -> None:
    (damaged / WEIGHTS).write_bytes(b"")
    with pytest.raises(ArtifactError, match="cannot be read"):
        read(MLPackage(damaged), "weight")


def test_another_kind_of_model_is_refused(damaged: Path) -> None:
    spec = Model_pb2.Model()
    spec.identity.SetInParent()
    (damaged / MODEL).write_bytes(spec.SerializeToString())
    with pytest.raises(ArtifactError, match="holds a identity; an mlProgram is needed"):
        MLPackage(damaged)


def test_numbers_in_the_program_fit_their_type(package: Path) -> None:
    opened = MLPackage(package)
    value = value_of(opened, "ints")
    value.type.tensorType.dimensions[0].constant.size = 3
    with pytest.raises(ArtifactError, match="8 bytes; 3 elements of int32 take 12"):
        opened.constant(value, "ints")
    value.type.tensorType.dimensions[0].constant.size = 2
    value.type.tensorType.dataType = 31  # uint8, which holds no -1
    with pytest.raises(ArtifactError, match="holds what no uint8 is"):
        opened.constant(value, "ints")
