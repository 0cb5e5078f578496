"""Packages of two functions of fixed sizes: one cache, one set of weights, calls filled up."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llama_edge.backends.base import LowerOptions
from llama_edge.backends.coreml.exporter import FIXED_PREFILL, CoreMLExporter
from llama_edge.core.artifact import Artifact, PrefillLengths
from llama_edge.core.errors import ArtifactError, SessionError
from llama_edge.core.progress import SilentProgress
from llama_edge.core.quantized import QuantizedCheckpoint
from llama_edge.core.session import FloatArray
from llama_edge.formats.mlpackage import MLPackage
from llama_edge.models.reference import Reference
from llama_edge.models.sources import CachedSource, DequantizedSource
from llama_edge.runtimes.coreml.functions import InterpretedFunctions, pieces
from llama_edge.runtimes.coreml.interpreter import Precision
from llama_edge.runtimes.coreml.session import CoreMLInterpreterRuntime

#: Any class of `Model_pb2`; protobuf generates them without types.
Message = Any
CONTEXT = 160
TOKENS = [(7 * position * position + 3 * position) % 256 for position in range(CONTEXT)]
EXACT = CoreMLInterpreterRuntime()


def lower(checkpoint: QuantizedCheckpoint, folder: Path, prefill: PrefillLengths) -> Artifact:
    options = LowerOptions(max_context=CONTEXT, prefill=prefill)
    return CoreMLExporter().lower(checkpoint, folder, options, SilentProgress())


@pytest.fixture(scope="module")
def fixed(
    debug_quantized: QuantizedCheckpoint, tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    return lower(debug_quantized, tmp_path_factory.mktemp("fixed"), PrefillLengths.FIXED)


@pytest.fixture(scope="module")
def flexible(
    debug_quantized: QuantizedCheckpoint, tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    return lower(debug_quantized, tmp_path_factory.mktemp("flexible"), PrefillLengths.FLEXIBLE)


@pytest.fixture(scope="module")
def expected(debug_quantized: QuantizedCheckpoint) -> FloatArray:
    source = CachedSource(DequantizedSource(debug_quantized.weights))
    network = Reference(debug_quantized.config, source)
    logits: FloatArray = network.logits(torch.tensor(TOKENS)).numpy()
    return logits


@pytest.mark.parametrize(
    ("count", "used", "found"),
    [
        (1, 0, [(1, 1)]),
        (2, 0, [(2, 64)]),
        (64, 0, [(64, 64)]),
        (80, 0, [(64, 64), (16, 64)]),
        (65, 0, [(64, 64), (1, 1)]),
        # A call that is filled up must fit into the context of 160.
        (130, 0, [(64, 64), (64, 64), (1, 1), (1, 1)]),
        (3, 96, [(3, 64)]),
        (3, 97, [(1, 1), (1, 1), (1, 1)]),
        (64, 95, [(64, 64)]),
    ],
)
def test_a_prompt_in_calls_of_fixed_sizes(
    count: int, used: int, found: list[tuple[int, int]]
) -> None:
    assert [*pieces(count, used, CONTEXT, [1, 64])] == found


@pytest.mark.parametrize("prefill", [1, 2, 64, 70, 150, CONTEXT])
def test_prefill_and_decode_equal_the_reference(
    prefill: int, fixed: Artifact, expected: FloatArray
) -> None:
    with EXACT.open(fixed) as session:
        rows = [session.prefill_logits(TOKENS[:prefill])]
        rows += [session.decode(token)[None] for token in TOKENS[prefill:]]
        np.testing.assert_allclose(np.concatenate(rows), expected, atol=2e-5)
        with pytest.raises(SessionError, match="exceed the context of 160"):
            session.decode(5)


def test_a_second_prompt_and_a_reset(fixed: Artifact, expected: FloatArray) -> None:
    with EXACT.open(fixed) as session:
        session.prefill([9] * 100)
        session.reset()
        session.prefill(TOKENS[:40])
        session.decode(TOKENS[40])
        np.testing.assert_allclose(session.prefill(TOKENS[41:90]), expected[89], atol=2e-5)


def test_inner_values_leave_out_what_was_filled_up(fixed: Artifact, flexible: Artifact) -> None:
    calls = [TOKENS[:70], *([token] for token in TOKENS[70:75])]
    found, wanted = EXACT.trace(fixed, calls), EXACT.trace(flexible, calls)
    assert found.calls == wanted.calls
    for name in ("hidden", "attention"):
        for mine, theirs in zip(getattr(found, name), getattr(wanted, name), strict=True):
            np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_weights_are_stored_and_kept_once(fixed: Artifact, flexible: Artifact) -> None:
    sizes = [(one.root / one.files[2]).stat().st_size for one in (fixed, flexible)]
    assert sizes[0] == sizes[1]
    program = InterpretedFunctions(MLPackage(fixed.path.parent), Precision.EXACT)
    decode, prefill = (program.functions[name]._program.constants for name in ("decode", "prefill"))
    table = "model_embed_tokens_weight"
    assert decode[table] is prefill[table]
    assert decode["model_layers_1_mlp_up_proj_weight"] is not decode[table]


def test_the_package_tells_its_sizes(fixed: Artifact) -> None:
    assert fixed.max_prefill == FIXED_PREFILL == 64
    interface = CoreMLExporter().open(fixed.path).interface()
    assert [spec.shape for spec in interface.inputs] == [(1, "1 or 64"), (1,)]
    assert [spec.shape for spec in interface.outputs] == [(1, "1 or 64", 256)]
    assert MLPackage(fixed.path.parent).functions == ("decode", "prefill")
    for name in ("decode", "prefill"):
        block = MLPackage(fixed.path.parent).block(name)
        dimensions = [
            dimension.WhichOneof("dimension")
            for operation in block.operations
            for output in operation.outputs
            if output.type.WhichOneof("type") == "tensorType"
            for dimension in output.type.tensorType.dimensions
        ]
        assert set(dimensions) == {"constant"}, "the Neural Engine is given nothing to guess"


def test_two_lowerings_give_the_same_bytes(
    fixed: Artifact, debug_quantized: QuantizedCheckpoint, tmp_path: Path
) -> None:
    again = lower(debug_quantized, tmp_path, PrefillLengths.FIXED)
    for file in again.files:
        assert (again.root / file).read_bytes() == (fixed.root / file).read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"model.mlpackage"}


@pytest.fixture
def copied(fixed: Artifact, tmp_path: Path) -> Artifact:
    shutil.copytree(fixed.root, tmp_path / "copied")
    return replace(fixed, root=tmp_path / "copied")


def change(artifact: Artifact, edit: Callable[[Message], None]) -> None:
    package = MLPackage(artifact.path.parent)
    edit(package.spec)
    (artifact.root / artifact.files[1]).write_bytes(package.spec.SerializeToString())


def other_matrix(spec: Message) -> None:
    """`up_proj` of the function `prefill` points to the codes of `gate_proj`."""
    function = spec.mlProgram.functions["prefill"]
    operations = function.block_specializations[function.opset].operations
    named = {one.outputs[0].name: one for one in operations if one.outputs}
    up, gate = (named[f"model_layers_0_mlp_{name}_proj_weight"] for name in ("up", "gate"))
    up.inputs["data"].CopyFrom(gate.inputs["data"])


def no_single_token(spec: Message) -> None:
    del spec.mlProgram.functions["decode"]
    spec.mlProgram.functions["other"].CopyFrom(spec.mlProgram.functions["prefill"])
    for described in spec.description.functions:
        if described.name == "decode":
            described.name = "other"
            described.input[0].type.multiArrayType.shape[1] = 32


def no_description(spec: Message) -> None:
    del spec.description.functions[1]


def test_other_codes_in_a_second_function_are_found(copied: Artifact) -> None:
    change(copied, other_matrix)
    with pytest.raises(ArtifactError, match=r"up_proj_weight is another in its function 'prefill'"):
        CoreMLExporter().open(copied.path).weights()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (no_single_token, "no function takes a single token"),
        (no_description, "function 'prefill' has no description"),
    ],
)
def test_functions_that_do_not_belong_together(
    edit: Callable[[Message], None], message: str, copied: Artifact
) -> None:
    change(copied, edit)
    with pytest.raises(SessionError, match=message):
        EXACT.open(copied)
