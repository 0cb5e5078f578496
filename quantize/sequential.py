"""Block linears rounded one after the other, each on what the rounded ones before it really give.

The calibration text runs through the network once. At each linear its inputs, rounded as the
artifact will round them, give the Hessian; the linear is rounded; and only then its outputs are
computed, so every later layer sees the errors of the earlier ones. Memory holds one layer's
weights and the activations between two linears; large activations lie in a file.

Shape legend: N sequences, T tokens, D hidden, Q query_size, F intermediate, I in_features.
"""

import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from llama_edge.core.model import KVCache, Llama
from llama_edge.core.packing import QuantizedTensor
from llama_edge.core.quantized_checkpoint import QuantizedEntry
from llama_edge.core.types import ActivationQuantization, Checkpoint, Recipe, Scales
from llama_edge.core.weight_names import block_weight
from llama_edge.quantize.gptq import gptq_codes
from llama_edge.quantize.groupwise import choose_scales
from llama_edge.quantize.scale_search import search_scales

#: Activations above this many bytes lie in a temporary file that the system may write out.
SPILL_BYTES: Final = 512 * 2**20


class _LayerSource:
    """`MatrixSource`: matrices that are rounded already, norms from the checkpoint."""

    def __init__(self, checkpoint: Checkpoint, embedding: QuantizedTensor) -> None:
        self._weights = checkpoint.weights
        self._embedding = embedding
        self.rounded: dict[str, Tensor] = {}

    def matrix(self, name: str) -> Tensor:
        return self.rounded[name]

    def vector(self, name: str) -> Tensor:
        return self._weights.read(name)

    def embedding_rows(self, tokens_T: Tensor) -> Tensor:
        rows = self._embedding.rows(tokens_T.reshape(-1)).dequantize()
        return rows.view(*tokens_T.shape, -1)


class _Rounder:
    """Chooses scales and codes of linears that share an input, given what that input was."""

    def __init__(self, checkpoint: Checkpoint, recipe: Recipe, source: _LayerSource) -> None:
        self._checkpoint = checkpoint
        self._recipe = recipe
        self._source = source

    def round(self, names: Sequence[str], hessian: Tensor) -> Iterator[QuantizedEntry]:
        bits, group_size = self._recipe.weight_bits, self._recipe.group_size
        searched = self._recipe.scales is Scales.SEARCHED
        choose = search_scales if searched else choose_scales
        for name in names:
            weight = self._checkpoint.weights.read(name)
            scales = choose(weight, bits, group_size)
            codes = gptq_codes(name, weight, hessian, scales, bits)
            tensor = QuantizedTensor(codes=codes, scales=scales, bits=bits, group_size=group_size)
            self._source.rounded[name] = tensor.dequantize()
            yield QuantizedEntry(name, tensor)


def _hessian(rows: Tensor) -> Tensor:
    """Sum of x x^T over sequences and tokens, float32 (I, I)."""
    total = torch.zeros(rows.shape[-1], rows.shape[-1])
    for sequence in rows:
        total.addmm_(sequence.T, sequence)
    return total


def _buffer(shape: Sequence[int], path: Path) -> Tensor:
    """Uninitialized float32 activations: in memory, or in the file `path` where they are large."""
    count = math.prod(shape)
    if 4 * count <= SPILL_BYTES:
        return torch.empty(*shape)
    return torch.from_file(str(path), shared=True, size=count, dtype=torch.float32).view(*shape)


class _CalibrationPass:
    """The calibration text on its way through the network: what each linear's input is."""

    def __init__(self, model: Llama, tokens_NT: Tensor, scratch: Path) -> None:
        config = model.config

        def buffer(name: str, width: int) -> Tensor:
            return _buffer((*tokens_NT.shape, width), scratch / name)

        self._model = model
        self._stream = buffer("stream", config.hidden_size)
        self._inputs = buffer("inputs", config.hidden_size)
        self._attended = buffer("attended", config.query_size)
        self._products = buffer("products", config.intermediate_size)
        for x, tokens in zip(self._stream, tokens_NT, strict=True):
            x.copy_(model.embed(tokens))

    def attention_inputs(self, layer: int) -> Tensor:
        """Of q_proj, k_proj and v_proj (N, T, D)."""
        for x, out in zip(self._stream, self._inputs, strict=True):
            out.copy_(self._model.attention_input(layer, x))
        return self._inputs

    def attention_outputs(self, layer: int) -> Tensor:
        """Inputs of o_proj (N, T, Q); q_proj, k_proj and v_proj are rounded by now."""
        config, model = self._model.config, self._model
        for normed, out in zip(self._inputs, self._attended, strict=True):
            nothing = [torch.empty(config.num_key_value_heads, 0, config.head_dim)] * (layer + 1)
            cache = KVCache(keys=[*nothing], values=[*nothing])
            out.copy_(model.quantize_activation(model.attend(layer, normed, cache)))
        return self._attended

    def mlp_inputs(self, layer: int) -> Tensor:
        """Of gate_proj and up_proj (N, T, D); o_proj is rounded by now."""
        rows = zip(self._stream, self._attended, self._inputs, strict=True)
        for x, attended, out in rows:
            x.copy_(self._model.after_attention(layer, x, attended))
            out.copy_(self._model.mlp_input(layer, x))
        return self._inputs

    def mlp_products(self, layer: int) -> Tensor:
        """Inputs of down_proj (N, T, F); gate_proj and up_proj are rounded by now."""
        for normed, out in zip(self._inputs, self._products, strict=True):
            out.copy_(self._model.mlp_product(layer, normed))
        return self._products

    def finish(self, layer: int) -> None:
        """On to the next layer; down_proj is rounded by now."""
        for x, product in zip(self._stream, self._products, strict=True):
            x.copy_(self._model.after_mlp(layer, x, product))


@torch.no_grad()
def round_blocks(
    checkpoint: Checkpoint,
    recipe: Recipe,
    embedding: QuantizedTensor,
    tokens_NT: Tensor,
) -> Iterator[QuantizedEntry]:
    """Every block linear in canonical order, as its layer is reached.

    Args:
        checkpoint: Rotated already where the recipe asks for it.
        recipe: Scales, bits and group size.
        embedding: The rounded table; the first layer sees its rows.
        tokens_NT: Calibration text, int64.

    Raises:
        QuantizeError: Activations are not finite, or a Hessian is degenerate.
    """
    source = _LayerSource(checkpoint, embedding)
    model = Llama(checkpoint.config, source, ActivationQuantization.INT8_PER_TOKEN)
    rounder = _Rounder(checkpoint, recipe, source)
    with tempfile.TemporaryDirectory() as scratch:
        running = _CalibrationPass(model, tokens_NT, Path(scratch))
        steps = (
            (
                ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
                running.attention_inputs,
            ),
            (("self_attn.o_proj",), running.attention_outputs),
            (("mlp.gate_proj", "mlp.up_proj"), running.mlp_inputs),
            (("mlp.down_proj",), running.mlp_products),
        )
        for layer in range(checkpoint.config.num_hidden_layers):
            for parts, inputs_of in steps:
                names = [block_weight(layer, part) for part in parts]
                yield from rounder.round(names, _hessian(inputs_of(layer)))
            running.finish(layer)
            source.rounded.clear()
