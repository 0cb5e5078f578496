"""Attention between two delegates: keys and values go into the caches, all of them are asked.

Source: `extension/llm/custom_ops` in ExecuTorch. A cache is a piece of the arena that every layer
has for itself; what a call computes on the way lies in pieces that the layers share.

Key/value heads are the operators' batch, so that each head's keys lie one after the other. That
lets one operator on the same bytes do two things. For a prompt, a group's G queries are G heads of
T tokens. For a single token they are one head of G tokens that ask every key: so the keys are read
once for the group, not once for each query. The program is one for all lengths; a few scalars at
its start choose the view.

Shape legend: T tokens of the call, K key/value heads, G query heads that share one of them, H
head_dim, S max_context.
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
        """Store this call's keys and values behind the known ones, and ask all of them."""
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
    if dtype is KVCacheDtype.INT8:
        return Int8Attention(tensors)
    return FloatAttention(tensors)


class _Asking:
    """How a group's queries are put to the operator: scalars, computed once for all layers."""

    def __init__(self, plan: PlanBuilder, config: ModelConfig, positions: Positions) -> None:
        self._plan = plan
        one, group = plan.integer(1), plan.integer(config.queries_per_group)
        # The G tokens end where the single token does; they may not begin before the first one.
        back = plan.integer(config.queries_per_group - 1)
        far = self._scalar("ge", [positions.known, back], plan.flag_slot())
        alone = self._scalar("eq", [positions.count, one], plan.flag_slot())
        heads = self._scalar("sym_ite", [far, one, group])
        #: of one batch: 1 for a single token, else G
        self.heads = self._scalar("sym_ite", [alone, heads, group])
        queries = self._scalar("mul", [positions.count, group])
        #: of one head: G for a single token, else T
        self.tokens = self._scalar("floordiv", [queries, self.heads])
        end = self._scalar("add", [positions.known, positions.count])
        #: the position of the first of them
        self.start = self._scalar("sub", [end, self.tokens])
        #: whether each asks only the keys up to its own
        self.causal = self._scalar("eq", [self.tokens, positions.count], plan.flag_slot())

    def _scalar(self, operator: str, arguments: list[int], slot: int | None = None) -> int:
        out = self._plan.integer_slot() if slot is None else slot
        self._plan.call(f"executorch_prim::{operator}", "Scalar", [*arguments, out])
        return out


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
        self.asking = _Asking(plan, config, positions)
        self.known = positions.known
        self._max_context = max_context
        self._max_prefill = max_prefill
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

    def _tensor(self, shape: tuple[int, ...], dtype: ScalarType, *, dynamic: bool) -> int:
        size = _WIDTH_BYTES[dtype]
        for length in shape:
            size *= length
        place = self.plan.arena.allocate(size)
        return self.plan.tensor(shape, dtype=dtype, place=place, dynamic=dynamic)

    def fresh(self, heads: int, width: int, dtype: ScalarType) -> int:
        """Values of this call's tokens (K, T, heads, width); the layers share them."""
        shape = self.config.num_key_value_heads, self._max_prefill, heads, width
        return self._tensor(shape, dtype, dynamic=True)

    def cached(self, fresh: int, width: int, dtype: ScalarType) -> int:
        """A new cache (K, S, 1, width) that gets the call's values (K, T, 1, width)."""
        shape = self.config.num_key_value_heads, self._max_context, 1, width
        cache = self._tensor(shape, dtype, dynamic=False)
        updated = self._updated
        self.plan.call("llama::update_cache", "out", [fresh, cache, self.known, updated, updated])
        return cache

    def asked(self, fresh: int, width: int) -> "_View":
        """The queries (K, T, G, width), or a part of them, as they are asked."""
        plan, groups = self.plan, self.config.num_key_value_heads
        shape = groups, self._max_prefill, self.config.queries_per_group, width
        sizes = [plan.integer(groups), self.asking.tokens, self.asking.heads, plan.integer(width)]
        return _View(plan, fresh, plan.alias(fresh, shape), plan.integer_list(sizes))

    def ask(self, operator: str, arguments: list[int]) -> None:
        """Run attention; its answer is `values.attended` in another view."""
        answer = self._answer
        self.plan.call(operator, "out", [*arguments, answer, answer])
        self.plan.call(
            "executorch_prim::et_view", "default", [answer, self._flat, self.values.attended]
        )


@dataclass(frozen=True, slots=True)
class _View:
    """A tensor and another shape of it; a view is made anew whenever the tensor is."""

    plan: PlanBuilder
    source: int
    out: int
    sizes: int

    def make(self) -> int:
        """The value, with the instruction that gives it its shape."""
        self.plan.call("executorch_prim::et_view", "default", [self.source, self.sizes, self.out])
        return self.out


class FloatAttention:
    """Caches in float32."""

    def __init__(self, tensors: _Tensors) -> None:
        self._tensors, self.values = tensors, tensors.values
        plan, asking = tensors.plan, tensors.asking
        self._query = tensors.asked(self.values.query, tensors.config.head_dim)
        none = plan.null()
        self._options = [asking.start, none, plan.number(0.0), asking.causal, none]

    def attend(self) -> None:
        """See `Attention`."""
        tensors, width = self._tensors, self._tensors.config.head_dim
        key, value = (
            tensors.cached(fresh, width, ScalarType.FLOAT)
            for fresh in (self.values.key, self.values.value)
        )
        tensors.ask(FLOAT_OPERATOR, [self._query.make(), key, value, *self._options])


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
        query = self._query
        self._asked = [
            tensors.asked(part, width)
            for part, width in (
                (query.codes, config.head_dim),
                (query.zero_points, 1),
                (query.steps, 1),
            )
        ]
        # The operator chooses wider numbers than attention takes.
        self._wide_steps = tensors.fresh(queries, 1, ScalarType.DOUBLE)
        self._wide_zero_points = tensors.fresh(queries, 1, ScalarType.LONG)
        self._chosen = plan.tensor_list([self._wide_steps, self._wide_zero_points])
        self._none, self._char = plan.null(), plan.integer(ScalarType.CHAR)
        self._range = [plan.integer(-128), plan.integer(127)]
        self._order = plan.integer_list([plan.integer(axis) for axis in range(4)])
        self._no, self._dropout = plan.boolean(False), plan.number(0)

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

    def _cached(self, rows: _Rows) -> _Rows:
        width, cached = self._tensors.config.head_dim, self._tensors.cached
        return _Rows(
            cached(rows.codes, width, ScalarType.CHAR),
            cached(rows.zero_points, 1, ScalarType.CHAR),
            cached(rows.steps, 1, ScalarType.FLOAT),
        )

    def attend(self) -> None:
        """See `Attention`."""
        values, asking, none = self.values, self._tensors.asking, self._none
        for x, rows in (
            (values.query, self._query),
            (values.key, self._key),
            (values.value, self._value),
        ):
            self._quantize(x, rows)
        key, value = self._cached(self._key), self._cached(self._value)
        query = _Rows(*(view.make() for view in self._asked))
        arguments = [query.codes, key.codes, value.codes, asking.start, none, self._dropout]
        scales = [part for rows in (query, key, value) for part in (rows.zero_points, rows.steps)]
        self._tensors.ask(INT8_OPERATOR, [*arguments, asking.causal, none, *scales, self._no])
