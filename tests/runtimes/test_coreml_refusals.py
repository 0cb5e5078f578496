"""What holds for a whole program: weights, states, precision, foreign packages, damaged ones."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb  # noqa: N813
from numpy.typing import NDArray

from llama_edge.core.errors import ArtifactError, SessionError
from llama_edge.formats.mlpackage import MLPackage
from llama_edge.runtimes.coreml.interpreter import Interpreter
from tests.runtimes.mil_packages import save_program

#: Values that a program builds with, and parts of a saved one; neither library has types.
Var = Any
Message = Any
GENERATOR = np.random.default_rng(0)
STATE = (2, 3, 4)


def normal(*shape: int) -> NDArray[np.float32]:
    return GENERATOR.standard_normal(shape).astype(np.float32)


def run(path: Path, *given: NDArray[Any], **options: Any) -> NDArray[Any]:  # noqa: ANN401
    (found,) = run_with(Interpreter(MLPackage(path), **options), *given).values()
    return found


def run_with(interpreter: Interpreter, *given: NDArray[Any]) -> dict[str, NDArray[Any]]:
    return interpreter.run({f"x{index}": values for index, values in enumerate(given)})


# Weights


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def body(x: Var, state: Var) -> Var:
        live = mb.read_state(input=state)
        total = mb.add(x=live, y=x, name="total")
        after = mb.coreml_update_state(state=state, value=total)
        return mb.mul(x=after, y=np.float16(2), name="result")

    path = tmp_path_factory.mktemp("small") / "a.mlpackage"
    return save_program(path, body, [("fp16", STATE)], [STATE])


def operation(package: MLPackage, kind: str) -> Message:
    return next(entry for entry in package.block("main").operations if entry.type == kind)


def unknown_operator(package: MLPackage) -> None:
    operation(package, "mul").type = "frobnicate"


def unknown_value(package: MLPackage) -> None:
    operation(package, "add").inputs["x"].arguments[0].name = "nothing"


def unknown_output(package: MLPackage) -> None:
    package.block("main").outputs[0] = "nothing"


def made_twice(package: MLPackage) -> None:
    operation(package, "mul").outputs[0].name = "total"


def state_taken_as_a_tensor(package: MLPackage) -> None:
    operation(package, "mul").inputs["x"].arguments[0].name = "s0"


def tensor_taken_as_a_state(package: MLPackage) -> None:
    operation(package, "read_state").inputs["input"].arguments[0].name = "x0"


def nothing_to_write(package: MLPackage) -> None:
    del operation(package, "write_state").inputs["data"]


def huge_state(package: MLPackage) -> None:
    for declared in package.function("main").inputs:
        if declared.name == "s0":
            tensor = declared.type.stateType.wrappedType.tensorType
            tensor.dimensions[0].constant.size = 1 << 40


def inner_block(package: MLPackage) -> None:
    operation(package, "mul").blocks.add()


def makes_nothing(package: MLPackage) -> None:
    del operation(package, "mul").outputs[:]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (unknown_operator, "operator frobnicate that makes 'result': no operator of that name"),
        (unknown_value, "argument 'x' is 'nothing', which no operator before makes"),
        (unknown_output, "returns 'nothing', which nothing makes"),
        (made_twice, "the value 'total' is made twice"),
        (state_taken_as_a_tensor, "operator mul .* takes a state that was not read"),
        (tensor_taken_as_a_state, "operator read_state .* 'input' is no state"),
        (nothing_to_write, "operator write_state.* has no 'data'"),
        (huge_state, "state 's0' has shape .* at most 8 GiB"),
        (inner_block, "operator mul .* has an inner block"),
        (makes_nothing, "operator mul: makes nothing"),
    ],
)
def test_a_wrong_program_is_refused_before_it_runs(
    small: Path, damage: Callable[[MLPackage], None], message: str
) -> None:
    package = MLPackage(small)
    damage(package)
    with pytest.raises(ArtifactError, match=message):
        Interpreter(package)


def another_size(package: MLPackage) -> None:
    operation(package, "mul").outputs[0].type.tensorType.dimensions[0].constant.size = 5


def another_kind(package: MLPackage) -> None:
    operation(package, "mul").outputs[0].type.tensorType.dataType = 23


def missing_argument(package: MLPackage) -> None:
    del operation(package, "mul").inputs["y"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (another_size, r"'result': declares fp16 \(5, 3, 4\) and made .* \(2, 3, 4\)"),
        (another_kind, r"'result': declares int32 \(2, 3, 4\) and made torch.float32"),
        (missing_argument, "operator mul that makes 'result': argument 'y' is absent"),
    ],
)
def test_a_program_that_fails_says_where(
    small: Path, damage: Callable[[MLPackage], None], message: str
) -> None:
    package = MLPackage(small)
    damage(package)
    with pytest.raises(SessionError, match=message):
        run_with(Interpreter(package), normal(*STATE))


def test_inputs_must_be_those_that_are_declared(small: Path) -> None:
    interpreter = Interpreter(MLPackage(small))
    with pytest.raises(SessionError, match=r"takes \['x0'\] and got \['tokens'\]"):
        interpreter.run({"tokens": normal(*STATE)})
    with pytest.raises(SessionError, match=r"input 'x0' is fp16 \(2, 3, 4\); got .* \(4,\)"):
        run_with(interpreter, normal(4))
    with pytest.raises(SessionError, match=r"input 'x0' is fp16 .*; got torch.int32"):
        run_with(interpreter, np.zeros(STATE, np.int32))
    with pytest.raises(SessionError, match="has no value 'nothing'"):
        interpreter.run({"x0": normal(*STATE)}, ["nothing"])


def test_inner_values_are_handed_out(small: Path) -> None:
    x = normal(*STATE)
    found = Interpreter(MLPackage(small)).run({"x0": x}, ["total"])
    np.testing.assert_allclose(found["result"], 2 * x, rtol=1e-6)
    np.testing.assert_allclose(found["total"], x, rtol=1e-6)
