"""Attention between two delegates: keys and values go into the caches, all of them are asked.

Source: `extension/llm/custom_ops` in ExecuTorch. A cache is a piece of the arena that every layer
has for itself; what a call computes on the way lies in pieces that the layers share.
"""

from dataclasses import dataclass
from typing import Final, Protocol

from executorch.exir.scalar_type import ScalarType

from llama_edge.core.model_config import ModelConfig
from llama_edge.core.types import KVCacheDtype
from llama_edge.export.executorch.program import PlanBuilder

FLOAT_OPERATOR: Final = "llama::custom_sdpa"
INT8_OPERATOR: Final = "llama::custom_quantized_sdpa"
_WIDTH_BYTES: Final = {
    ScalarType.CHAR: 1,
    ScalarType.FLOAT: 4,
    ScalarType.DOUBLE: 8,
    ScalarType.LONG: 8,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionValues:
    """The method's values that attention reads, and the one it writes."""

    #: (1, T, N, H), (1, T, K, H), (1, T, K, H) float32
    query: int
    key: int
    value: int
    #: tokens known before this call
    position: int
    #: (1, T, N, H) float32
    attended: int


class Attention(Protocol):
    """Writes one layer's instructions; each call has caches of its own."""

    def attend(self, values: AttentionValues) -> None:
        """Store this call's keys and values behind the known ones, and ask all of them."""
        ...


def make_attention(
    plan: PlanBuilder, config: ModelConfig, dtype: KVCacheDtype, max_context: int, max_prefill: int
) -> Attention:
    """The instructions for caches of `dtype` that hold `max_context` tokens."""
    tensors = _Tensors(plan, config, max_context, max_prefill)
    if dtype is KVCacheDtype.INT8:
        return Int8Attention(tensors)
    return FloatAttention(tensors)


class _Tensors:
    """What both kinds of attention are made of."""

    def __init__(
        self, plan: PlanBuilder, config: ModelConfig, max_context: int, max_prefill: int
    ) -> None:
        self.plan = plan
        self.config = config
        self._max_context = max_context
        self._max_prefill = max_prefill
        self._updated = plan.tensor((1,), place=plan.arena.allocate(4))

    def _tensor(self, shape: tuple[int, ...], dtype: ScalarType, *, dynamic: bool) -> int:
        size = _WIDTH_BYTES[dtype]
        for length in shape:
            size *= length
        place = self.plan.arena.allocate(size)
        return self.plan.tensor(shape, dtype=dtype, place=place, dynamic=dynamic)

    def shared(self, heads: int, width: int, dtype: ScalarType) -> int:
        """Values of this call's tokens (1, T, heads, width)."""
        return self._tensor((1, self._max_prefill, heads, width), dtype, dynamic=True)

    def cached(self, fresh: int, width: int, dtype: ScalarType, position: int) -> int:
        """A new cache (1, S, K, width) that gets the call's values (1, T, K, width)."""
        shape = 1, self._max_context, self.config.num_key_value_heads, width
        cache = self._tensor(shape, dtype, dynamic=False)
        updated = self._updated
        self.plan.call("llama::update_cache", "out", [fresh, cache, position, updated, updated])
        return cache


class FloatAttention:
    """Caches in float32."""

    def __init__(self, tensors: _Tensors) -> None:
        self._tensors = tensors
        plan = tensors.plan
        self._options = [plan.null(), plan.number(0.0), plan.boolean(True), plan.null()]

    def attend(self, values: AttentionValues) -> None:
        """See `Attention`."""
        width = self._tensors.config.head_dim
        key, value = (
            self._tensors.cached(fresh, width, ScalarType.FLOAT, values.position)
            for fresh in (values.key, values.value)
        )
        arguments = [values.query, key, value, values.position, *self._options]
        self._tensors.plan.call(
            FLOAT_OPERATOR, "out", [*arguments, values.attended, values.attended]
        )


@dataclass(frozen=True, slots=True)
class _Rows:
    """Values of codes (1, T, heads, H) int8, zero points int8 and steps float32 (..., 1)."""

    codes: int
    zero_points: int
    steps: int


class Int8Attention:
    """Caches in int8, one step and zero point per token and head (`core.cache_rows`)."""

    def __init__(self, tensors: _Tensors) -> None:
        self._tensors = tensors
        plan, config = tensors.plan, tensors.config
        queries, groups = config.num_attention_heads, config.num_key_value_heads
        self._query, self._key, self._value = (
            _Rows(
                tensors.shared(heads, config.head_dim, ScalarType.CHAR),
                tensors.shared(heads, 1, ScalarType.CHAR),
                tensors.shared(heads, 1, ScalarType.FLOAT),
            )
            for heads in (queries, groups, groups)
        )
        # The operator chooses wider numbers than attention takes.
        self._wide_steps = tensors.shared(queries, 1, ScalarType.DOUBLE)
        self._wide_zero_points = tensors.shared(queries, 1, ScalarType.LONG)
        self._chosen = plan.tensor_list([self._wide_steps, self._wide_zero_points])
        self._none, self._char = plan.null(), plan.integer(ScalarType.CHAR)
        self._range = [plan.integer(-128), plan.integer(127)]
        self._order = plan.integer_list([plan.integer(axis) for axis in range(4)])
        self._no, self._yes, self._dropout = plan.boolean(False), plan.boolean(True), plan.number(0)

    def _narrow(self, wide: int, out: int) -> None:
        arguments = [wide, self._no, self._order, out, out]
        self._tensors.plan.call("dim_order_ops::_to_dim_order_copy", "out", arguments)

    def _quantize(self, x: int, rows: _Rows) -> None:
        plan, wide = self._tensors.plan, [self._wide_steps, self._wide_zero_points]
        plan.call(
            "quantized_decomposed::choose_qparams_per_token_asymmetric",
            "out",
            [x, self._char, *wide, self._chosen],
        )
        plan.call(
            "quantized_decomposed::quantize_per_token",
            "out",
            [x, *wide, *self._range, self._char, rows.codes, rows.codes],
        )
        self._narrow(self._wide_steps, rows.steps)
        self._narrow(self._wide_zero_points, rows.zero_points)

    def _cached(self, rows: _Rows, position: int) -> _Rows:
        width, cached = self._tensors.config.head_dim, self._tensors.cached
        return _Rows(
            cached(rows.codes, width, ScalarType.CHAR, position),
            cached(rows.zero_points, 1, ScalarType.CHAR, position),
            cached(rows.steps, 1, ScalarType.FLOAT, position),
        )

    def attend(self, values: AttentionValues) -> None:
        """See `Attention`."""
        for x, rows in (
            (values.query, self._query),
            (values.key, self._key),
            (values.value, self._value),
        ):
            self._quantize(x, rows)
        query, position = self._query, values.position
        key, value = self._cached(self._key, position), self._cached(self._value, position)
        none, out = self._none, values.attended
        arguments = [query.codes, key.codes, value.codes, position, none, self._dropout, self._yes]
        scales = [part for rows in (query, key, value) for part in (rows.zero_points, rows.steps)]
        self._tensors.plan.call(
            INT8_OPERATOR, "out", [*arguments, none, *scales, self._no, out, out]
        )
