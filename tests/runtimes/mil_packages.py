"""Small Core ML packages, built operator by operator and saved as they are."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

logging.getLogger("coremltools").setLevel(logging.ERROR)
import coremltools as ct  # noqa: E402
from coremltools.converters.mil import Builder as mb  # noqa: E402, N813
from coremltools.converters.mil.mil import types  # noqa: E402
from coremltools.converters.mil.mil.types import type_int  # noqa: E402

MIL_TYPES = {"fp16": types.fp16, "fp32": types.fp32, "int32": types.int32}


def low_bits(values: NDArray[Any], name: str) -> NDArray[Any]:
    """The values, marked as coremltools marks `int4`, `uint1` and the like."""
    marked: NDArray[Any] = values.astype(getattr(type_int, f"np_{name}_dtype"))
    return marked


def save_program(
    path: Path,
    body: Callable[..., Any],
    inputs: Sequence[tuple[str, tuple[int, ...]]] = (),
    states: Sequence[tuple[int, ...]] = (),
) -> Path:
    """Build `body(*inputs, *states)` of (dtype, shape) inputs and fp16 states; save it unchanged.

    Inputs are named x0, x1 and so on, states s0, s1 and so on.
    """
    specs = [mb.TensorSpec(shape, dtype=MIL_TYPES[kind]) for kind, shape in inputs]
    specs += [mb.StateTensorSpec(shape, dtype=types.fp16) for shape in states]
    names = [f"x{index}" for index in range(len(inputs))]
    names += [f"s{index}" for index in range(len(states))]
    scope: dict[str, Any] = {"body": body}
    listed = ", ".join(names)
    exec(f"def program({listed}): return body({listed})", scope)
    program = mb.program(input_specs=specs, opset_version=ct.target.iOS18)(scope["program"])
    model = ct.convert(
        program,
        convert_to="mlprogram",
        minimum_deployment_target=ct.target.iOS18,
        pass_pipeline=ct.PassPipeline.EMPTY,
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
    )
    model.save(str(path))
    return path
