"""What a Llama block is in XNNPACK's operators: one table entry per building block.

The residual stream leaves a delegate only where attention needs the KV cache, so one graph runs
from one attention to the next: o_proj, residual, norm, SwiGLU, residual, and the next block's
norm, QKV and RoPE. That makes L + 1 delegates for L blocks, plus the head.

Shape legend: T tokens (an upper bound), D hidden, Q query_size, K key/value heads, G query heads
that share one of them, H head_dim.
"""

from dataclasses import dataclass

from llama_edge.core.model_config import ModelConfig
from llama_edge.core.weight_names import FINAL_NORM, LM_HEAD, block_weight
from llama_edge.export.executorch.weights import WeightStore
from llama_edge.export.executorch.xnnpack_graph import Value, XnnpackGraph

#: (1, T, 1, H / 2) each
CosSin = tuple[Value, Value]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockBuilder:
    """Builds the delegates' graphs; weights are put into `store` as they are met."""

    config: ModelConfig
    store: WeightStore
    max_tokens: int
    #: R3: queries and keys are turned behind RoPE, as an int8 cache wants them
    rotates_heads: bool = False

    def _hidden_shape(self) -> tuple[int, ...]:
        return (1, self.max_tokens, self.config.hidden_size)

    def _rope_shape(self) -> tuple[int, ...]:
        return (1, self.max_tokens, 1, self.config.head_dim // 2)

    def _attended_shape(self) -> tuple[int, ...]:
        groups = self.config.num_key_value_heads
        return (groups, self.max_tokens, self.config.query_size // groups)

    def _rms_norm(self, graph: XnnpackGraph, x: Value, name: str) -> Value:
        """XNNPACK's schema has no mean over the last axis: a linear of 1 / D with bias eps is."""
        mean_key, eps_key = self.store.mean_constants()
        width = self.config.hidden_size
        mean = graph.constant(mean_key, (1, width))
        eps = graph.constant(eps_key, (1,))
        inverse = graph.reciprocal_square_root(graph.linear(graph.square(x), mean, eps))
        weight = graph.constant(self.store.vector(name), (1, 1, width))
        return graph.multiply(graph.multiply(x, inverse), weight)

    def _linear(
        self, graph: XnnpackGraph, x: Value, names: list[str], out: Value | None = None
    ) -> Value:
        """One linear over int8 activations; several names are stacked along the output."""
        if self.store.is_int8(names):
            weight = graph.int8_filter(*self.store.int8(names))
        else:
            weight = graph.int4_filter(*self.store.int4(names))
        return graph.linear(x, weight, out=out)

    def _rotate_product(self, graph: XnnpackGraph, product: Value) -> Value:
        """R4 (`core.hadamard.rotate_product`): two small float products around a transpose."""
        if self.config.down_proj_rotation is None:
            return product
        first, second = (
            graph.constant(self.store.hadamard(order), (order, order))
            for order in self.config.down_proj_rotation
        )
        matrix = graph.reshape(product, (1, 0, *self.config.down_proj_rotation))
        turned = graph.linear(graph.transpose(graph.linear(matrix, second), (0, 1, 3, 2)), first)
        return graph.reshape(turned, (1, 0, self.config.intermediate_size))

    def _rope(self, graph: XnnpackGraph, heads: Value, turned: int, cos_sin: CosSin) -> Value:
        """The first `turned` heads, each half against the other.

        Four products of halves move less than two of whole heads beside a swapped copy.
        """
        half = self.config.head_dim // 2
        cos, sin = cos_sin
        first, second = (
            graph.slice(heads, {2: (0, turned), 3: (start, half)}) for start in (0, half)
        )
        turned_first = graph.subtract(graph.multiply(first, cos), graph.multiply(second, sin))
        turned_second = graph.add(graph.multiply(second, cos), graph.multiply(first, sin))
        return graph.concatenate([turned_first, turned_second], axis=3)

    def _rotate_heads(self, graph: XnnpackGraph, heads: Value) -> Value:
        """R3: one small float product over each query and key head."""
        if not self.rotates_heads:
            return heads
        order = self.config.head_dim
        return graph.linear(heads, graph.constant(self.store.hadamard(order), (order, order)))

    def _queries_keys_values(self, graph: XnnpackGraph, layer: int, x: Value, rope: CosSin) -> None:
        """Norm, QKV and RoPE; defines the graph's outputs q (K,T,G,H), k and v (K,T,1,H)."""
        config = self.config
        groups, queries = config.num_key_value_heads, config.queries_per_group
        normed = self._rms_norm(graph, x, block_weight(layer, "input_layernorm"))
        parts = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        stacked = self._linear(
            graph, graph.quantize_per_token(normed), [block_weight(layer, part) for part in parts]
        )
        by_token = graph.reshape(stacked, (0, groups, queries + 2, config.head_dim))
        heads = graph.transpose(by_token, (1, 0, 2, 3))
        turned = self._rotate_heads(graph, self._rope(graph, heads, queries + 1, rope))
        tokens, head_dim = self.max_tokens, config.head_dim
        query = graph.output((groups, tokens, queries, head_dim))
        key, value = (graph.output((groups, tokens, 1, head_dim)) for _ in range(2))
        graph.slice(turned, {2: (0, queries)}, out=query)
        graph.slice(turned, {2: (queries, 1)}, out=key)
        graph.slice(heads, {2: (queries + 1, 1)}, out=value)

    def _mlp(self, graph: XnnpackGraph, layer: int, x: Value, attention: Value, out: Value) -> None:
        o_proj = [block_weight(layer, "self_attn.o_proj")]
        by_token = graph.transpose(attention, (1, 0, 2))
        attention = graph.reshape(by_token, (1, 0, self.config.query_size))
        x = graph.add(x, self._linear(graph, graph.quantize_per_token(attention), o_proj))
        normed = self._rms_norm(graph, x, block_weight(layer, "post_attention_layernorm"))
        normed = graph.quantize_per_token(normed)
        gate = self._linear(graph, normed, [block_weight(layer, "mlp.gate_proj")])
        up = self._linear(graph, normed, [block_weight(layer, "mlp.up_proj")])
        product = graph.multiply(graph.multiply(gate, graph.sigmoid(gate)), up)
        product = self._rotate_product(graph, product)
        down_proj = [block_weight(layer, "mlp.down_proj")]
        graph.add(x, self._linear(graph, graph.quantize_per_token(product), down_proj), out=out)

    def first(self) -> XnnpackGraph:
        """(x, cos, sin) -> (q, k, v) of block 0."""
        graph = XnnpackGraph()
        x = graph.input(self._hidden_shape())
        rope = graph.input(self._rope_shape()), graph.input(self._rope_shape())
        self._queries_keys_values(graph, 0, x, rope)
        return graph

    def between(self, layer: int) -> XnnpackGraph:
        """(x, attention, cos, sin) -> (x', q, k, v): the end of `layer`, the start of the next."""
        graph = XnnpackGraph()
        x = graph.input(self._hidden_shape())
        attention = graph.input(self._attended_shape())
        rope = graph.input(self._rope_shape()), graph.input(self._rope_shape())
        out = graph.output(self._hidden_shape())
        self._mlp(graph, layer, x, attention, out)
        self._queries_keys_values(graph, layer + 1, out, rope)
        return graph

    def last(self) -> XnnpackGraph:
        """(x, attention) -> x' of the last block."""
        graph = XnnpackGraph()
        x = graph.input(self._hidden_shape())
        attention = graph.input(self._attended_shape())
        out = graph.output(self._hidden_shape())
        self._mlp(graph, self.config.num_hidden_layers - 1, x, attention, out)
        return graph

    def head(self) -> XnnpackGraph:
        """One token's x (1, 1, D) -> logits (1, 1, V)."""
        graph = XnnpackGraph()
        x = graph.input((1, 1, self.config.hidden_size))
        out = graph.output((1, 1, self.config.vocab_size))
        normed = self._rms_norm(graph, x, FINAL_NORM)
        if self.config.head_rotation:
            width = self.config.hidden_size
            rotation = graph.constant(self.store.head_rotation(), (width, width))
            normed = graph.linear(normed, rotation)
        self._linear(graph, graph.quantize_per_token(normed), [LM_HEAD], out=out)
        return graph
