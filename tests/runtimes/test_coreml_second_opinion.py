"""Whole programs as coremltools' own `value_inference` sees them, operator by operator.

The saved package is loaded by coremltools' reader, not by ours, and every operator is built again
on constants, which coremltools then evaluates with NumPy. What it cannot evaluate is taken from the
interpreter and counted, so that a test that compares nothing fails.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb  # noqa: N813
from coremltools.converters.mil.frontend.milproto.load import load
from numpy.typing import NDArray

from llama_edge.backends.base import LowerOptions
from llama_edge.backends.coreml.exporter import CoreMLExporter
from llama_edge.core.progress import SilentProgress
from llama_edge.core.quantized import QuantizedCheckpoint
from llama_edge.formats.mlpackage import MLPackage
from llama_edge.runtimes.coreml.interpreter import Interpreter
from llama_edge.runtimes.coreml.operators import OPERATORS
from tests.runtimes.test_coreml_interpreter import TinyTransformer

Array = NDArray[Any]
#: coremltools' operators and values are untyped.
Operator = Any
#: coremltools has no NumPy for these: states, and operators without `value_inference`.
STATES = {"read_state", "coreml_update_state"}
FLOATS = ("fp16", "fp32")


def second_opinion(package: Path, feeds: Mapping[str, Array]) -> tuple[Counter[str], Counter[str]]:
    """Compare every operator's result; how many of each kind agreed, and how many had no value."""
    read = MLPackage(package)
    weights = read.path / "Data/com.apple.CoreML/weights"
    program = load(read.spec, specification_version=9, file_weights_dir=str(weights))
    interpreter = Interpreter(read)
    constants = {"const", "constexpr_blockwise_shift_scale"}
    kept = [
        made.name
        for entry in read.block("main").operations
        if entry.type not in constants
        for made in entry.outputs
    ]
    ours = {**interpreter.run(feeds, kept), **feeds}
    agreed: Counter[str] = Counter()
    unknown: Counter[str] = Counter()

    @mb.program(input_specs=[], opset_version=ct.target.iOS18)  # type: ignore[untyped-decorator]
    def evaluated() -> Any:  # noqa: ANN401
        for operator in program.functions["main"].operations:
            if operator.op_type in constants | STATES:
                continue
            found = _evaluate(operator, ours)
            if found is None:
                unknown[operator.op_type] += 1
                continue
            for made, value in zip(operator.outputs, found, strict=True):
                np.testing.assert_allclose(
                    ours[made.name], value.astype(ours[made.name].dtype), rtol=2e-3, atol=2e-3
                )
            agreed[operator.op_type] += 1
        return mb.const(val=np.float32(0))

    return agreed, unknown


def _evaluate(operator: Operator, ours: Mapping[str, Array]) -> list[Array] | None:
    """The operator's results on what the interpreter gave to it, or None."""
    build = getattr(mb, operator.op_type)
    arguments = {}
    for key, var in operator.inputs.items():
        if var is None:
            continue
        values = [_constant(one, ours) for one in var] if isinstance(var, (list, tuple)) else None
        arguments[key] = _constant(var, ours) if values is None else values
    try:
        made = build(**arguments)
    except TypeError:  # coremltools 9.0 on NumPy 2.4: exclusive sums, and means that keep axes
        return None
    made = made if isinstance(made, (list, tuple)) else [made]
    values = [one.val for one in made]
    return None if any(value is None for value in values) else [np.asarray(v) for v in values]


def _constant(var: Operator, ours: Mapping[str, Array]) -> Any:  # noqa: ANN401
    if var.val is not None:
        return var.val
    if var.name not in ours:
        # A weight stored as codes: what it stands for.
        return var.op.materialized_val_inference()
    value = ours[var.name]
    kind = ct.converters.mil.mil.types.builtin_to_string(var.dtype)
    if kind in FLOATS:
        return value.astype(np.float16 if kind == "fp16" else np.float32)
    return value.astype(np.int32) if kind == "int32" else value


def test_our_own_program(debug_quantized: QuantizedCheckpoint, tmp_path: Path) -> None:
    options = LowerOptions(max_context=32)
    artifact = CoreMLExporter().lower(debug_quantized, tmp_path, options, SilentProgress())
    tokens = np.array([[5, 9, 200, 17, 3]], np.int32)
    feeds = {"inputIds": tokens, "position": np.array([0], np.int32)}
    agreed, unknown = second_opinion(artifact.path.parent, feeds)
    assert agreed.total() > 100
    assert {"linear", "mul", "add", "reshape", "transpose", "concat", "gather"} <= set(agreed)
    assert {"scaled_dot_product_attention", "slice_update", "rsqrt", "split"} <= set(agreed)
    assert set(unknown) <= {"cumsum", "reduce_mean", "silu"}


def test_a_program_that_was_converted(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokens = torch.arange(0, 45, 5)[None].int()
    exported = torch.export.export(TinyTransformer().eval(), (tokens,)).run_decompositions({})
    path = tmp_path / "a.mlpackage"
    ct.convert(
        exported,
        minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
    ).save(str(path))
    (declared,) = Interpreter(MLPackage(path)).inputs
    agreed, unknown = second_opinion(path, {declared.name: tokens.numpy()})
    assert agreed.total() > 10
    assert set(unknown) <= {"reduce_mean"}


def test_a_wrong_operator_would_be_found(
    debug_quantized: QuantizedCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OPERATORS, "sub", OPERATORS["add"])
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        test_our_own_program(debug_quantized, tmp_path)
