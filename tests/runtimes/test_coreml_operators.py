from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coremltools import target
from coremltools.converters.mil import Builder as mb  # noqa: N813
from numpy.typing import NDArray

from llama_edge.formats.mlpackage import MLPackage
from llama_edge.runtimes.coreml.interpreter import Interpreter
from llama_edge.runtimes.coreml.operators import OPERATORS
from tests.runtimes.mil_cases import CASES, Case
from tests.runtimes.mil_packages import save_program

Var = Any


def test_every_operator_has_a_case() -> None:
    assert {name.partition("-")[0] for name in CASES} == set(OPERATORS)


@pytest.mark.parametrize("name", CASES)
def test_an_operator_computes_what_pytorch_does(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    kinds = [("int32" if x.dtype == np.int32 else "fp32", x.shape) for x in case.given]
    package = MLPackage(save_program(tmp_path / "a.mlpackage", case.body, kinds))
    assert name.partition("-")[0] in {entry.type for entry in package.block("main").operations}
    found = Interpreter(package).run({f"x{i}": x for i, x in enumerate(case.given)})
    (values,) = found.values()
    expected = case.expected(*(torch.from_numpy(x) for x in case.given))
    assert values.shape == expected.shape
    np.testing.assert_allclose(values, expected.numpy(), rtol=1e-5, atol=1e-5)
    if case.evaluated:
        np.testing.assert_allclose(values, evaluate(case), rtol=1e-5, atol=1e-5)


def evaluate(case: Case) -> NDArray[Any]:
    """What coremltools' `value_inference` makes of it, every input being a constant."""
    found: list[NDArray[Any]] = []

    @mb.program(input_specs=[], opset_version=target.iOS18)  # type: ignore[untyped-decorator]
    def program() -> Var:
        result = case.body(*(mb.const(val=x) for x in case.given))
        assert result.val is not None, "coremltools does not evaluate it"
        found.append(result.val)
        return result

    return found[0]
