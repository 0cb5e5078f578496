"""Block linears rounded one after the other, each on what the rounded ones before it really give.

The calibration text runs through the network twice, side by side: in full precision, and rounded.
At each linear the rounded inputs, as the artifact will see them, give the Hessian; where they have
drifted from the full-precision ones, the weight is first moved to make up for it (GPTAQ, Li et al.,
2025: asymmetric calibration); then it is rounded, and only then its outputs are computed. Memory
holds one layer's weights and the activations between two linears; large activations lie in a file.

Shape legend: N sequences, T tokens, D hidden, Q query_size, F intermediate, I in_features.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from llama_edge.core.packing import QuantizedTensor
from llama_edge.core.types import ActivationQuantization, Checkpoint
from llama_edge.formats.quantized_checkpoint import Layout, QuantizedEntry
from llama_edge.models.reference import KVCache, Reference
from llama_edge.models.sources import CachedSource, FullPrecisionSource
from llama_edge.quantize.activations import activation_buffer, scratch_folder
from llama_edge.quantize.gptq import gptq_codes
from llama_edge.quantize.kept_layers import KeptLayers
from llama_edge.quantize.scale_search import recipe_scales

#: Ridge of the correction for drift, relative to the Hessian's mean diagonal. Without one it fits
#: the calibration text's own noise.
DRIFT_RIDGE: Final = 0.3


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

    def __init__(self, layout: Layout, source: _LayerSource) -> None:
        self._layout = layout
        self._source = source

    def round(
        self, weights: Mapping[str, Tensor], inputs: Tensor, full_inputs: Tensor
    ) -> Iterator[QuantizedEntry]:
        """Round the linears that multiply `inputs` (N, T, I), in full precision `full_inputs`."""
        hessian, drift = _second_moments(inputs, full_inputs)
        correction = _correction(hessian, drift)
        for name, weight in weights.items():
            bits, group_size = self._layout.bits(name), self._layout.group_size(name)
            scales = recipe_scales(name, weight, self._layout)
            codes = gptq_codes(name, weight + weight @ correction, hessian, scales, bits)
            tensor = QuantizedTensor(codes=codes, scales=scales, bits=bits, group_size=group_size)
            self._source.rounded[name] = tensor.dequantize()
            yield QuantizedEntry(name, tensor)


def _second_moments(inputs: Tensor, full_inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over sequences and tokens of x x^T and (x_full - x) x^T, float32 (I, I)."""
    width = inputs.shape[-1]
    hessian, drift = torch.zeros(width, width), torch.zeros(width, width)
    for x, full in zip(inputs, full_inputs, strict=True):
        hessian.addmm_(x.T, x)
        drift.addmm_((full - x).T, x)
    return hessian, drift


def _correction(hessian: Tensor, drift: Tensor) -> Tensor:
    """C (I, I) for which `W + W C` on the drifted inputs comes nearest to W on the right ones."""
    ridge = DRIFT_RIDGE * hessian.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
    damped = hessian + ridge * torch.eye(hessian.shape[0])
    correction: Tensor = torch.linalg.solve(damped, drift.T).T
    return correction


class _CalibrationPass:
    """The calibration text on its way through the network: what each linear's input is."""

    def __init__(self, model: Reference, tokens_NT: Tensor, scratch: Path) -> None:
        config = model.config

        scratch.mkdir()

        def buffer(name: str, width: int) -> Tensor:
            return activation_buffer((*tokens_NT.shape, width), scratch / name)

        self._model = model
        #: the residual stream (N, T, D) before the layer that is next
        self.stream = buffer("stream", config.hidden_size)
        self._inputs = buffer("inputs", config.hidden_size)
        self._attended = buffer("attended", config.query_size)
        self._products = buffer("products", config.intermediate_size)

    def begin(self, tokens_NT: Tensor) -> None:
        """To the first layer."""
        for x, tokens in zip(self.stream, tokens_NT, strict=True):
            x.copy_(self._model.embed(tokens))

    def attention_inputs(self, layer: int) -> Tensor:
        """Of q_proj, k_proj and v_proj (N, T, D)."""
        for x, out in zip(self.stream, self._inputs, strict=True):
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
        rows = zip(self.stream, self._attended, self._inputs, strict=True)
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
        for x, product in zip(self.stream, self._products, strict=True):
            x.copy_(self._model.after_mlp(layer, x, product))


@torch.no_grad()
def round_blocks(
    checkpoint: Checkpoint,
    layout: Layout,
    embedding: QuantizedTensor,
    tokens_NT: Tensor,
    kept: KeptLayers,
) -> Iterator[QuantizedEntry]:
    """Every block linear in canonical order, as its layer is reached.

    What is kept of an earlier run comes first, and the rest is what that run would have given.

    Args:
        checkpoint: Rotated already where the recipe asks for it.
        layout: The recipe, and each linear's bits and group size.
        embedding: The rounded table; the first layer sees its rows.
        tokens_NT: Calibration text, int64.
        kept: The layers that are finished already; each further one is kept in its turn.

    Raises:
        QuantizeError: Activations are not finite, or a Hessian is degenerate.
        OutputError: A layer cannot be kept, or what is kept is damaged.
    """
    config = checkpoint.config
    source = _LayerSource(checkpoint, embedding)
    rounder = _Rounder(layout, source)
    weight_only = layout.recipe.activation_bits is None
    activation = (
        ActivationQuantization.NONE if weight_only else ActivationQuantization.INT8_PER_TOKEN
    )
    rounded = Reference(config, source, activation)
    full = Reference(config, FullPrecisionSource(config, checkpoint.weights))
    with scratch_folder(kept.folder) as scratch:
        artifact = _CalibrationPass(rounded, tokens_NT, scratch / "rounded")
        wanted = _CalibrationPass(full, tokens_NT, scratch / "full")
        finished = kept.finished()
        for layer in range(finished):
            yield from kept.entries(layer)
        if finished:
            kept.load_activations(finished - 1, (artifact.stream, wanted.stream))
        else:
            artifact.begin(tokens_NT)
            wanted.begin(tokens_NT)
        for layer in range(finished, config.num_hidden_layers):
            # Every weight of the layer is read once, for the full-precision pass and for rounding.
            full.source = CachedSource(FullPrecisionSource(config, checkpoint.weights))
            entries: list[QuantizedEntry] = []
            groups = rounded.network.linears_by_input(layer)
            for linears, inputs_of in zip(groups, _INPUTS, strict=True):
                inputs, full_inputs = inputs_of(artifact, layer), inputs_of(wanted, layer)
                weights = {node.weight: full.source.matrix(node.weight) for node in linears}
                for entry in rounder.round(weights, inputs, full_inputs):
                    entries.append(entry)
                    yield entry
            artifact.finish(layer)
            wanted.finish(layer)
            source.rounded.clear()
            kept.keep(layer, entries, (artifact.stream, wanted.stream))


#: What the linears of a block multiply, in order; those that share an input are one entry.
_INPUTS: Final = (
    _CalibrationPass.attention_inputs,
    _CalibrationPass.attention_outputs,
    _CalibrationPass.mlp_inputs,
    _CalibrationPass.mlp_products,
)
