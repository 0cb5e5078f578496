"""Whatever a graph says, its readers give values or an `ArtifactError`."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import onnx
import pytest

from llama_edge.backends.onnx.exporter import OnnxExporter, WrittenOnnx
from llama_edge.core.artifact import Artifact
from llama_edge.core.errors import ArtifactError

Change = Callable[[onnx.GraphProto], object]
Read = Callable[[WrittenOnnx], object]


def no_type(graph: onnx.GraphProto) -> None:
    graph.input[0].type.Clear()


def long_number(graph: onnx.GraphProto) -> None:
    for proto in graph.initializer:
        for entry in proto.external_data:
            if entry.key in ("offset", "length"):
                entry.value = "9" * 5000


def reference(graph: onnx.GraphProto) -> None:
    next(node for node in graph.node if node.attribute).attribute[0].ref_attr_name = "x"


def undefined(graph: onnx.GraphProto) -> None:
    for proto in graph.initializer:
        if proto.data_location != onnx.TensorProto.EXTERNAL:
            proto.data_type = 0


def no_outputs(graph: onnx.GraphProto) -> None:
    graph.node.add(op_type="Identity")


@pytest.fixture
def damaged(debug_onnx: Mapping[int, Artifact], tmp_path: Path) -> Callable[[Change], Path]:
    def write(change: Change) -> Path:
        folder = shutil.copytree(debug_onnx[4].root, tmp_path / "damaged")
        model = onnx.load_model(folder / "model.onnx", load_external_data=False)
        change(model.graph)
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        return folder

    return write


@pytest.mark.parametrize(
    ("change", "read", "message"),
    [
        (no_type, WrittenOnnx.interface, "elements of type 0, which ONNX does not know"),
        (long_number, WrittenOnnx.placement, "a number of bytes is needed"),
        (long_number, WrittenOnnx.operators, "a number of bytes is needed"),
        (reference, WrittenOnnx.operators, "has no value of its own"),
    ],
)
def test_a_damaged_graph_is_refused(
    damaged: Callable[[Change], Path], change: Change, read: Read, message: str
) -> None:
    written = OnnxExporter().open(damaged(change))
    with pytest.raises(ArtifactError, match=message):
        read(written)


@pytest.mark.parametrize("change", [undefined, no_outputs])
def test_what_the_readers_do_not_need_may_be_absent(
    damaged: Callable[[Change], Path], change: Change
) -> None:
    written = OnnxExporter().open(damaged(change))
    assert written.placement().linears
    assert written.operators()


def test_a_text_that_is_not_utf8_is_refused(damaged: Callable[[Change], Path]) -> None:
    folder = damaged(lambda graph: setattr(graph.node[0], "name", "twelve bytes"))
    content = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(content.replace(b"twelve bytes", b"\xff" * 12))
    with pytest.raises(ArtifactError, match=r"name of a NodeProto is .* not UTF-8"):
        OnnxExporter().open(folder)
