"""Operators that work number by number, and those that reduce axes.

Source: `coremltools/converters/mil/mil/ops/defs/iOS15/{elementwise_*,reduction,activation}.py`.
"""

from collections.abc import Callable, Mapping
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from llama_edge.core.errors import SessionError
from llama_edge.runtimes.coreml.arguments import Arguments

#: What `cast` calls a type, as the type that carries out the conversion.
_CAST_TYPES: Final = {
    "fp16": torch.float32,  # the interpreter rounds to it, if it was asked to
    "fp32": torch.float32,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "int16": torch.int16,
    "uint16": torch.uint16,
    "int32": torch.int32,
    "bool": torch.bool,
}


def _unary(function: Callable[[Tensor], Tensor]) -> Callable[[Arguments], Tensor]:
    return lambda arguments: function(arguments.tensor("x"))


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Arguments], Tensor]:
    return lambda arguments: function(arguments.tensor("x"), arguments.tensor("y"))


def _shifted(function: Callable[[Tensor], Tensor], epsilon: float) -> Callable[[Arguments], Tensor]:
    """A function with a pole at zero, evaluated `epsilon` next to it."""
    return lambda arguments: function(arguments.tensor("x") + arguments.number("epsilon", epsilon))


def _reduction(
    function: Callable[[Tensor, list[int], bool], Tensor],
) -> Callable[[Arguments], Tensor]:
    def reduce(arguments: Arguments) -> Tensor:
        x = arguments.tensor("x")
        axes = arguments.integers("axes") if "axes" in arguments else list(range(x.dim()))
        return function(x, axes, arguments.flag("keep_dims", False))

    return reduce


def _arg_max(arguments: Arguments) -> Tensor:
    return torch.argmax(
        arguments.tensor("x"),
        dim=arguments.integer("axis", -1),
        keepdim=arguments.flag("keep_dims", False),
    )


def _cast(arguments: Arguments) -> Tensor:
    name = arguments.text("dtype", "")
    if name not in _CAST_TYPES:
        raise SessionError(f"a cast to {name!r}; known: {', '.join(_CAST_TYPES)}")
    converted = arguments.tensor("x").to(_CAST_TYPES[name])
    if converted.is_floating_point() or converted.dtype == torch.bool:
        return converted
    return converted.long()


def _gelu(arguments: Arguments) -> Tensor:
    x = arguments.tensor("x")
    mode = arguments.text("mode", "EXACT")
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="tanh" if mode == "TANH_APPROXIMATION" else "none")


def _clip(arguments: Arguments) -> Tensor:
    return arguments.tensor("x").clamp(arguments.number("alpha"), arguments.number("beta"))


def _floor_div(x: Tensor, y: Tensor) -> Tensor:
    return torch.div(x, y, rounding_mode="floor")


def _softmax(arguments: Arguments) -> Tensor:
    return torch.softmax(arguments.tensor("x"), arguments.integer("axis", -1))


def _cumulative_sum(arguments: Arguments) -> Tensor:
    """Of all numbers up to each one; without itself if exclusive, from the end if reverse."""
    x, axis = arguments.tensor("x"), arguments.integer("axis", 0)
    turned = x.flip(axis) if arguments.flag("reverse", False) else x
    total = torch.cumsum(turned, axis)
    if arguments.flag("exclusive", False):
        total = total - turned
    return total.flip(axis) if arguments.flag("reverse", False) else total


ELEMENTWISE: Final[Mapping[str, Callable[[Arguments], Tensor]]] = {
    "abs": _unary(torch.abs),
    "ceil": _unary(torch.ceil),
    "cos": _unary(torch.cos),
    "erf": _unary(torch.erf),
    "exp": _unary(torch.exp),
    "exp2": _unary(torch.exp2),
    "floor": _unary(torch.floor),
    "identity": _unary(torch.clone),
    "inverse": _shifted(torch.reciprocal, 1e-4),
    "log": _shifted(torch.log, 1e-45),
    "logical_not": _unary(torch.logical_not),
    "relu": _unary(torch.relu),
    "round": _unary(torch.round),
    "rsqrt": _shifted(torch.rsqrt, 1e-12),
    "sigmoid": _unary(torch.sigmoid),
    "sign": _unary(torch.sign),
    "silu": _unary(F.silu),
    "sin": _unary(torch.sin),
    "sqrt": _unary(torch.sqrt),
    "square": _unary(torch.square),
    "tanh": _unary(torch.tanh),
    "add": _binary(torch.add),
    "equal": _binary(torch.eq),
    "floor_div": _binary(_floor_div),
    "greater": _binary(torch.gt),
    "greater_equal": _binary(torch.ge),
    "less": _binary(torch.lt),
    "less_equal": _binary(torch.le),
    "logical_and": _binary(torch.logical_and),
    "logical_or": _binary(torch.logical_or),
    "logical_xor": _binary(torch.logical_xor),
    "maximum": _binary(torch.maximum),
    "minimum": _binary(torch.minimum),
    "mod": _binary(torch.remainder),
    "mul": _binary(torch.mul),
    "not_equal": _binary(torch.ne),
    "pow": _binary(torch.pow),
    "real_div": _binary(torch.div),
    "sub": _binary(torch.sub),
    "cast": _cast,
    "clip": _clip,
    "cumsum": _cumulative_sum,
    "gelu": _gelu,
    "softmax": _softmax,
    "reduce_argmax": _arg_max,
    "reduce_max": _reduction(torch.amax),
    "reduce_mean": _reduction(torch.mean),
    "reduce_min": _reduction(torch.amin),
    "reduce_sum": _reduction(torch.sum),
}
