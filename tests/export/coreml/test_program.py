import shutil
from pathlib import Path

import pytest
from coremltools.proto import MIL_pb2

from llama_edge.backends.coreml.exporter import CoreMLExporter
from llama_edge.backends.coreml.program import read_interface, read_placement
from llama_edge.core.errors import ArtifactError
from llama_edge.formats.mlpackage import MLPackage
from tests.export.coreml.conftest import UP, Message, Package
from tests.export.coreml.test_reader import MODEL, edit, operation

NORM_BYTES = 5 * 96 * 4


def test_every_linear_multiplies_stored_codes(package: Package) -> None:
    placement = CoreMLExporter().open(package("tied").path).placement()
    assert placement.linears == placement.linears_delegated == 2 * 7 + 1
    assert placement.weight_bytes - placement.weight_bytes_delegated == NORM_BYTES
    assert placement.operators - placement.operators_delegated == sum(placement.portable.values())
    assert "linear" not in placement.portable
    assert "scaled_dot_product_attention" not in placement.portable
    assert placement.portable["rsqrt"] == 5, "one float32 norm each"


def test_a_heads_rotation_is_a_linear_in_float32(package: Package) -> None:
    placement = CoreMLExporter().open(package("rotated").path).placement()
    assert (placement.linears, placement.linears_delegated) == (16, 15)
    assert placement.portable["linear"] == 1
    assert placement.portable["matmul"] == 2 * 2, "R4, once a block"
    full = placement.weight_bytes - placement.weight_bytes_delegated
    assert full == NORM_BYTES + 96 * 96 * 4


def test_a_linear_of_full_precision_shows(package: Package, tmp_path: Path) -> None:
    before = CoreMLExporter().open(package("tied").path).placement()
    path = tmp_path / "model.mlpackage"
    shutil.copytree(package("tied").path.parent, path)

    def change(spec: Message) -> None:
        found = operation(spec, UP.replace(".", "_"))
        value = MIL_pb2.Value()
        value.type.CopyFrom(found.outputs[0].type)
        value.type.tensorType.dataType = MIL_pb2.DataType.FLOAT32
        value.immediateValue.tensor.floats.values.extend([0.0] * (160 * 96))
        found.type = "const"
        found.inputs.clear()
        found.attributes["val"].CopyFrom(value)

    edit(path, change)
    after = read_placement(MLPackage(path))
    assert (after.linears, after.linears_delegated) == (before.linears, before.linears - 1)
    assert after.weight_bytes_delegated < before.weight_bytes_delegated
    assert after.weight_bytes > before.weight_bytes


def test_the_interface_is_the_packages_own(package: Package) -> None:
    interface = CoreMLExporter().open(package("tied").path).interface()
    inputs = {spec.name: (spec.dtype, spec.shape) for spec in interface.inputs}
    assert inputs == {
        "inputIds": ("int32", (1, "tokens <= 256")),
        "position": ("int32", (1,)),
    }
    (logits,) = interface.outputs
    assert (logits.name, logits.dtype, logits.shape) == ("logits", "float16", (1, "tokens", 256))
    for state in ("keyCache float16 (2, 1, 2, 256, 16)", "valueCache float16 (2, 1, 2, 256, 16)"):
        assert state in interface.cache


def test_an_output_that_nothing_makes(package: Package, tmp_path: Path) -> None:
    path = tmp_path / "model.mlpackage"
    shutil.copytree(package("tied").path.parent, path)

    def change(spec: Message) -> None:
        spec.description.output[0].name = "elsewhere"

    edit(path, change)
    with pytest.raises(ArtifactError, match="output 'elsewhere'"):
        read_interface(MLPackage(path))


def test_a_damaged_program(package: Package, tmp_path: Path) -> None:
    path = tmp_path / "model.mlpackage"
    shutil.copytree(package("tied").path.parent, path)
    content = (path / MODEL).read_bytes()
    (path / MODEL).write_bytes(content[: len(content) // 2])
    for read in (read_interface, read_placement):
        with pytest.raises(ArtifactError, match="cannot be read as a Core ML model"):
            read(MLPackage(path))
