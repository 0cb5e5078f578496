"""Bytes of a bundle's model files, part by part as each backend stores them.

The three layouts are those of `export/{executorch,onnx,coreml}`, written down a second time so that
a plan needs no backend's SDK; the tests compare them with written files.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from llama_edge.core.model_config import ModelConfig
from llama_edge.core.recipe import Recipe
from llama_edge.models.network import network_of
from llama_edge.models.weights import block_linear_shapes
from llama_edge.plan.estimate import ArtifactSize


def _aligned(sizes: Iterable[int], alignment: Callable[[int], int]) -> int:
    """The end of tensors that follow each other, each from a multiple of its alignment on."""
    end = 0
    for size in sizes:
        end += -end % alignment(size) + size
    return end


def _rotations(config: ModelConfig) -> list[int]:
    """float32 matrices of a rotated network: the head's, and R4's one or two."""
    sizes = [4 * config.hidden_size**2] if config.head_rotation else []
    return sizes + [4 * order**2 for order in dict.fromkeys(config.down_proj_rotation or ())]


def _shapes(config: ModelConfig, *, fused: bool) -> list[tuple[int, int]]:
    """(O, I) of one block's products; fused ones have their rows stacked."""
    if not fused:
        return list(block_linear_shapes(config).values())
    stacks = [
        [node.shapes[node.weight] for node in stack]
        for stack in network_of(config).stacked_linears(0)
    ]
    return [(sum(rows for rows, _ in stack), stack[0][1]) for stack in stacks]


def _table(rows: int, config: ModelConfig, recipe: Recipe) -> list[int]:
    """Codes and scales of the embedding or the head, as Core ML and ONNX hold them."""
    columns = config.hidden_size
    scales = 1 if recipe.table_bits == 8 else columns // recipe.group_size
    return [rows * columns * recipe.table_bits // 8, rows * 2 * scales]


def _codes_and_scales(
    shapes: Iterable[tuple[int, int]], recipe: Recipe, scale_bytes: int
) -> list[int]:
    sizes = []
    for rows, columns in shapes:
        sizes.append(rows * columns * recipe.weight_bits // 8)
        sizes.append(rows * (columns // recipe.group_size) * scale_bytes)
    return sizes


def block_bytes(config: ModelConfig, recipe: Recipe) -> int:
    """Codes and bfloat16 scales of all block linears, int8 ones of a mixed recipe included.

    Which linears become int8 is chosen by measurement; the budget is what a plan can know, and the
    choice leaves less than one linear of it unspent.
    """
    one = sum(_codes_and_scales(_shapes(config, fused=False), recipe, 2))
    return int(one * config.num_hidden_layers * (1 + recipe.extra_bytes))


def _extra(config: ModelConfig, recipe: Recipe) -> int:
    plain = sum(_codes_and_scales(_shapes(config, fused=False), recipe, 2))
    return block_bytes(config, recipe) - plain * config.num_hidden_layers


def _streamed(config: ModelConfig, recipe: Recipe, head_width: int = 1) -> int:
    """Blocks, head, rotations and norms, each once."""
    norms = 4 * config.hidden_size * (2 * config.num_hidden_layers + 1)
    head = config.head_rows * (config.hidden_size * head_width + 4)
    if recipe.table_bits < 8:
        head = sum(_table(config.head_rows, config, recipe))
    return block_bytes(config, recipe) + head + norms + sum(_rotations(config))


def _executorch(config: ModelConfig, recipe: Recipe, max_context: int) -> int:
    """One `.pte`: table and RoPE, the delegates' graphs, then each weight in a segment."""
    layers, width, vocab = config.num_hidden_layers, config.hidden_size, config.vocab_size
    rope = 2 * max_context * config.head_dim
    constants = _aligned([vocab * width, 4 * vocab, rope, rope], lambda _: 64)
    # XNNPACK graphs and ExecuTorch's program: as measured, to a few bytes for longer numbers.
    graphs = [3728, *[7008] * (layers - 1), 3728, 1648]
    front = 7040 + 1792 * layers
    block = [*_codes_and_scales(_shapes(config, fused=True), recipe, 2), 4 * width, 4 * width]
    weights = block * layers + [4 * width, 4 * width, 4] + _rotations(config)
    if not config.tie_word_embeddings:
        weights += [config.head_rows * width, 4 * config.head_rows]
    return front + _aligned([constants, *graphs, *weights], lambda _: 128)


def _onnx(config: ModelConfig, recipe: Recipe, max_context: int) -> int:
    """`model.onnx`, `model.onnx.data` and `genai_config.json`; large tensors start on a page."""
    layers, width = config.num_hidden_layers, config.hidden_size
    table = _table(config.vocab_size, config, recipe)
    rope = 2 * max_context * config.head_dim
    data = [*table, 4, rope, rope, *_rotations(config), 4 * width]
    qkv, *others = _shapes(config, fused=True)
    attention = _codes_and_scales([qkv, others[0]], recipe, 2)
    mlp = _codes_and_scales(others[1:], recipe, 2)
    data += [*attention, 4 * width, *mlp, 4 * width] * layers
    if not config.tie_word_embeddings:
        data += _table(config.head_rows, config, recipe)
    graph = 3440 + 5405 * layers
    return graph + 1020 + _aligned(data, lambda size: 4096 if size >= 4096 else 64)


def _coreml(config: ModelConfig, recipe: Recipe, max_context: int) -> int:
    """The package: manifest, program and blobs, each with a header of 64 bytes."""
    layers, width, vocab = config.num_hidden_layers, config.hidden_size, config.vocab_size
    table = _table(config.vocab_size, config, recipe)
    rope = 2 * max_context * config.head_dim
    shapes = _shapes(config, fused=False)
    rows = {vocab, *(shape[0] for shape in shapes)}
    data = [*table, rope, rope, 4 * max_context, *(2 * count for count in rows)]
    data += [*_codes_and_scales(shapes, recipe, 2), 4 * width, 4 * width] * layers
    data += [4 * width, *_rotations(config)]
    if not config.tie_word_embeddings:
        data += _table(config.head_rows, config, recipe)
    program = 9700 + 20350 * layers
    blobs = [part for size in data for part in (64, size)]
    return 545 + program + 64 + _aligned(blobs, lambda _: 64)


_LAYOUTS: Final[Mapping[str, Callable[[ModelConfig, Recipe, int], int]]] = {
    "coreml": _coreml,
    "executorch": _executorch,
    "onnx": _onnx,
}


def artifact_size(
    config: ModelConfig, recipe: Recipe, backend: str, max_context: int
) -> ArtifactSize:
    """Bytes of what `backend` writes for a model quantized by `recipe`.

    Args:
        config: Rotated already, where the recipe rotates.
        recipe: How codes and scales are laid out.
        backend: One of the exporters' names.
        max_context: Tokens that the KV cache and the RoPE tables hold.
    """
    file_bytes = _LAYOUTS[backend](config, recipe, max_context) + _extra(config, recipe)
    # Without int8 activations ONNX Runtime has no 8-bit kernel: the head is float32 in memory.
    wide = backend == "onnx" and recipe.activation_bits is None
    return ArtifactSize(
        file_bytes=file_bytes,
        streamed_bytes=_streamed(config, recipe, head_width=4 if wide else 1),
    )
