from pathlib import Path

import pytest

from llama_edge.backends.executorch.exporter import ExecuTorchExporter
from llama_edge.core.artifact import Artifact
from llama_edge.core.errors import ArtifactError
from llama_edge.core.packing import tensor_sha256
from llama_edge.formats.pte import PteFile, encode_program

QKV = (
    "model.layers.0.self_attn.q_proj.weight|model.layers.0.self_attn.k_proj.weight"
    "|model.layers.0.self_attn.v_proj.weight.codes"
)


def rewrite(pte: PteFile, target: Path) -> Path:
    """The file again, after `pte.program` was changed."""
    front, _ = encode_program(pte.program)
    target.write_bytes(front + bytes(pte.segment_data()))
    return target


def test_an_unchanged_rewrite_reads_back(debug_pte: Artifact, tmp_path: Path) -> None:
    copy = rewrite(PteFile(debug_pte.path), tmp_path / "model.pte")
    assert copy.read_bytes() == debug_pte.path.read_bytes()


def test_rows_that_lie_otherwise_are_not_read(debug_pte: Artifact, tmp_path: Path) -> None:
    """Earlier files stacked whole matrices, with another joint between their names."""
    pte = PteFile(debug_pte.path)
    for data in pte.program.named_data:
        data.key = data.key.replace("|", "+")
    copy = ExecuTorchExporter().open(rewrite(pte, tmp_path / "model.pte")).weights()
    with pytest.raises(ArtifactError, match=r"k_proj.weight is in no named data.*export it again"):
        copy.quantized("model.layers.0.self_attn.k_proj.weight")


def test_swapped_nibbles_change_one_tensor_only(debug_pte: Artifact, tmp_path: Path) -> None:
    data = bytearray(debug_pte.path.read_bytes())
    pte = PteFile(debug_pte.path)
    placed = pte.program.segments[pte.named()[QKV]]
    start = len(data) - len(pte.segment_data()) + placed.offset
    place = next(i for i in range(start, start + 99) if data[i] >> 4 != data[i] & 0xF)
    data[place] = data[place] >> 4 | (data[place] & 0xF) << 4
    (tmp_path / "model.pte").write_bytes(data)
    found, expected = (
        ExecuTorchExporter().open(tmp_path / "model.pte").weights(),
        ExecuTorchExporter().open(debug_pte.path).weights(),
    )
    different = [
        name
        for name in expected.quantized_names()
        if tensor_sha256(found.quantized(name).codes)
        != tensor_sha256(expected.quantized(name).codes)
    ]
    assert different == ["model.layers.0.self_attn.q_proj.weight"]


def test_a_folder_without_the_file(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"has no model\.pte"):
        ExecuTorchExporter().open(tmp_path)


@pytest.mark.parametrize("keep", [0, 7, 60, 5000, -1])
def test_a_truncated_file(debug_pte: Artifact, tmp_path: Path, keep: int) -> None:
    (tmp_path / "model.pte").write_bytes(debug_pte.path.read_bytes()[:keep])
    with pytest.raises(ArtifactError):
        ExecuTorchExporter().open(tmp_path / "model.pte").weights().quantized("lm_head.weight")


@pytest.mark.parametrize("place", [12, 16, 24])
def test_a_lying_header(debug_pte: Artifact, tmp_path: Path, place: int) -> None:
    data = bytearray(debug_pte.path.read_bytes())
    data[place + 4 : place + 8] = b"\xff" * 4
    (tmp_path / "model.pte").write_bytes(data)
    with pytest.raises(ArtifactError):
        ExecuTorchExporter().open(tmp_path)


def test_missing_named_data(debug_pte: Artifact, tmp_path: Path) -> None:
    pte = PteFile(debug_pte.path)
    named = pte.program.named_data or []
    pte.program.named_data = [entry for entry in named if entry.key != QKV]
    copy = rewrite(pte, tmp_path / "model.pte")
    with pytest.raises(ArtifactError, match=r"q_proj\.weight is in no named data"):
        ExecuTorchExporter().open(copy).weights().quantized(
            "model.layers.0.self_attn.q_proj.weight"
        )


def test_a_foreign_program(debug_pte: Artifact, tmp_path: Path) -> None:
    pte = PteFile(debug_pte.path)
    plans = pte.program.execution_plan
    pte.program.execution_plan = [plan for plan in plans if "config" not in plan.name]
    rewrite(pte, tmp_path / "model.pte")
    with pytest.raises(ArtifactError, match="has no method 'get_llama_edge_config'"):
        ExecuTorchExporter().open(tmp_path)
