"""Each MIL operator with its attributes, and what PyTorch makes of the same input."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from coremltools.converters.mil import Builder as mb  # noqa: N813
from numpy.typing import NDArray
from torch import Tensor

Var = Any
GENERATOR = np.random.default_rng(0)


def normal(*shape: int) -> NDArray[np.float32]:
    return GENERATOR.standard_normal(shape).astype(np.float32)


def integers(low: int, high: int, *shape: int) -> NDArray[np.int32]:
    return GENERATOR.integers(low, high, shape).astype(np.int32)


@dataclass(frozen=True)
class Case:
    """A program over `given`, and what PyTorch makes of the same numbers."""

    body: Callable[..., Var]
    expected: Callable[..., Tensor]
    given: Sequence[NDArray[Any]]
    #: whether coremltools can evaluate it without Core ML
    evaluated: bool = True


A, B = normal(2, 3, 4), normal(2, 3, 4)
POSITIVE = np.abs(normal(2, 3, 4)) + np.float32(0.1)
WHOLE = integers(-9, 10, 2, 3, 4)
DIVISORS = np.where(integers(0, 2, 2, 3, 4) > 0, 3, -4).astype(np.int32)
CUBE = normal(3, 4, 5)
WEIGHT, BIAS = normal(6, 4), normal(6)
QUERY, KEY, VALUE = normal(1, 2, 3, 8), normal(1, 2, 5, 8), normal(1, 2, 5, 8)
MASK = normal(1, 1, 3, 5)
SEEN = integers(0, 2, 1, 1, 3, 5)
SEEN[..., 0] = 1
TABLE = normal(7, 3)


def as_integer(x: Var) -> Var:
    """Booleans cannot leave a program."""
    return mb.cast(x=x, dtype="int32")


def unary(
    name: str, expected: Callable[[Tensor], Tensor], x: NDArray[Any] = A, *, evaluated: bool = True
) -> dict[str, Case]:
    return {name: Case(lambda x: getattr(mb, name)(x=x), expected, [x], evaluated)}


def binary(name: str, expected: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Case]:
    """Of floats, of integers, and of shapes that broadcast."""

    def body(x: Var, y: Var) -> Var:
        return getattr(mb, name)(x=x, y=y)

    return {
        name: Case(body, expected, [A, B]),
        f"{name}-integers": Case(body, expected, [WHOLE, DIVISORS]),
        f"{name}-broadcast": Case(body, expected, [A, normal(3, 1)]),
    }


def comparison(name: str, expected: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Case]:
    def body(x: Var, y: Var) -> Var:
        return as_integer(getattr(mb, name)(x=x, y=y))

    pair = integers(0, 3, 4, 5), integers(0, 3, 4, 5)
    return {name: Case(body, lambda x, y: expected(x, y).int(), pair)}


def logical(name: str, expected: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Case]:
    def body(x: Var, y: Var) -> Var:
        first, second = (mb.cast(x=value, dtype="bool") for value in (x, y))
        return as_integer(getattr(mb, name)(x=first, y=second))

    pair = integers(0, 2, 4, 5), integers(0, 2, 4, 5)
    return {name: Case(body, lambda x, y: expected(x.bool(), y.bool()).int(), pair)}


def reduction(name: str, expected: Callable[..., Tensor], x: NDArray[Any] = A) -> dict[str, Case]:
    def with_axes(axes: Sequence[int], *, keep: bool) -> Case:
        return Case(
            lambda x: getattr(mb, name)(x=x, axes=axes, keep_dims=keep),
            lambda x: expected(x, dim=list(axes), keepdim=keep),
            [x],
        )

    return {
        name: with_axes([-1], keep=True),
        f"{name}-two_axes": with_axes([0, 2], keep=False),
    }


def slicing(
    expected: Callable[[Tensor], Tensor],
    begin: Sequence[int],
    end: Sequence[int],
    **masks: Sequence[Any],
) -> Case:
    return Case(lambda x: mb.slice_by_index(x=x, begin=begin, end=end, **masks), expected, [CUBE])


def updated(x: Tensor, index: tuple[slice, ...], update: Tensor) -> Tensor:
    copy = x.clone()
    copy[index] = update
    return copy


def attention(query: Var, key: Var, value: Var, **mask: Var) -> Var:
    return mb.scaled_dot_product_attention(query=query, key=key, value=value, **mask)


CASES: Mapping[str, Case] = {
    **unary("abs", torch.abs),
    **unary("ceil", torch.ceil),
    **unary("cos", torch.cos),
    **unary("erf", torch.erf),
    **unary("exp", torch.exp),
    **unary("exp2", torch.exp2),
    **unary("floor", torch.floor),
    **unary("identity", torch.clone),
    **unary("inverse", lambda x: 1 / (x + 1e-4), POSITIVE),
    "inverse-epsilon": Case(
        lambda x: mb.inverse(x=x, epsilon=0.25), lambda x: 1 / (x + 0.25), [POSITIVE]
    ),
    **unary("log", torch.log, POSITIVE),
    "log-epsilon": Case(
        lambda x: mb.log(x=x, epsilon=0.25), lambda x: torch.log(x + 0.25), [POSITIVE]
    ),
    **unary("relu", torch.relu),
    **unary("round", torch.round, 3 * A),
    **unary("rsqrt", torch.rsqrt, POSITIVE),
    "rsqrt-epsilon": Case(
        lambda x: mb.rsqrt(x=x, epsilon=0.25), lambda x: torch.rsqrt(x + 0.25), [POSITIVE]
    ),
    **unary("sigmoid", torch.sigmoid),
    **unary("sign", torch.sign),
    **unary("silu", F.silu, evaluated=False),
    **unary("sin", torch.sin),
    **unary("sqrt", torch.sqrt, POSITIVE),
    **unary("square", torch.square),
    **unary("tanh", torch.tanh),
    "logical_not": Case(
        lambda x: as_integer(mb.logical_not(x=mb.cast(x=x, dtype="bool"))),
        lambda x: (x == 0).int(),
        [integers(0, 2, 4, 5)],
    ),
    **binary("add", torch.add),
    **binary("floor_div", lambda x, y: torch.div(x, y, rounding_mode="floor")),
    **binary("maximum", torch.maximum),
    **binary("minimum", torch.minimum),
    **binary("mod", torch.remainder),
    **binary("mul", torch.mul),
    **binary("sub", torch.sub),
    "pow": Case(lambda x, y: mb.pow(x=x, y=y), torch.pow, [POSITIVE, B]),
    "real_div": Case(lambda x, y: mb.real_div(x=x, y=y), torch.div, [A, POSITIVE]),
    **comparison("equal", torch.eq),
    **comparison("greater", torch.gt),
    **comparison("greater_equal", torch.ge),
    **comparison("less", torch.lt),
    **comparison("less_equal", torch.le),
    **comparison("not_equal", torch.ne),
    **logical("logical_and", torch.logical_and),
    **logical("logical_or", torch.logical_or),
    **logical("logical_xor", torch.logical_xor),
    "cast": Case(lambda x: mb.cast(x=x, dtype="int32"), lambda x: x.int(), [5 * A]),
    "cast-float": Case(lambda x: mb.cast(x=x, dtype="fp32"), lambda x: x.float(), [WHOLE]),
    "cast-int8": Case(
        lambda x: mb.cast(x=mb.cast(x=x, dtype="int8"), dtype="int32"), lambda x: x, [WHOLE]
    ),
    "cast-bool": Case(
        lambda x: as_integer(mb.cast(x=x, dtype="bool")), lambda x: (x != 0).int(), [WHOLE]
    ),
    "clip": Case(lambda x: mb.clip(x=x, alpha=-0.5, beta=0.7), lambda x: x.clamp(-0.5, 0.7), [A]),
    "cumsum": Case(lambda x: mb.cumsum(x=x, axis=1), lambda x: x.cumsum(1), [A]),
    "cumsum-exclusive": Case(
        lambda x: mb.cumsum(x=x, axis=2, exclusive=True),
        lambda x: x.cumsum(2) - x,
        [WHOLE],
        evaluated=False,
    ),
    "cumsum-reverse": Case(
        lambda x: mb.cumsum(x=x, axis=-1, exclusive=True, reverse=True),
        lambda x: x.flip(-1).cumsum(-1).flip(-1) - x,
        [WHOLE],
        evaluated=False,
    ),
    "gelu": Case(lambda x: mb.gelu(x=x), F.gelu, [A]),
    "gelu-tanh": Case(
        lambda x: mb.gelu(x=x, mode="TANH_APPROXIMATION"),
        lambda x: F.gelu(x, approximate="tanh"),
        [A],
    ),
    "gelu-sigmoid": Case(
        lambda x: mb.gelu(x=x, mode="SIGMOID_APPROXIMATION"),
        lambda x: x * torch.sigmoid(1.702 * x),
        [A],
    ),
    "softmax": Case(lambda x: mb.softmax(x=x, axis=-1), lambda x: x.softmax(-1), [A]),
    "softmax-first": Case(lambda x: mb.softmax(x=x, axis=0), lambda x: x.softmax(0), [A]),
    "reduce_argmax": Case(
        lambda x: mb.reduce_argmax(x=x, axis=1, keep_dims=True),
        lambda x: x.argmax(1, keepdim=True),
        [A],
    ),
    **reduction("reduce_max", torch.amax),
    **reduction("reduce_mean", torch.mean),
    **reduction("reduce_min", torch.amin),
    **reduction("reduce_sum", torch.sum),
    "reduce_sum-all_axes": Case(
        lambda x: mb.expand_dims(x=mb.reduce_sum(x=x), axes=[0]), lambda x: x.sum()[None], [A]
    ),
    "band_part": Case(
        lambda x: mb.band_part(x=x, lower=1, upper=0), lambda x: x.triu(-1).tril(0), [normal(5, 5)]
    ),
    "band_part-upper": Case(
        lambda x: mb.band_part(x=x, lower=0, upper=-1), lambda x: x.triu(), [normal(5, 5)]
    ),
    "concat": Case(
        lambda x, y: mb.concat(values=[x, y, x], axis=-1),
        lambda x, y: torch.cat([x, y, x], -1),
        [A, B],
    ),
    "concat-first": Case(
        lambda x, y: mb.concat(values=[x, y], axis=0), lambda x, y: torch.cat([x, y]), [A, B]
    ),
    "concat-one": Case(lambda x: mb.concat(values=[x], axis=0), lambda x: x, [A]),
    "expand_dims": Case(
        lambda x: mb.expand_dims(x=x, axes=[0, -1]), lambda x: x[None, ..., None], [A]
    ),
    "fill": Case(
        lambda x: mb.mul(x=x, y=mb.fill(shape=[2, 1, 4], value=2.5)), lambda x: x * 2.5, [A]
    ),
    "fill_like": Case(
        lambda x: mb.fill_like(ref_tensor=x, value=7), lambda x: torch.full_like(x, 7), [WHOLE]
    ),
    "gather": Case(
        lambda x, i: mb.gather(x=x, indices=i, axis=0),
        lambda x, i: x[i],
        [TABLE, integers(0, 7, 2, 5)],
    ),
    "gather-last": Case(
        lambda x, i: mb.gather(x=x, indices=i, axis=-1),
        lambda x, i: x[:, i],
        [TABLE, integers(0, 3, 4)],
    ),
    "gather-negative": Case(
        lambda x, i: mb.gather(x=x, indices=i, axis=0),
        lambda x, i: x[i],
        [TABLE, integers(-7, 0, 4)],
    ),
    "gather_along_axis": Case(
        lambda x, i: mb.gather_along_axis(x=x, indices=i, axis=1),
        lambda x, i: torch.take_along_dim(x, i.long(), 1),
        [TABLE, integers(0, 3, 7, 2)],
    ),
    "range_1d": Case(
        lambda x: mb.mul(x=x, y=mb.range_1d(start=2, end=14, step=3)),
        lambda x: x * torch.arange(2, 14, 3),
        [WHOLE],
    ),
    "reshape": Case(lambda x: mb.reshape(x=x, shape=[4, -1]), lambda x: x.reshape(4, 6), [A]),
    "reshape-keeps": Case(
        lambda x: mb.reshape(x=x, shape=[0, 4, -1]), lambda x: x.reshape(2, 4, 3), [A]
    ),
    "select": Case(
        lambda c, x, y: mb.select(cond=mb.greater(x=c, y=0), a=x, b=y),
        lambda c, x, y: torch.where(c > 0, x, y),
        [WHOLE, A, B],
    ),
    "shape": Case(lambda x: mb.shape(x=x), lambda x: torch.tensor(x.shape), [A]),
    "slice_by_index": slicing(lambda x: x[1:3, 0:4, 2:4], [1, 0, 2], [3, 4, 4]),
    "slice_by_index-stride": slicing(
        lambda x: x[0:3:2, 1:4:2, 0:5:3], [0, 1, 0], [3, 4, 5], stride=[2, 2, 3]
    ),
    "slice_by_index-negative": slicing(lambda x: x[-2:3, :-1, -3:-1], [-2, 0, -3], [3, -1, -1]),
    "slice_by_index-masks": slicing(
        lambda x: x[:2, 1:, :],
        [2, 1, 3],
        [2, 2, 1],
        begin_mask=[True, False, True],
        end_mask=[False, True, True],
    ),
    "slice_by_index-squeeze": slicing(
        lambda x: x[1, :, 2], [1, 0, 2], [2, 4, 3], squeeze_mask=[True, False, True]
    ),
    "slice_by_index-backwards": slicing(
        lambda x: x.flip(1)[:, :, :2],
        [0, 3, 0],
        [3, 0, 2],
        stride=[1, -1, 1],
        end_mask=[False, True, False],
    ),
    "slice_by_size": Case(
        lambda x: mb.slice_by_size(x=x, begin=[1, 0, 2], size=[2, -1, 3]),
        lambda x: x[1:3, :, 2:5],
        [CUBE],
    ),
    "slice_update": Case(
        lambda x, u: mb.slice_update(x=x, update=u, begin=[1, 0, 2], end=[3, 4, 4]),
        lambda x, u: updated(x, np.s_[1:3, 0:4, 2:4], u),
        [CUBE, normal(2, 4, 2)],
    ),
    "slice_update-stride": Case(
        lambda x, u: mb.slice_update(
            x=x,
            update=u,
            begin=[0, 1, 0],
            end=[3, 4, 0],
            stride=[2, 1, 2],
            end_mask=[False, False, True],
        ),
        lambda x, u: updated(x, np.s_[0:3:2, 1:4, 0:5:2], u),
        [CUBE, normal(2, 3, 3)],
    ),
    "split": Case(
        lambda x: mb.concat(values=mb.split(x=x, num_splits=2, axis=-1)[::-1], axis=-1),
        lambda x: torch.cat(x.chunk(2, -1)[::-1], -1),
        [A],
    ),
    "split-sizes": Case(
        lambda x: mb.concat(values=mb.split(x=x, split_sizes=[1, 3], axis=2)[::-1], axis=2),
        lambda x: torch.cat([x[..., 1:], x[..., :1]], 2),
        [A],
    ),
    "squeeze": Case(lambda x: mb.squeeze(x=x, axes=[1]), lambda x: x[:, 0], [normal(2, 1, 3, 1)]),
    "squeeze-all": Case(lambda x: mb.squeeze(x=x), lambda x: x.squeeze(), [normal(2, 1, 3, 1)]),
    "stack": Case(
        lambda x, y: mb.stack(values=[x, y], axis=1), lambda x, y: torch.stack([x, y], 1), [A, B]
    ),
    "tile": Case(lambda x: mb.tile(x=x, reps=[1, 2, 3]), lambda x: x.tile(1, 2, 3), [A]),
    "transpose": Case(
        lambda x: mb.transpose(x=x, perm=[2, 0, 1]), lambda x: x.permute(2, 0, 1), [A]
    ),
    "transpose-negative": Case(
        lambda x: mb.transpose(x=x, perm=[0, -1, -2]), lambda x: x.transpose(1, 2), [A]
    ),
    "layer_norm": Case(
        lambda x: mb.layer_norm(x=x, axes=[-1], gamma=BIAS[:4], beta=BIAS[1:5], epsilon=1e-3),
        lambda x: F.layer_norm(
            x, [4], torch.from_numpy(BIAS[:4]), torch.from_numpy(BIAS[1:5]), 1e-3
        ),
        [A],
    ),
    "layer_norm-two_axes": Case(
        lambda x: mb.layer_norm(x=x, axes=[1, 2]), lambda x: F.layer_norm(x, [3, 4]), [A]
    ),
    "linear": Case(
        lambda x: mb.linear(x=x, weight=WEIGHT, bias=BIAS),
        lambda x: x @ torch.from_numpy(WEIGHT).T + torch.from_numpy(BIAS),
        [A],
    ),
    "matmul": Case(lambda x, y: mb.matmul(x=x, y=y), torch.matmul, [A, normal(4, 5)]),
    "matmul-transposed": Case(
        lambda x, y: mb.matmul(x=x, y=y, transpose_x=True, transpose_y=True),
        lambda x, y: x.mT @ y.mT,
        [A, normal(2, 5, 3)],
    ),
    "scaled_dot_product_attention": Case(
        attention, F.scaled_dot_product_attention, [QUERY, KEY, VALUE], evaluated=False
    ),
    "scaled_dot_product_attention-mask": Case(
        lambda q, k, v, m: attention(q, k, v, attn_mask=m),
        F.scaled_dot_product_attention,
        [QUERY, KEY, VALUE, MASK],
        evaluated=False,
    ),
    "scaled_dot_product_attention-seen": Case(
        lambda q, k, v, m: attention(q, k, v, attn_mask=mb.cast(x=m, dtype="bool")),
        lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m.bool()),
        [QUERY, KEY, VALUE, SEEN],
        evaluated=False,
    ),
}
