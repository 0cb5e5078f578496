"""Operators that make, move and choose numbers without computing new ones.

Source: `coremltools/converters/mil/mil/ops/defs/iOS15/{tensor_transformation,tensor_operation,
scatter_gather}.py` and `iOS18/tensor_transformation.py`.
"""

from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor

from llama_edge.core.errors import SessionError
from llama_edge.runtimes.coreml.arguments import Arguments
from llama_edge.runtimes.coreml.weights import Weight


def slice_index(arguments: Arguments, shape: torch.Size) -> tuple[slice | int, ...]:
    """What begin, end, stride and their masks choose, as NumPy would write it."""
    rank = len(shape)
    begin, end = arguments.integers("begin"), arguments.integers("end")
    stride = arguments.integers("stride") if "stride" in arguments else [1] * rank
    begin_mask, end_mask, squeeze = (
        arguments.flags(name, rank) for name in ("begin_mask", "end_mask", "squeeze_mask")
    )
    if {rank} != {len(part) for part in (begin, end, stride, begin_mask, end_mask, squeeze)}:
        raise SessionError(f"a slice of {rank} axes whose begin, end or masks have another number")
    return tuple(
        (0 if begin_mask[axis] else begin[axis])
        if squeeze[axis]
        else slice(
            None if begin_mask[axis] else begin[axis],
            None if end_mask[axis] else end[axis],
            stride[axis],
        )
        for axis in range(rank)
    )


def _slice_by_index(arguments: Arguments) -> Tensor:
    x = arguments.tensor("x")
    index = list(slice_index(arguments, x.shape))
    for axis, part in enumerate(index):
        if isinstance(part, slice) and part.step is not None and part.step < 0:
            # torch has no negative steps
            chosen = range(x.shape[axis])[part]
            x = x.index_select(axis, torch.tensor(list(chosen), dtype=torch.long))
            index[axis] = slice(None)
    return x[tuple(index)]


def _slice_by_size(arguments: Arguments) -> Tensor:
    x = arguments.tensor("x")
    begin, size = arguments.integers("begin"), arguments.integers("size")
    for axis, (first, count) in enumerate(zip(begin, size, strict=True)):
        first = first + x.shape[axis] if first < 0 else first
        x = x.narrow(axis, first, x.shape[axis] - first if count == -1 else count)
    return x


def slice_update(arguments: Arguments, *, in_place: bool = False) -> Tensor:
    """`x` with a slice of it replaced by `update`; its own memory is written `in_place`."""
    x, update = arguments.tensor("x"), arguments.tensor("update")
    index = slice_index(arguments, x.shape)
    if not in_place:
        x = x.clone()
    target = x[index]
    if target.shape != update.shape:
        raise SessionError(f"an update {tuple(update.shape)} of a slice {tuple(target.shape)}")
    target.copy_(update)
    return x


def _reshape(arguments: Arguments) -> Tensor:
    x = arguments.tensor("x")
    shape = arguments.integers("shape")
    return x.reshape([x.shape[axis] if size == 0 else size for axis, size in enumerate(shape)])


def _expand_dims(arguments: Arguments) -> Tensor:
    x = arguments.tensor("x")
    axes = arguments.integers("axes")
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _squeeze(arguments: Arguments) -> Tensor:
    x = arguments.tensor("x")
    return x.squeeze(tuple(arguments.integers("axes"))) if "axes" in arguments else x.squeeze()


def _concat(arguments: Arguments) -> Tensor:
    if arguments.flag("interleave", False):
        raise SessionError("a concat with interleave is not known")
    values = [
        value.reshape(1) if not value.dim() else value for value in arguments.tensors("values")
    ]
    return torch.cat(values, arguments.integer("axis"))


def _split(arguments: Arguments) -> tuple[Tensor, ...]:
    x, axis = arguments.tensor("x"), arguments.integer("axis")
    if "split_sizes" in arguments:
        return torch.split(x, arguments.integers("split_sizes"), axis)
    count = arguments.integer("num_splits")
    if count < 1 or x.shape[axis] % count:
        raise SessionError(f"an axis of {x.shape[axis]} cannot be split into {count} equal parts")
    return torch.split(x, x.shape[axis] // count, axis)


def _gather(arguments: Arguments) -> Tensor:
    x, indices = arguments.value("x"), arguments.tensor("indices")
    axis = arguments.integer("axis", 0)
    if arguments.integer("batch_dims", 0):
        raise SessionError("a gather with batch_dims is not known")
    axis %= len(x.shape)
    flat = indices.reshape(-1)
    flat = torch.where(flat < 0, flat + x.shape[axis], flat)
    if isinstance(x, Weight) and axis == 0:
        rows = x.select(flat)
    else:
        rows = arguments.tensor("x").index_select(axis, flat)
    return rows.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def _gather_along_axis(arguments: Arguments) -> Tensor:
    x, indices, axis = (
        arguments.tensor("x"),
        arguments.tensor("indices"),
        arguments.integer("axis", 0),
    )
    return torch.take_along_dim(x, torch.where(indices < 0, indices + x.shape[axis], indices), axis)


def _range(arguments: Arguments) -> Tensor:
    start, end, step = (arguments.tensor(name) for name in ("start", "end", "step"))
    return torch.arange(start.item(), end.item(), step.item(), dtype=start.dtype)


def _fill(arguments: Arguments) -> Tensor:
    value = arguments.tensor("value") if "value" in arguments else torch.tensor(0.0)
    return value.reshape(()).expand(arguments.integers("shape")).clone()


def _fill_like(arguments: Arguments) -> Tensor:
    value = arguments.tensor("value") if "value" in arguments else torch.tensor(0.0)
    return value.reshape(()).expand(arguments.tensor("ref_tensor").shape).clone()


def _band_part(arguments: Arguments) -> Tensor:
    """Keeps `lower` diagonals below the main one and `upper` above it; -1 is all of them."""
    x = arguments.tensor("x")
    lower, upper = arguments.integer("lower", -1), arguments.integer("upper", -1)
    x = torch.triu(x, -lower) if lower >= 0 else x
    return torch.tril(x, upper) if upper >= 0 else x.clone()


LAYOUT: Final[Mapping[str, Callable[[Arguments], Tensor | tuple[Tensor, ...]]]] = {
    "band_part": _band_part,
    "concat": _concat,
    "expand_dims": _expand_dims,
    "fill": _fill,
    "fill_like": _fill_like,
    "gather": _gather,
    "gather_along_axis": _gather_along_axis,
    "range_1d": _range,
    "reshape": _reshape,
    "select": lambda arguments: torch.where(
        arguments.tensor("cond").bool(), arguments.tensor("a"), arguments.tensor("b")
    ),
    "shape": lambda arguments: torch.tensor(arguments.tensor("x").shape, dtype=torch.long),
    "slice_by_index": _slice_by_index,
    "slice_by_size": _slice_by_size,
    "slice_update": slice_update,
    "split": _split,
    "squeeze": _squeeze,
    "stack": lambda arguments: torch.stack(arguments.tensors("values"), arguments.integer("axis")),
    "tile": lambda arguments: arguments.tensor("x").repeat(arguments.integers("reps")),
    "transpose": lambda arguments: arguments.tensor("x").permute(arguments.integers("perm")),
}
