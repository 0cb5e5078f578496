"""A network's blocks in XNNPACK's operators: one emitter for each building block.

The residual stream leaves a delegate only where attention needs the KV cache, so one graph runs
from one attention to the next: o_proj, residual, norm, SwiGLU, residual, and the next block's
norm, QKV and RoPE. That makes L + 1 delegates for L blocks, plus the head.

Shape legend: T tokens (an upper bound), D hidden, Q query_size, K key/value heads, G query heads
that share one of them, H head_dim.
"""

from llama_edge.backends.executorch.weights import WeightStore
from llama_edge.backends.executorch.xnnpack_graph import Value, XnnpackGraph
from llama_edge.core.model_config import ModelConfig
from llama_edge.models.blocks import (
    Add,
    Attention,
    Embedding,
    Hadamard,
    HeadNorm,
    Linear,
    OutputRows,
    RMSNorm,
    Rope,
    Rotation,
    SwiGLU,
)
from llama_edge.models.network import COS, SIN, TOKENS, Emitters, Node, network_of


class BlockBuilder:
    """Builds the delegates' graphs.

    Args:
        config: The model's.
        store: Gets the weights as they are met.
        max_tokens: Of one call.
        rotates_heads: R3: queries and keys are rotated after RoPE, as an int8 cache wants them.
    """

    def __init__(
        self,
        *,
        config: ModelConfig,
        store: WeightStore,
        max_tokens: int,
        rotates_heads: bool = False,
    ) -> None:
        self.config = config
        self.store = store
        self.max_tokens = max_tokens
        self.rotates_heads = rotates_heads
        self.network = network_of(config)
        attentions = [self.network.linears_before(node) for node in self._attentions()]
        #: linears that are one product here, by the name of each
        self.stacks = {linear.name: linears for linears in attentions for linear in linears}
        self._emitters = Emitters[Value](
            {
                Embedding: self._embedding,
                OutputRows: lambda node, x: x,  # the method's own work
                RMSNorm: self._norm,
                Linear: self._linear,
                Rotation: self._rotation,
                HeadNorm: self._head_norm,
                Rope: self._turn,
                Attention: self._attention,
                SwiGLU: self._swiglu,
                Hadamard: self._hadamard,
                Add: self._add,
            }
        )
        self._graphs: list[XnnpackGraph] = []
        #: of the graph that is being built, by name
        self._values: dict[str, Value] = {}
        #: what several nodes share: stacked products, rounded inputs, rotated heads
        self._shared: dict[str, Value] = {}
        #: the name of the residual stream, and where the graph leaves it
        self._stream = ""
        self._out: Value | None = None

    def graphs(self) -> tuple[XnnpackGraph, ...]:
        """Every delegate, in the order of the method's plan.

        (x, cos, sin) -> (q, k, v) of the first block; (x, attention, cos, sin) -> (x', q, k, v)
        from each attention to the next; (x, attention) -> x' after the last; and of one token,
        x (1, 1, D) -> the head's product (1, 1, R).
        """
        self._graphs = []
        self.network.walk({name: name for name in (TOKENS, COS, SIN)}, self._emit)
        return tuple(self._graphs)

    def _attentions(self) -> tuple[Node, ...]:
        return tuple(self.network.of_kind(Attention))

    @property
    def _graph(self) -> XnnpackGraph:
        return self._graphs[-1]

    def _emit(self, node: Node, names: tuple[str, ...]) -> str:
        """The walk carries names: a value belongs to one graph, and the stream to each in turn."""
        inputs = (self._values[name] for name in names if name != TOKENS)
        self._values[node.name] = self._emitters(node, tuple(inputs))
        return node.name

    def _start(self, *shape: int) -> Value:
        """A new graph, with its first input, which is the stream."""
        self._graphs.append(XnnpackGraph())
        stream = self._graph.input(shape)
        self._values, self._shared = {self._stream: stream}, {}
        return stream

    def _take_rope(self) -> None:
        shape = (1, self.max_tokens, 1, self.config.head_dim // 2)
        self._values |= {name: self._graph.input(shape) for name in (COS, SIN)}

    def _embedding(self, node: Node) -> Value:
        """The look-up is an operator of the method; the first delegate gets its rows."""
        self._stream = node.name
        stream = self._start(1, self.max_tokens, self.config.hidden_size)
        self._take_rope()
        return stream

    def _norm(self, node: Node, x: Value) -> Value:
        if node.layer is None:  # the head, of a call's last token
            x = self._start(1, 1, self.config.hidden_size)
            self._out = self._graph.output((1, 1, self.config.head_rows))
        return self._rms_norm(self._graph, x, node.weight)

    def _rms_norm(self, graph: XnnpackGraph, x: Value, name: str) -> Value:
        """XNNPACK's schema has no mean over the last axis: a linear of 1 / D with bias eps is."""
        width = x.shape[-1]
        mean_key, eps_key = self.store.mean_constants(width)
        mean = graph.constant(mean_key, (1, width))
        eps = graph.constant(eps_key, (1,))
        inverse = graph.reciprocal_square_root(graph.linear(graph.square(x), mean, eps))
        ones = (1,) * (len(x.shape) - 1)
        weight = graph.constant(self.store.vector(name), (*ones, width))
        return graph.multiply(graph.multiply(x, inverse), weight)

    def _linear(self, node: Node, x: Value) -> Value:
        """One linear over int8 activations; a stack of them is made with its first."""
        stack = self.stacks.get(node.name, (node,))
        first = stack[0].name
        if first not in self._shared:
            out = self._out if node.layer is None else None
            product = self._product(self._rounded(node.inputs[0], x), stack, out)
            self._shared[first] = self._heads(product) if len(stack) > 1 else product
        return self._shared[first]

    def _rounded(self, name: str, x: Value) -> Value:
        """The input of linears, rounded once for all of them."""
        key = f"{name}, rounded"
        if key not in self._shared:
            self._shared[key] = self._graph.quantize_per_token(x)
        return self._shared[key]

    def _product(self, x: Value, stack: tuple[Node, ...], out: Value | None) -> Value:
        """Several linears are stacked along the output."""
        names = [linear.weight for linear in stack]
        biases = [linear.bias for linear in stack if linear.bias is not None]
        if self.store.is_int8(names):
            weight = self._graph.int8_filter(*self.store.int8(names))
        else:
            weight = self._graph.int4_filter(*self.store.int4(names))
        bias = None
        if biases:
            key, length = self.store.bias(biases)
            bias = self._graph.constant(key, (length,))
        return self._graph.linear(x, weight, bias, out=out)

    def _heads(self, stacked: Value) -> Value:
        """Stacked queries, keys and values as (K, T, G + 2, H)."""
        groups, queries = self.config.num_key_value_heads, self.config.queries_per_group
        by_token = self._graph.reshape(stacked, (0, groups, queries + 2, self.config.head_dim))
        return self._graph.transpose(by_token, (1, 0, 2, 3))

    def _head_norm(self, node: Node, heads: Value) -> Value:
        """Of the queries, then of the keys in the stack; RoPE takes both together."""
        stack = [linear.name for linear in self.stacks[node.inputs[0]]]
        queries = self.config.queries_per_group
        is_key = stack.index(node.inputs[0]) == 1
        part = self._graph.slice(heads, {2: (queries, 1) if is_key else (0, queries)})
        normed = self._rms_norm(self._graph, part, node.weight)
        if is_key:
            normed = self._graph.concatenate([self._shared["normed"], normed], axis=2)
        self._shared["normed"] = normed
        return normed

    def _turn(self, node: Node, heads: Value, cos: Value, sin: Value) -> Value:
        """RoPE, and R3, of queries and keys together: they are neighbours in the stack."""
        del node
        if "turned" not in self._shared:
            heads = self._shared.get("normed", heads)
            turned = self._rope(heads, self.config.queries_per_group + 1, cos, sin)
            self._shared["turned"] = self._rotate_heads(self._graph, turned)
        return self._shared["turned"]

    def _rope(self, heads: Value, turned: int, cos: Value, sin: Value) -> Value:
        """The first `turned` heads, each half against the other.

        Four products of halves move less than two of whole heads next to a swapped copy.
        """
        graph, half = self._graph, self.config.head_dim // 2
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

    def _attention(self, node: Node, turned: Value, _: Value, heads: Value) -> Value:
        """The end of one graph, whose outputs are q (K,T,G,H), k and v (K,T,1,H), and the next one.

        What is between them, caches and attention, is the method's.
        """
        config, tokens = self.config, self.max_tokens
        groups, queries, head_dim = (
            config.num_key_value_heads,
            config.queries_per_group,
            config.head_dim,
        )
        query = self._graph.output((groups, tokens, queries, head_dim))
        key, value = (self._graph.output((groups, tokens, 1, head_dim)) for _ in range(2))
        self._graph.slice(turned, {2: (0, queries)}, out=query)
        self._graph.slice(turned, {2: (queries, 1)}, out=key)
        self._graph.slice(heads, {2: (queries + 1, 1)}, out=value)
        self._start(1, tokens, config.hidden_size)
        attended = self._graph.input((groups, tokens, config.query_size // groups))
        if node is not self._attentions()[-1]:
            self._take_rope()
        self._out = self._graph.output((1, tokens, config.hidden_size))
        by_token = self._graph.transpose(attended, (1, 0, 2))
        return self._graph.reshape(by_token, (1, 0, config.query_size))

    def _swiglu(self, node: Node, gate: Value, up: Value) -> Value:
        del node
        graph = self._graph
        return graph.multiply(graph.multiply(gate, graph.sigmoid(gate)), up)

    def _hadamard(self, node: Node, product: Value) -> Value:
        """R4 (`core.hadamard.rotate_product`): a small float product, or two and a transpose."""
        assert isinstance(node.block, Hadamard)
        graph, width = self._graph, self.config.intermediate_size
        *others, last = (
            graph.constant(self.store.hadamard(order), (order, order))
            for order in node.block.orders
        )
        order = last.shape[0]
        turned = graph.linear(graph.reshape(product, (1, 0, width // order, order)), last)
        for matrix in others:
            turned = graph.linear(graph.transpose(turned, (0, 1, 3, 2)), matrix)
        return graph.reshape(turned, (1, 0, width))

    def _rotation(self, node: Node, x: Value) -> Value:
        del node
        width = self.config.hidden_size
        return self._graph.linear(
            x, self._graph.constant(self.store.head_rotation(), (width, width))
        )

    def _add(self, node: Node, x: Value, branch: Value) -> Value:
        """A block's last one leaves the graph."""
        self._stream = node.name
        leaves = self.network.leaves_layer(node)
        return self._graph.add(x, branch, out=self._out if leaves else None)
