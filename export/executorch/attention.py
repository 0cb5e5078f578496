"""Attention between two delegates: keys and values go into the caches, all of them are asked.

Source: `extension/llm/custom_ops` in ExecuTorch. A cache is a piece of the arena that every layer
has for itself; what a call computes on the way is in pieces that the layers share.

Key/value heads are the operators' batch, so that each head's keys are one after the other in
memory, in the order in which a token's queries read them.

Shape legend: T tokens of the call, K key/value heads, G query heads that share one of them, H
head_dim, S max_context.
"""

from dataclasses import dataclass
from itertools import count
from typing import Final, Protocol

from executorch.exir.scalar_type import ScalarType

from llama_edge.backends.executorch.program import PlanBuilder
from llama_edge.core.artifact import KVCacheDtype
from llama_edge.core.cache_state import KINDS, cache_name
from llama_edge.core.model_config import ModelConfig

FLOAT_OPERATOR: Final = "llama::custom_sdpa"
INT8_OPERATOR: Final = "llama::custom_quantized_sdpa"
_WIDTH_BYTES: Final = {
    ScalarType.CHAR: 1,
    ScalarType.FLOAT: 4,
    ScalarType.DOUBLE: 8,
    ScalarType.LONG: 8,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Positions:
    """The method's integers: T, and how many tokens are known before this call."""

    count: int
    known: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionValues:
    """The method's values that attention reads, and the one it writes; all float32."""

    #: (K, T, G, H), (K, T, 1, H), (K, T, 1, H)
    query: int
    key: int
    value: int
    #: (K, T, G * H)
    attended: int


class Attention(Protocol):
    """Writes one layer's instructions; each call has caches of its own."""

    values: AttentionValues

    def attend(self) -> None:
        """Store this call's keys and values after the known ones, and ask all of them."""
        ...


def make_attention(
    plan: PlanBuilder,
    config: ModelConfig,
    dtype: KVCacheDtype,
    positions: Positions,
    max_context: int,
    max_prefill: int,
) -> Attention:
    """The instructions for caches of `dtype` that hold `max_context` tokens."""
    tensors = _Tensors(plan, config, positions, max_context, max_prefill)
    if dtype.rotates_heads:
        return Int8Attention(tensors)
    return FloatAttention(tensors)


class _Tensors:
    """What both kinds of attention are made of."""

    def __init__(
        self,
        plan: PlanBuilder,
        config: ModelConfig,
        positions: Positions,
        max_context: int,
        max_prefill: int,
    ) -> None:
        self.plan = plan
        self.config = config
        self.known = positions.known
        self._max_context = max_context
        self._max_prefill = max_prefill
        self._layers = count()
        self._updated = plan.tensor((1,), place=plan.arena.allocate(4))
        groups, width = config.num_key_value_heads, config.query_size // config.num_key_value_heads
        self._flat = plan.integer_list([plan.integer(groups), positions.count, plan.integer(width)])
        self._answer = self.fresh(config.queries_per_group, config.head_dim, ScalarType.FLOAT)
        self.values = AttentionValues(
            query=self.fresh(config.queries_per_group, config.head_dim, ScalarType.FLOAT),
            key=self.fresh(1, config.head_dim, ScalarType.FLOAT),
            value=self.fresh(1, config.head_dim, ScalarType.FLOAT),
            attended=plan.alias(self._answer, (groups, max_prefill, width)),
        )

    def _tensor(
        self, shape: tuple[int, ...], dtype: ScalarType, *, dynamic: bool, name: str | None = None
    ) -> int:
        size = _WIDTH_BYTES[dtype]
        for length in shape:
            size *= length
        place = self.plan.arena.allocate(size)
        return self.plan.tensor(shape, dtype=dtype, place=place, dynamic=dynamic, name=name)

    def next_names(self) -> list[str]:
        """What the next layer's keys and values are called, by `core.cache_state`."""
        layer = next(self._layers)
        return [cache_name(kind, layer) for kind in KINDS]

    def fresh(self, heads: int, width: int, dtype: ScalarType) -> int:
        """Values of this call's tokens (K, T, heads, width); the layers share them."""
        shape = self.config.num_key_value_heads, self._max_prefill, heads, width
        return self._tensor(shape, dtype, dynamic=True)

    def cached(self, fresh: int, width: int, dtype: ScalarType, name: str) -> int:
        """A new cache (K, S, 1, width) that gets the call's values (K, T, 1, width)."""
        shape = self.config.num_key_value_heads, self._max_context, 1, width
        cache = self._tensor(shape, dtype, dynamic=False, name=name)
        updated = self._updated
        self.plan.call("llama::update_cache", "out", [fresh, cache, self.known, updated, updated])
        return cache

    def ask(self, operator: str, arguments: list[int]) -> None:
        """Run attention; its answer is `values.attended` in another view."""
        answer = self._answer
        self.plan.call(operator, "out", [*arguments, answer, answer])
        self.plan.call(
            "executorch_prim::et_view", "default", [answer, self._flat, self.values.attended]
        )


class FloatAttention:
    """Caches in float32."""

    def __init__(self, tensors: _Tensors) -> None:
        self._tensors, self.values = tensors, tensors.values
        plan = tensors.plan
        none = plan.null()
        self._options = [tensors.known, none, plan.number(0.0), plan.boolean(True), none]

    def attend(self) -> None:
        """See `Attention`."""
        tensors, width = self._tensors, self._tensors.config.head_dim
        names, fresh = tensors.next_names(), (self.values.key, self.values.value)
        key, value = (
            tensors.cached(one, width, ScalarType.FLOAT, name)
            for one, name in zip(fresh, names, strict=True)
        )
        tensors.ask(FLOAT_OPERATOR, [self.values.query, key, value, *self._options])


@dataclass(frozen=True, slots=True)
class _Rows:
    """Values of codes (K, T, heads, H) int8, zero points int8 and steps float32 (..., 1)."""

    codes: int
    zero_points: int
    steps: int


class Int8Attention:
    """Caches in int8, one step and zero point per token and head (`core.cache_rows`)."""

    def __init__(self, tensors: _Tensors) -> None:
        self._tensors, self.values = tensors, tensors.values
        plan, config = tensors.plan, tensors.config
        queries = config.queries_per_group
        self._query, self._key, self._value = (
            _Rows(
                tensors.fresh(heads, config.head_dim, ScalarType.CHAR),
                tensors.fresh(heads, 1, ScalarType.CHAR),
                tensors.fresh(heads, 1, ScalarType.FLOAT),
            )
            for heads in (queries, 1, 1)
        )
        # The operator chooses wider numbers than attention takes.
        self._wide_steps = tensors.fresh(queries, 1, ScalarType.DOUBLE)
        self._wide_zero_points = tensors.fresh(queries, 1, ScalarType.LONG)
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

    def _cached(self, rows: _Rows, name: str) -> _Rows:
        width, cached = self._tensors.config.head_dim, self._tensors.cached
        return _Rows(
            cached(rows.codes, width, ScalarType.CHAR, f"{name}.codes"),
            cached(rows.zero_points, 1, ScalarType.CHAR, f"{name}.zero_points"),
            cached(rows.steps, 1, ScalarType.FLOAT, f"{name}.scales"),
        )

    def attend(self) -> None:
        """See `Attention`."""
        values, query, known, none = self.values, self._query, self._tensors.known, self._none
        for x, rows in (
            (values.query, query),
            (values.key, self._key),
            (values.value, self._value),
        ):
            self._quantize(x, rows)
        names = self._tensors.next_names()
        key, value = map(self._cached, (self._key, self._value), names)
        arguments = [query.codes, key.codes, value.codes, known, none, self._dropout, self._yes]
        scales = [part for rows in (query, key, value) for part in (rows.zero_points, rows.steps)]
        self._tensors.ask(INT8_OPERATOR, [*arguments, none, *scales, self._no])
