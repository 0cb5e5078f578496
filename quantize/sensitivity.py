"""What rounding each block linear is expected to cost: KL to full precision, before any is rounded.

A small change dW of a linear that multiplies x and whose output has the gradient g costs to second
order half the mean of (g^T dW x)^2, where g is taken at labels drawn from the network's own
prediction (the Fisher information). With g and x taken as independent (K-FAC, Martens and Grosse,
2015, section 3) this is half the sum over rows of E[g_r^2] * dW_r E[x x^T] dW_r^T; products of two
rows are zero on average, since their rounding errors are independent. The last factor is GPTQ's own
loss, which follows from nearest-rounding errors and the Hessian without running it
(`gptq.rounding_costs`). Costs of different linears add up.

One pass forward, and one back, a layer at a time: a layer's weights and the residual stream before
each layer are in memory. Shape legend: N sequences, T tokens, D hidden, O out_features, I
in_features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from llama_edge.core.errors import QuantizeError
from llama_edge.core.model import CachedSource, FullPrecisionSource, KVCache, Llama, MatrixSource
from llama_edge.core.model_config import ModelConfig
from llama_edge.core.progress import Progress
from llama_edge.core.quantized_checkpoint import Layout
from llama_edge.core.types import Checkpoint
from llama_edge.core.weight_names import BLOCK_LINEARS, block_weight
from llama_edge.quantize.gptq import rounding_costs
from llama_edge.quantize.groupwise import round_to_nearest
from llama_edge.quantize.scale_search import recipe_scales

#: Calibration sequences that are used, evenly spread: what is wanted is an order of linears, and
#: time and memory grow with each.
SEQUENCES: Final = 8


@dataclass(frozen=True, slots=True)
class _Moments:
    """Sums over tokens: of x x^T (I, I), and of the squared gradients of the output (O,)."""

    inputs: Tensor
    gradients: Tensor


class _Measured(Llama):
    """Full precision; block linears that run with gradients leave their moments."""

    def __init__(self, config: ModelConfig, source: MatrixSource) -> None:
        super().__init__(config, source)
        self.moments: dict[str, _Moments] = {}
        self._last: tuple[Tensor, Tensor] | None = None

    def _linear(self, x: Tensor, name: str) -> Tensor:
        out = super()._linear(x, name)
        if torch.is_grad_enabled() and name.startswith("model.layers."):
            self._record(name, x.detach(), out)
        return out

    def _record(self, name: str, x: Tensor, out: Tensor) -> None:
        products = self._products(x)
        known = self.moments.get(name)
        if known is None:
            known = _Moments(torch.zeros_like(products), torch.zeros(out.shape[-1]))
            self.moments[name] = known
        known.inputs.add_(products)
        gradients = known.gradients

        def add(gradient: Tensor) -> None:
            gradients.add_(gradient.square().sum(0))

        out.register_hook(add)  # type: ignore[no-untyped-call]

    def _products(self, x: Tensor) -> Tensor:
        """x^T x (I, I); linears that share their input come one after the other."""
        if self._last is None or self._last[0].data_ptr() != x.data_ptr():
            self._last = x, x.T @ x
        return self._last[1]


def measure_costs(
    checkpoint: Checkpoint, layouts: Sequence[Layout], tokens_NT: Tensor, progress: Progress
) -> list[dict[str, float]]:
    """Expected KL (nats a token) that rounding each block linear costs, under each layout.

    Args:
        checkpoint: Full precision, rotated already where the recipe asks for it.
        layouts: Bits and group sizes to try.
        tokens_NT: Calibration text, int64; at most `SEQUENCES` of its rows are used.
        progress: Advances once a layer and direction.

    Raises:
        QuantizeError: Activations, logits or gradients are not finite.
    """
    config = checkpoint.config
    tokens = tokens_NT[:: -(-len(tokens_NT) // SEQUENCES)]
    model = _Measured(config, FullPrecisionSource(config, checkpoint.weights))
    progress.start("measure sensitivity", 2 * config.num_hidden_layers)
    streams = _forward(model, checkpoint, tokens, progress)
    gradients = _head_gradients(model, streams.pop(), layouts[0].recipe.seed)
    costs: list[dict[str, float]] = [{} for _ in layouts]
    for layer in reversed(range(config.num_hidden_layers)):
        model.source = CachedSource(FullPrecisionSource(config, checkpoint.weights))
        gradients = _backward(model, layer, streams.pop(), gradients)
        for part in BLOCK_LINEARS:
            name = block_weight(layer, part)
            curvature = _Curvature(name, model.moments.pop(name), tokens.numel())
            weight = model.source.matrix(name)
            for found, layout in zip(costs, layouts, strict=True):
                found[name] = curvature.cost(weight, layout)
        progress.advance()
    return costs


@torch.no_grad()
def _forward(
    model: Llama, checkpoint: Checkpoint, tokens_NT: Tensor, progress: Progress
) -> list[list[Tensor]]:
    """The residual stream (T, D) of each sequence before each layer, and behind the last."""
    streams = [[model.embed(tokens) for tokens in tokens_NT]]
    for layer in range(model.config.num_hidden_layers):
        model.source = CachedSource(FullPrecisionSource(model.config, checkpoint.weights))
        streams.append([_block(model, layer, x) for x in streams[-1]])
        progress.advance()
    return streams


def _block(model: Llama, layer: int, x_TD: Tensor) -> Tensor:
    config = model.config
    nothing = [torch.empty(config.num_key_value_heads, 0, config.head_dim)] * (layer + 1)
    cache = KVCache(keys=[*nothing], values=[*nothing])
    return model.mlp_block(layer, x_TD, model.attention_block(layer, x_TD, cache))


def _head_gradients(model: Llama, hidden: Sequence[Tensor], seed: int) -> list[Tensor]:
    """Of the log-probability of labels that the network draws itself, at its last hidden states."""
    head = Llama(model.config, CachedSource(model.source))
    generator = torch.Generator().manual_seed(seed)
    gradients: list[Tensor] = []
    for x_TD in hidden:
        x = x_TD.clone().requires_grad_()
        logits = head.head(x)
        if not logits.isfinite().all():
            raise QuantizeError(
                "lm_head: logits on the calibration text are not finite; the weights are damaged "
                "or overflow float32"
            )
        labels = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
        loss = F.cross_entropy(logits, labels, reduction="sum")
        gradients.extend(torch.autograd.grad(loss, x))
    return gradients


def _backward(
    model: Llama, layer: int, inputs: Sequence[Tensor], gradients: Sequence[Tensor]
) -> list[Tensor]:
    """Gradients at the layer's input, from those at its output."""
    before: list[Tensor] = []
    for x_TD, gradient in zip(inputs, gradients, strict=True):
        x = x_TD.clone().requires_grad_()
        before.extend(torch.autograd.grad(_block(model, layer, x), x, gradient))
    return before


class _Curvature:
    """What a linear's rounding errors cost, row by row and column by column."""

    def __init__(self, name: str, moments: _Moments, tokens: int) -> None:
        self._name = name
        self._columns = rounding_costs(name, moments.inputs / tokens)
        self._rows = moments.gradients / tokens
        if not self._rows.isfinite().all():
            raise QuantizeError(
                f"{name}: gradients on the calibration text are not finite; the weights are "
                "damaged or overflow float32"
            )

    def cost(self, weight_OI: Tensor, layout: Layout) -> float:
        """Expected KL, nats a token."""
        name = self._name
        scales = recipe_scales(name, weight_OI, layout)
        rounded = round_to_nearest(name, weight_OI, scales, layout.bits(name)).dequantize()
        errors = (weight_OI - rounded).square() @ self._columns
        return 0.5 * float(self._rows @ errors)
