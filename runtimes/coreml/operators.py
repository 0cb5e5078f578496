"""Every operator that the interpreter knows, by its name in MIL; and the linear algebra among them.

Source: `coremltools/converters/mil/mil/ops/defs/iOS15/{linear,normalization}.py` and
`iOS18/transformers.py`.
"""

from collections.abc import Callable, Mapping
from typing import Final

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from llama_edge.core.errors import SessionError
from llama_edge.runtimes.coreml.arguments import Arguments
from llama_edge.runtimes.coreml.elementwise import ELEMENTWISE
from llama_edge.runtimes.coreml.layout import LAYOUT
from llama_edge.runtimes.coreml.weights import Weight

Operator = Callable[[Arguments], Tensor | tuple[Tensor, ...]]


def _linear(arguments: Arguments) -> Tensor:
    x, weight, bias = (arguments.tensor("x"), arguments.value("weight"), arguments.optional("bias"))
    if isinstance(weight, Weight):
        return weight.linear(x, bias)
    return F.linear(x, weight, bias)


def _matmul(arguments: Arguments) -> Tensor:
    x, y = arguments.tensor("x"), arguments.tensor("y")
    if arguments.flag("transpose_x", False):
        x = x.transpose(-1, -2)
    if arguments.flag("transpose_y", False):
        y = y.transpose(-1, -2)
    return x @ y


def _attention(arguments: Arguments) -> Tensor:
    return F.scaled_dot_product_attention(
        arguments.tensor("query"),
        arguments.tensor("key"),
        arguments.tensor("value"),
        attn_mask=arguments.optional("attn_mask"),
    )


def _layer_norm(arguments: Arguments) -> Tensor:
    x = arguments.tensor("x")
    axes = arguments.integers("axes") if "axes" in arguments else list(range(x.dim()))
    if sorted(axis % x.dim() for axis in axes) != list(range(x.dim() - len(axes), x.dim())):
        raise SessionError(f"a layer_norm over axes {axes}; only the last ones are known")
    return F.layer_norm(
        x,
        x.shape[x.dim() - len(axes) :],
        arguments.optional("gamma"),
        arguments.optional("beta"),
        arguments.number("epsilon", 1e-5),
    )


_LINEAR_ALGEBRA: Final[Mapping[str, Operator]] = {
    "layer_norm": _layer_norm,
    "linear": _linear,
    "matmul": _matmul,
    "scaled_dot_product_attention": _attention,
}

OPERATORS: Final[Mapping[str, Operator]] = {**ELEMENTWISE, **LAYOUT, **_LINEAR_ALGEBRA}

#: Their results are numbers of their inputs, which have been rounded already.
MOVES_ONLY: Final = frozenset(LAYOUT)
