import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from llama_edge.bundle.folder import Bundle
from llama_edge.core.errors import ArtifactError
from llama_edge.core.progress import SilentProgress
from llama_edge.core.quantized import QuantizedCheckpoint
from llama_edge.debug.inspect import inspect
from llama_edge.pipeline.quantize import QuantizeRequest, quantize_model


def test_every_form_holds_the_same_codes(
    debug_bundles: Mapping[str, Bundle], debug_folder: Path, tmp_path: Path
) -> None:
    request = QuantizeRequest(model=str(debug_folder), recipe="w4a8-rtn", out=tmp_path / "q")
    quantized = quantize_model(request, SilentProgress())
    pte, onnx = debug_bundles["android"].root, debug_bundles["onnx"].root
    renamed = tmp_path / "other name.pte"
    renamed.write_bytes((pte / "model.pte").read_bytes())
    places = [quantized.root, pte, pte / "model.pte", renamed, onnx, onnx / "model.onnx"]
    found = [inspect(place, SilentProgress()).tensors for place in places]
    assert len(found[0]) == 2 + 2 * 7
    assert all(tensors == found[0] for tensors in found)


def test_kinds_are_told_apart(
    debug_bundles: Mapping[str, Bundle], debug_quantized: QuantizedCheckpoint
) -> None:
    assert inspect(debug_quantized.root, SilentProgress()).kind == "quantized checkpoint"
    assert inspect(debug_bundles["android"].root, SilentProgress()).kind == "executorch"
    assert inspect(debug_bundles["onnx"].root, SilentProgress()).kind == "onnx"


def test_codes_are_read_from_the_file_and_not_from_the_manifest(
    debug_bundles: Mapping[str, Bundle], tmp_path: Path
) -> None:

    folder = tmp_path / "changed"
    shutil.copytree(debug_bundles["onnx"].root, folder)
    data = bytearray((folder / "model.onnx.data").read_bytes())
    data[5000] ^= 0x11
    (folder / "model.onnx.data").write_bytes(data)
    found = inspect(folder, SilentProgress()).tensors
    expected = debug_bundles["onnx"].manifest.tensors
    assert sum(a != b for a, b in zip(found, expected, strict=True)) in (1, 2)


@pytest.mark.parametrize("content", [{}, {"a.pte": b"x", "b.onnx": b"x"}])
def test_other_folders_are_refused(tmp_path: Path, content: Mapping[str, bytes]) -> None:
    for name, data in content.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(ArtifactError, match=f"{len(content)} files end with"):
        inspect(tmp_path, SilentProgress())


def test_an_absent_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such file"):
        inspect(tmp_path / "nowhere", SilentProgress())
