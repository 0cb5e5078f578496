"""Whatever a program says, its readers give values or an `ArtifactError`."""

from collections.abc import Callable
from pathlib import Path

import pytest
from executorch.exir import schema

from llama_edge.backends.executorch.exporter import ExecuTorchExporter, WrittenPte
from llama_edge.core.artifact import Artifact
from llama_edge.core.errors import ArtifactError
from llama_edge.formats.pte import PteFile
from tests.export.executorch.test_reader import rewrite


def kernel_calls(plan: schema.ExecutionPlan) -> list[schema.KernelCall]:
    calls = [instruction.instr_args for instruction in plan.chains[0].instructions]
    return [call for call in calls if isinstance(call, schema.KernelCall)]


def no_operator(plan: schema.ExecutionPlan) -> None:
    kernel_calls(plan)[0].op_index = len(plan.operators)


def negative_operator(plan: schema.ExecutionPlan) -> None:
    kernel_calls(plan)[0].op_index = -1


def no_delegate(plan: schema.ExecutionPlan) -> None:
    plan.delegates.clear()


@pytest.mark.parametrize(
    ("change", "read", "message"),
    [
        (lambda plan: plan.inputs.pop(), WrittenPte.interface, "names input_pos 1, and has 1"),
        (lambda plan: plan.values.clear(), WrittenPte.interface, "forward: value"),
        (lambda plan: plan.chains.clear(), WrittenPte.placement, "forward: chain 0, and has 0"),
        (no_operator, WrittenPte.placement, "forward: operator"),
        (negative_operator, WrittenPte.placement, "forward: operator -1"),
        (no_delegate, WrittenPte.operators, "names delegate 0, and has 0"),
    ],
)
def test_a_number_that_names_nothing_is_refused(
    debug_pte: Artifact,
    tmp_path: Path,
    change: Callable[[schema.ExecutionPlan], object],
    read: Callable[[WrittenPte], object],
    message: str,
) -> None:
    pte = PteFile(debug_pte.path)
    change(pte.method("forward"))
    written = ExecuTorchExporter().open(rewrite(pte, tmp_path / "model.pte"))
    with pytest.raises(ArtifactError, match=message):
        read(written)


def test_a_method_that_returns_nothing_is_refused(debug_pte: Artifact, tmp_path: Path) -> None:
    pte = PteFile(debug_pte.path)
    pte.method("get_max_context_len").outputs.clear()
    with pytest.raises(ArtifactError, match="get_max_context_len returns 0 numbers"):
        ExecuTorchExporter().open(rewrite(pte, tmp_path / "model.pte"))


def test_a_constant_segment_without_offsets_is_read(debug_pte: Artifact, tmp_path: Path) -> None:
    pte = PteFile(debug_pte.path)
    pte.program.constant_segment.offsets.clear()
    written = ExecuTorchExporter().open(rewrite(pte, tmp_path / "model.pte"))
    with pytest.raises(ArtifactError, match="names constant 1, and has 0"):
        written.weights().quantized("model.embed_tokens.weight")
