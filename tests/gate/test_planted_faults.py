"""Faults planted where the artifact is written: each really written file must fail the gate.

The exporter below lowers a wrong model and then reads back right codes, as a writer and a reader
with the same mistake would: only running the file can tell.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from executorch.exir import schema
from onnx import helper, numpy_helper
from torch import Tensor

from llama_edge.backends import get_exporter
from llama_edge.backends.base import Exporter, LowerOptions, WrittenArtifact
from llama_edge.core.artifact import Artifact
from llama_edge.core.errors import CheckFailedError
from llama_edge.core.model_config import ModelConfig
from llama_edge.core.packing import QuantizedTensor
from llama_edge.core.progress import Progress, SilentProgress
from llama_edge.core.quantized import QuantizedCheckpoint, QuantizedWeights
from llama_edge.core.recipe import Recipe
from llama_edge.core.runner_values import RunnerValue
from llama_edge.formats.pte import PteFile, encode_program
from llama_edge.models import rope
from llama_edge.pipeline.export import export_model
from tests.conftest import debug_request

Fault = Callable[[str, QuantizedTensor], QuantizedTensor]
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"
#: Of down_proj's input in the debug model, about a thousandth of a rounding step.
SHIFT = 2e-5


def swapped_nibbles(name: str, tensor: QuantizedTensor) -> QuantizedTensor:
    if name != DOWN:
        return tensor
    pairs = tensor.codes.view(tensor.shape[0], -1, 2).flip(-1)
    return dataclasses.replace(tensor, codes=pairs.reshape(tensor.shape).contiguous())


def larger_scale(name: str, tensor: QuantizedTensor) -> QuantizedTensor:
    if name != DOWN:
        return tensor
    return dataclasses.replace(tensor, scales=(tensor.scales.float() * 1.05).to(torch.bfloat16))


def interleaved_queries(name: str, tensor: QuantizedTensor) -> QuantizedTensor:
    """Meta's row order where Hugging Face's belongs."""
    if name != Q_PROJ:
        return tensor
    rows = torch.arange(tensor.shape[0]).view(-1, 2, 8).transpose(1, 2).reshape(-1)
    return tensor.rows(rows)


class FaultyWeights:
    def __init__(self, weights: QuantizedWeights, fault: Fault) -> None:
        self._weights = weights
        self._fault = fault

    def quantized_names(self) -> tuple[str, ...]:
        return self._weights.quantized_names()

    def quantized(self, name: str) -> QuantizedTensor:
        return self._fault(name, self._weights.quantized(name))

    def vector(self, name: str) -> Tensor:
        return self._weights.vector(name)


class RightWeights:
    """`WrittenArtifact` that reads back the weights that were asked for."""

    def __init__(self, written: WrittenArtifact, right: QuantizedWeights | None) -> None:
        self.artifact = written.artifact
        self.placement = written.placement
        self.interface = written.interface
        self.storage = written.storage
        self.operators = written.operators
        self.end_tokens = written.end_tokens
        self._right = right

    def weights(self) -> QuantizedWeights:
        assert self._right is not None
        return self._right


class FaultyExporter:
    """Lowers through `fault`, changes the file by `damage`, reads back what was asked for."""

    def __init__(
        self,
        exporter: Exporter,
        fault: Fault = lambda _, tensor: tensor,
        damage: Callable[[Path], None] = lambda _: None,
    ) -> None:
        self._exporter = exporter
        self._fault = fault
        self._damage = damage
        self._right: QuantizedWeights | None = None

    def check_supported(self, config: ModelConfig, recipe: Recipe, options: LowerOptions) -> None:
        self._exporter.check_supported(config, recipe, options)

    def lower(
        self,
        checkpoint: QuantizedCheckpoint,
        out_dir: Path,
        options: LowerOptions,
        progress: Progress,
    ) -> Artifact:
        self._right = checkpoint.weights
        wrong = dataclasses.replace(
            checkpoint, weights=FaultyWeights(checkpoint.weights, self._fault)
        )
        artifact = self._exporter.lower(wrong, out_dir, options, progress)
        self._damage(artifact.path)
        return artifact

    def open(self, path: Path) -> WrittenArtifact:
        return RightWeights(self._exporter.open(path), self._right)

    def runner_values(self, path: Path) -> tuple[RunnerValue, ...]:
        return self._exporter.runner_values(path)


Export = Callable[..., str]


@pytest.fixture
def export(debug_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Export:
    """Export with a planted fault; the reason why it failed."""

    def run(target: str, **planted: Callable[..., object]) -> str:
        real = get_exporter({"android": "executorch", "onnx": "onnx"}[target])
        exporter = FaultyExporter(real, **planted)  # type: ignore[arg-type]
        monkeypatch.setattr("llama_edge.pipeline.export.get_exporter", lambda _: exporter)
        with pytest.raises(CheckFailedError) as caught:
            export_model(debug_request(debug_folder, target, tmp_path / "out"), SilentProgress())
        assert not (tmp_path / "out").exists()
        return str(caught.value)

    return run


@pytest.mark.parametrize("target", ["android", "onnx"])
@pytest.mark.parametrize(
    ("fault", "place"),
    [
        (swapped_nibbles, "layers.1.mlp"),
        (larger_scale, "layers.1.mlp"),
        (interleaved_queries, "layers.1.attention"),
    ],
)
def test_wrong_weights_are_named(target: str, fault: Fault, place: str, export: Export) -> None:
    assert f"blocks: {place} (prefill and decode)" in export(target, fault=fault)


@pytest.mark.parametrize("target", ["android", "onnx"])
def test_a_wrong_rope_theta(target: str, export: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong_tables(config: ModelConfig, start: int, length: int) -> tuple[Tensor, Tensor]:
        wrong = dataclasses.replace(config, rope_theta=2 * config.rope_theta)
        return rope.rope_tables(wrong, start, length)

    backend = {"android": "executorch", "onnx": "onnx"}[target]
    monkeypatch.setattr(f"llama_edge.backends.{backend}.lower.rope_tables", wrong_tables)
    assert "blocks: layers.0.attention" in export(target)


@pytest.mark.parametrize("target", ["android", "onnx"])
def test_a_file_that_says_another_theta(
    target: str, debug_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is consistent with itself, and still of another network."""

    class OtherTheta(FaultyExporter):
        def lower(
            self,
            checkpoint: QuantizedCheckpoint,
            out_dir: Path,
            options: LowerOptions,
            progress: Progress,
        ) -> Artifact:
            other = dataclasses.replace(checkpoint.config, rope_theta=500000.0)
            wrong = dataclasses.replace(checkpoint, config=other)
            return super().lower(wrong, out_dir, options, progress)

    real = get_exporter({"android": "executorch", "onnx": "onnx"}[target])
    monkeypatch.setattr("llama_edge.pipeline.export.get_exporter", lambda _: OtherTheta(real))
    with pytest.raises(CheckFailedError, match=r"config: rope_theta: .* says 500000\.0"):
        export_model(debug_request(debug_folder, target, tmp_path / "out"), SilentProgress())


def write_cache_one_place_off(path: Path) -> None:
    """Insert instructions so that every decode step writes one place before where it reads.

    off = position - floor(2 position / (position + 1)): 0 in prefill, position - 1 afterwards.
    """
    pte = PteFile(path)
    plan = pte.method("forward")

    def value(number: int) -> int:
        plan.values.append(schema.EValue(schema.Int(number)))
        return len(plan.values) - 1

    def operator(name: str, overload: str) -> int:
        plan.operators.append(schema.Operator(name, overload))
        return len(plan.operators) - 1

    names = [entry.name for entry in plan.operators]
    instructions = plan.chains[0].instructions
    update = names.index("llama::update_cache")
    scalar = names.index("aten::_local_scalar_dense")
    place = next(
        index
        for index, entry in enumerate(instructions)
        if isinstance(entry.instr_args, schema.KernelCall) and entry.instr_args.op_index == scalar
    )
    call = instructions[place].instr_args
    assert isinstance(call, schema.KernelCall)
    position = call.args[1]
    one, two, doubled, after, step, off = (value(number) for number in (1, 2, 0, 0, 0, 0))
    planned = (
        ("mul", [position, two, doubled]),
        ("add", [position, one, after]),
        ("floordiv", [doubled, after, step]),
        ("sub", [position, step, off]),
    )
    instructions[place + 1 : place + 1] = [
        schema.Instruction(
            schema.KernelCall(operator(f"executorch_prim::{name}", "Scalar"), arguments)
        )
        for name, arguments in planned
    ]
    for entry in instructions:
        call = entry.instr_args
        if isinstance(call, schema.KernelCall) and call.op_index == update:
            call.args[2] = off
    path.write_bytes(encode_program(pte.program)[0] + bytes(pte.segment_data()))


def shift_down_proj_borders(path: Path) -> None:
    """Add to down_proj's input what moves no code but those just below a rounding boundary.

    One row in six gets a flip or two, each on a boundary and by itself as good as the other code.
    """
    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    down = next(node for node in graph.node if "layers.1.mlp.product" in "".join(node.input))
    graph.initializer.append(numpy_helper.from_array(np.float32(SHIFT), "shift"))
    added = helper.make_node("Add", [down.input[0], "shift"], ["shifted"])
    down.input[0] = "shifted"
    graph.node.insert(list(graph.node).index(down), added)
    path.write_bytes(model.SerializeToString())


def test_rounding_borders_that_lie_elsewhere(export: Export) -> None:
    """The nearest to what float errors do: told from them by how many rows it touches."""
    reason = export("onnx", damage=shift_down_proj_borders)
    assert "blocks: layers.1.mlp (prefill and decode)" in reason


def test_a_cache_written_one_place_off_fails_in_decode_only(export: Export) -> None:
    reason = export("android", damage=write_cache_one_place_off)
    assert "attention (decode)" in reason


def test_nothing_planted_passes(
    debug_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exporter of these tests fails nothing by itself."""
    targets: Mapping[str, str] = {"android": "executorch", "onnx": "onnx"}
    for target, backend in targets.items():
        exporter = FaultyExporter(get_exporter(backend))
        monkeypatch.setattr(
            "llama_edge.pipeline.export.get_exporter", lambda _, found=exporter: found
        )
        export_model(debug_request(debug_folder, target, tmp_path / target), SilentProgress())
