from pathlib import Path

import onnx
import pytest
import torch

from llama_edge.backends.onnx.external_data import (
    DATA_FILE,
    MODEL_FILE,
    ExternalDataReader,
    ExternalDataWriter,
    load_graph,
)
from llama_edge.core.errors import ArtifactError

SMALL = torch.tensor([[1.5, -2.0, 0.25]], dtype=torch.bfloat16)
LARGE = torch.arange(70 * 64, dtype=torch.int64).remainder(251).to(torch.uint8).view(70, 64)


def write(folder: Path) -> onnx.ModelProto:
    with ExternalDataWriter(folder / DATA_FILE) as data:
        protos = [data.write("small", SMALL), data.write("large", LARGE)]
    return onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], protos))


def place(model: onnx.ModelProto, tensor: int) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.graph.initializer[tensor].external_data}


def change(model: onnx.ModelProto, key: str, value: str) -> None:
    for entry in model.graph.initializer[1].external_data:
        if entry.key == key:
            entry.value = value


def test_tensors_come_back(tmp_path: Path) -> None:
    reader = ExternalDataReader(tmp_path / MODEL_FILE, write(tmp_path))
    assert torch.equal(reader.read("small", torch.bfloat16, (1, 3)), SMALL)
    assert torch.equal(reader.read("large", torch.uint8, (70, 64)), LARGE)


def test_large_tensors_start_on_a_page_and_nothing_follows_the_last(tmp_path: Path) -> None:
    model = write(tmp_path)
    assert place(model, 0) == {"location": DATA_FILE, "offset": "0", "length": "6"}
    assert place(model, 1) == {"location": DATA_FILE, "offset": "4096", "length": "4480"}
    assert (tmp_path / DATA_FILE).stat().st_size == 4096 + 4480


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("location", "../../etc/passwd", "only 'model.onnx.data'"),
        ("location", "/etc/passwd", "only 'model.onnx.data'"),
        ("offset", "-1", "offset '-1'"),
        ("offset", "\u0663", "offset"),
        ("offset", str(1 << 62), "the file at 8576"),
        ("offset", "4097", "ends at byte 8577"),
        ("length", str(1 << 40), "needs 4480 bytes"),
    ],
)
def test_a_lying_place_is_refused(tmp_path: Path, key: str, value: str, message: str) -> None:
    model = write(tmp_path)
    change(model, key, value)
    reader = ExternalDataReader(tmp_path / MODEL_FILE, model)
    with pytest.raises(ArtifactError, match=message):
        reader.read("large", torch.uint8, (70, 64))


@pytest.mark.parametrize(
    ("name", "dtype", "shape", "message"),
    [
        ("gone", torch.uint8, (70, 64), "gone is missing"),
        ("large", torch.uint8, (64, 70), "needs torch.uint8"),
        ("large", torch.float32, (70, 64), "needs torch.float32"),
    ],
)
def test_a_tensor_of_another_kind_is_refused(
    tmp_path: Path, name: str, dtype: torch.dtype, shape: tuple[int, ...], message: str
) -> None:
    reader = ExternalDataReader(tmp_path / MODEL_FILE, write(tmp_path))
    with pytest.raises(ArtifactError, match=message):
        reader.read(name, dtype, shape)


def test_a_truncated_file_is_refused_where_it_ends(tmp_path: Path) -> None:
    model = write(tmp_path)
    data = tmp_path / DATA_FILE
    data.write_bytes(data.read_bytes()[:-1])
    reader = ExternalDataReader(tmp_path / MODEL_FILE, model)
    assert torch.equal(reader.read("small", torch.bfloat16, (1, 3)), SMALL)
    with pytest.raises(ArtifactError, match="truncated"):
        reader.read("large", torch.uint8, (70, 64))


def test_a_missing_data_file_is_refused(tmp_path: Path) -> None:
    model = write(tmp_path)
    (tmp_path / DATA_FILE).unlink()
    with pytest.raises(ArtifactError, match=r"model\.onnx\.data: the file is missing"):
        ExternalDataReader(tmp_path / MODEL_FILE, model)


def test_what_is_no_graph_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / MODEL_FILE
    with pytest.raises(ArtifactError, match="the file is missing"):
        load_graph(path)
    path.write_bytes(b"\xff\xfe not a protobuf")
    with pytest.raises(ArtifactError, match="not readable as an ONNX model"):
        load_graph(path)
    monkeypatch.setattr("llama_edge.backends.onnx.external_data.MAX_GRAPH_BYTES", 8)
    with pytest.raises(ArtifactError, match="at most 8 are read"):
        load_graph(path)
