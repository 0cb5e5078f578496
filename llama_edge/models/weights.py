"""Names and shapes of a network's weights, off its graph."""

from collections.abc import Iterator, Mapping
from itertools import chain

from llama_edge.core.model_config import ModelConfig
from llama_edge.models.blocks import Linear, Rotation
from llama_edge.models.network import Node, network_of
from llama_edge.models.weight_names import EMBEDDING, LM_HEAD


def _vectors(nodes: tuple[Node, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    shapes = chain.from_iterable(node.shapes.items() for node in nodes)
    return ((name, shape) for name, shape in shapes if len(shape) == 1)


def block_linear_shapes(config: ModelConfig) -> Mapping[str, tuple[int, int]]:
    """(out_features, in_features) of each linear of a block, by its path in the block."""
    return {
        node.name.split(".", 3)[3]: (rows, columns)
        for node in network_of(config).linears(0)
        for rows, columns in [node.shapes[node.weight]]
    }


def block_linear_weights(config: ModelConfig) -> int:
    """How many weights the linears of one block have."""
    return sum(rows * columns for rows, columns in block_linear_shapes(config).values())


def block_linear_names(config: ModelConfig) -> Iterator[str]:
    """Every block linear's weight name, layer by layer."""
    network = network_of(config)
    for layer in range(config.num_hidden_layers):
        yield from (node.weight for node in network.linears(layer))


def linear_rows(config: ModelConfig) -> Mapping[str, int]:
    """Rows of every linear, the head included, by the name of its weight."""
    found = network_of(config).of_kind(Linear)
    return {node.weight: node.shapes[node.weight][0] for node in found}


def weight_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight that a checkpoint of this config has.

    In each block vectors come first. A tied checkpoint has no `lm_head.weight`: the head is the
    embedding.
    """
    network = network_of(config)
    embedding = network.by_name[EMBEDDING.removesuffix(".weight")]
    shapes = {**embedding.shapes}
    for layer in range(config.num_hidden_layers):
        nodes = tuple(network.in_layer(layer).values())
        shapes |= dict(_vectors(nodes))
        shapes |= {node.weight: node.shapes[node.weight] for node in network.linears(layer)}
    for node in network.head.values():
        if not isinstance(node.block, Rotation):
            shapes |= node.shapes
    if config.tie_word_embeddings:
        del shapes[LM_HEAD]
    return shapes


def float_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight that stays float32: all vectors, and a head's rotation."""
    network = network_of(config)
    rotations = network.of_kind(Rotation)
    return dict(_vectors(network.nodes)) | {
        node.weight: node.shapes[node.weight] for node in rotations
    }
