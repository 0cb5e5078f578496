"""A model's graph of building blocks, and the walk through it.

`torch.fx` traces the module with its blocks as leaves. A node's name is its module's path, which is
the name of the block's weight without `.weight`, and the name of the value that it gives.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Final, Generic, TypeVar

from torch import fx, nn

from llama_edge.core.model_config import ModelConfig
from llama_edge.models.blocks import Attention, Block, Linear
from llama_edge.models.llama import Llama
from llama_edge.models.qwen import Qwen2, Qwen3

V = TypeVar("V")

#: What stored matrices and traces call the product of one attention's operands.
STACK: Final = "qkv_proj"

TOKENS: Final = "tokens"
#: by `ModelConfig.family`
MODELS: Final[Mapping[str, type[Llama]]] = {"llama": Llama, "qwen2": Qwen2, "qwen3": Qwen3}

COS: Final = "cos"
SIN: Final = "sin"

#: Which of attention's inputs are the values.
VALUES: Final = 2


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One building block at its place."""

    #: of the block, and of its value
    name: str
    block: Block
    #: names of the values that go in
    inputs: tuple[str, ...]

    @property
    def weight(self) -> str:
        """The name of its weight, if it has one."""
        return f"{self.name}.weight"

    @property
    def has_weight(self) -> bool:
        """Whether it has a weight."""
        return any(True for _ in self.block.parameters())

    @property
    def bias(self) -> str | None:
        """The name of its bias, or None."""
        has_bias = isinstance(self.block, Linear) and self.block.bias is not None
        return f"{self.name}.bias" if has_bias else None

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of its weight and of its bias, by name."""
        found = self.block.named_parameters()
        return {f"{self.name}.{part}": tuple(value.shape) for part, value in found}

    @property
    def layer(self) -> int | None:
        """Which block of the network it is in; None before the first and after the last."""
        parts = self.name.split(".")
        return int(parts[2]) if self.name.startswith("model.layers.") else None

    @property
    def part(self) -> str:
        """What it is called in its layer, or at the head: the last part of its name."""
        return self.name.rpartition(".")[2]


@dataclass(frozen=True)
class Network:
    """Nodes in the order in which they are computed; the last one gives the logits."""

    nodes: tuple[Node, ...]

    @cached_property
    def by_name(self) -> Mapping[str, Node]:
        """Nodes by the name of their value."""
        return {node.name: node for node in self.nodes}

    @cached_property
    def _last_uses(self) -> Mapping[str, frozenset[str]]:
        """By node: the values that nobody needs after it."""
        last: dict[str, str] = {}
        for node in self.nodes:
            last |= dict.fromkeys(node.inputs, node.name)
        return {
            node.name: frozenset(name for name, user in last.items() if user == node.name)
            for node in self.nodes
        }

    @cached_property
    def _layers(self) -> Mapping[int, Mapping[str, Node]]:
        layers: dict[int, dict[str, Node]] = {}
        for node in self.nodes:
            if node.layer is not None:
                layers.setdefault(node.layer, {})[node.part] = node
        return layers

    def in_layer(self, layer: int) -> Mapping[str, Node]:
        """The nodes of one block by `Node.part`, in order."""
        return self._layers[layer]

    def linears(self, layer: int) -> tuple[Node, ...]:
        """The linears of one block, in order."""
        found = self.in_layer(layer).values()
        return tuple(node for node in found if isinstance(node.block, Linear))

    def linears_by_input(self, layer: int) -> tuple[tuple[Node, ...], ...]:
        """The linears of one block, in order; those that multiply the same value are together."""
        groups: dict[tuple[str, ...], list[Node]] = {}
        for node in self.linears(layer):
            groups.setdefault(node.inputs, []).append(node)
        return tuple(tuple(group) for group in groups.values())

    def stacked_linears(self, layer: int) -> tuple[tuple[Node, ...], ...]:
        """The linears of one block, in order; those of one attention's operands are together.

        Backends lower these as one product, their rows stacked: one width of codes each.
        """
        attention_of = {
            linear.name: node.name
            for node in self.in_layer(layer).values()
            if isinstance(node.block, Attention)
            for linear in self.linears_before(node)
        }
        groups: dict[str, list[Node]] = {}
        for node in self.linears(layer):
            groups.setdefault(attention_of.get(node.name, node.name), []).append(node)
        return tuple(tuple(group) for group in groups.values())

    def leaves_layer(self, node: Node) -> bool:
        """Whether its value is what the layer gives to the next one."""
        return any(user.layer != node.layer for user in self.users(node.name))

    def enters_layer(self, node: Node) -> bool:
        """Whether it reads what the layer before gave, or the embedding."""
        before = (self.by_name.get(name) for name in node.inputs)
        return any(one is not None and one.layer != node.layer for one in before)

    @cached_property
    def head(self) -> Mapping[str, Node]:
        """The nodes after the last block by `Node.part`, in order."""
        behind = list(self.nodes).index(list(self.in_layer(max(self._layers)).values())[-1]) + 1
        return {node.part: node for node in self.nodes[behind:]}

    @cached_property
    def lm_head(self) -> Node:
        """The last linear."""
        return [node for node in self.nodes if isinstance(node.block, Linear)][-1]

    def users(self, name: str) -> tuple[Node, ...]:
        """The nodes that a value goes into, in order."""
        return tuple(node for node in self.nodes if name in node.inputs)

    def linears_before(self, node: Node) -> tuple[Node, ...]:
        """The linears whose products go into `node`, with no other linear between."""
        before = (self.by_name.get(name) for name in node.inputs)
        found = [
            (one,) if isinstance(one.block, Linear) else self.linears_before(one)
            for one in before
            if one is not None
        ]
        return tuple(linear for linears in found for linear in linears)

    def of_kind(self, kind: type[Block]) -> Iterator[Node]:
        """The nodes whose block is a `kind`."""
        return (node for node in self.nodes if isinstance(node.block, kind))

    def walk(self, values: dict[str, V], emit: Callable[[Node, tuple[V, ...]], V]) -> V:
        """Make every node's value of those of its inputs; a value is let go after its last use.

        Args:
            values: Of the model's inputs, by name; it is used up.
            emit: Makes one.

        Returns:
            The last node's value.
        """
        for node in self.nodes:
            values[node.name] = emit(node, tuple(values[name] for name in node.inputs))
            for name in self._last_uses[node.name]:
                del values[name]
        return values[self.nodes[-1].name]


def product_name(linears: Sequence[Node]) -> str:
    """What is stored for linears that are one product: a linear's own name, or the stack's."""
    first = linears[0].name
    return first if len(linears) == 1 else f"{first.rpartition('.')[0]}.{STACK}"


class Emitters(Generic[V]):
    """One function for each kind of block; who runs or lowers a network has such a table."""

    def __init__(self, table: Mapping[type[Block], Callable[..., V]]) -> None:
        self._table = table

    def __call__(self, node: Node, inputs: tuple[V, ...]) -> V:
        """The value of a node."""
        return self._table[type(node.block)](node, *inputs)


class _Tracer(fx.Tracer):
    """Stops at building blocks."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        """See `fx.Tracer`."""
        del name
        return isinstance(module, Block)


@lru_cache(maxsize=8)
def network_of(config: ModelConfig) -> Network:
    """The graph of the model of that config."""
    module = MODELS[config.family](config)
    names: dict[Any, str] = {}
    nodes = []
    for found in _Tracer().trace(module).nodes:
        if found.op == "placeholder":
            names[found] = str(found.target)
        elif found.op == "call_module":
            block = module.get_submodule(str(found.target))
            assert isinstance(block, Block), f"{found.target} is no building block"
            inputs = tuple(names[value] for value in found.args)
            nodes.append(Node(name=str(found.target), block=block, inputs=inputs))
            names[found] = str(found.target)
        else:
            assert found.op == "output", f"{found.op} outside of a building block"
    return Network(tuple(nodes))
