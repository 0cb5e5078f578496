"""What rounding each block linear is expected to cost: KL to full precision, before any is rounded.

A small change dW of a linear that multiplies x and whose output has the gradient g costs to second
order half the mean of (g^T dW x)^2, where g is taken at labels drawn from the network's own
prediction (the Fisher information). With g and x taken as independent (K-FAC, Martens and Grosse,
2015, section 3) this is half the sum over rows of E[g_r^2] * dW_r E[x x^T] dW_r^T; products of two
rows are zero on average, since their rounding errors are independent. The last factor is GPTQ's own
loss, which follows from nearest-rounding errors and the Hessian without running it
(`gptq.Curvature.costs`). Costs of different linears add up.

One pass forward, and one back, a layer at a time: memory holds a layer's weights and the residual
stream before each layer, which is in a file where it is large.

Shape legend: N sequences, T tokens, D hidden, O out_features, I in_features.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.errors import QuantizeError
from llama_edge.core.model_config import ModelConfig
from llama_edge.core.progress import Progress, Step, layer_name
from llama_edge.formats.quantized_checkpoint import Layout
from llama_edge.models.network import Node, network_of
from llama_edge.models.reference import KVCache, Reference
from llama_edge.models.sources import CachedSource, FullPrecisionSource, MatrixSource
from llama_edge.quantize.gptq import Curvature
from llama_edge.quantize.groupwise import round_to_nearest
from llama_edge.quantize.resume import CostsSoFar, KeptCosts, activation_buffer, scratch_folder
from llama_edge.quantize.scale_search import recipe_scales
from llama_edge.quantize.steps import back_steps

#: Calibration sequences that are used, evenly spread: what is wanted is an order of linears, and
#: time and memory grow with each.
SEQUENCES: Final = 8


@dataclass(frozen=True, slots=True)
class _Moments:
    """Sums over tokens: of x x^T (I, I), and of the squared gradients of the output (O,)."""

    inputs: Tensor
    gradients: Tensor


class _Measured(Reference):
    """Full precision; block linears that run with gradients leave their moments."""

    def __init__(self, config: ModelConfig, source: MatrixSource) -> None:
        super().__init__(config, source)
        self.moments: dict[str, _Moments] = {}
        self._last: tuple[Tensor, Tensor] | None = None

    def _linear(self, x: Tensor, node: Node) -> Tensor:
        out = super()._linear(x, node)
        if torch.is_grad_enabled() and node.layer is not None:
            self._record(node.weight, x.detach(), out)
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
    checkpoint: Checkpoint,
    layouts: Sequence[Layout],
    tokens_NT: Tensor,
    kept: KeptCosts,
    progress: Progress,
) -> list[dict[str, float]]:
    """Expected KL (nats a token) that rounding each block linear costs, under each layout.

    Args:
        checkpoint: Full precision, rotated already where the recipe asks for it.
        layouts: Bits and group sizes to try.
        tokens_NT: Calibration text, int64; at most `SEQUENCES` of its rows are used.
        kept: Layers that an earlier run has measured; each further one is kept in its turn.
        progress: Advances once a layer and direction, and once for the head.

    Raises:
        QuantizeError: Activations, logits or gradients are not finite.
        OutputError: What is measured cannot be kept.
    """
    layers, width = checkpoint.config.num_hidden_layers, checkpoint.config.hidden_size
    tokens = tokens_NT[:: -(-len(tokens_NT) // SEQUENCES)]
    network = network_of(checkpoint.config)
    names = [node.weight for layer in reversed(range(layers)) for node in network.linears(layer)]
    found = kept.load(len(layouts), (*tokens.shape, width))
    if found is None or found.costs.shape[1] < len(names):
        with scratch_folder(kept.folder) as scratch:
            streams = activation_buffer((layers + 1, *tokens.shape, width), scratch / "streams")
            measurement = _Measurement(checkpoint, layouts, kept, progress)
            found = measurement.run(tokens, streams, found)
    return [dict(zip(names, row.tolist(), strict=True)) for row in found.costs]


class _Measurement:
    """One pass forward and one back."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        layouts: Sequence[Layout],
        kept: KeptCosts,
        progress: Progress,
    ) -> None:
        config = checkpoint.config
        self._checkpoint = checkpoint
        self._layouts = layouts
        self._kept = kept
        self._progress = progress
        self._model = _Measured(config, FullPrecisionSource(config, checkpoint.weights))

    def run(self, tokens_NT: Tensor, streams: Tensor, found: CostsSoFar | None) -> CostsSoFar:
        """Every layer's costs, `found` those that are known.

        Args:
            tokens_NT: Calibration text.
            streams: Room for the residual stream before each layer and after the last.
            found: Where an earlier run had got to.
        """
        model = self._model
        layers = model.config.num_hidden_layers
        done = 0 if found is None else found.costs.shape[1] // len(model.network.linears(0))
        # The last layer's output is what the head starts from, and nothing else.
        forward = layers if found is None else layers - done - 1
        names = [layer_name(layer, layers) for layer in range(layers)]
        self._progress.start("measure sensitivity, forward", [*map(Step, names[:forward])])
        self._forward(tokens_NT, streams, forward)
        steps = back_steps(model.config, tokens_NT.numel(), len(self._layouts))
        self._progress.start("measure sensitivity, back", steps, 0 if found is None else 1 + done)
        if found is None:
            head = _head_gradients(model, streams[layers], self._layouts[0].recipe.seed)
            nothing = torch.empty(len(self._layouts), 0, dtype=torch.float64)
            found = CostsSoFar(costs=nothing, gradients=tuple(head))
            self._progress.advance()
        for layer in reversed(range(layers - done)):
            self._forget_weights()
            gradients = _backward(model, layer, streams[layer], found.gradients)
            costs = torch.cat([found.costs, self._costs(layer, tokens_NT.numel())], dim=1)
            found = CostsSoFar(costs=costs, gradients=tuple(gradients))
            self._kept.keep(found)
            self._progress.advance()
        return found

    def _forget_weights(self) -> None:
        config = self._model.config
        self._model.source = CachedSource(FullPrecisionSource(config, self._checkpoint.weights))

    @torch.no_grad()
    def _forward(self, tokens_NT: Tensor, streams: Tensor, layers: int) -> None:
        """Fill the streams (N, T, D) before each of the first layers, and after the last one."""
        model = self._model
        # The table is read, and rotated, once for all.
        streams[0].copy_(model.embed(tokens_NT.reshape(-1)).view_as(streams[0]))
        for layer in range(layers):
            self._forget_weights()
            for x, out in zip(streams[layer], streams[layer + 1], strict=True):
                out.copy_(_block(model, layer, x))
            self._progress.advance()

    def _costs(self, layer: int, tokens: int) -> Tensor:
        """float64 (layouts, linears of the layer)."""
        model = self._model
        columns: list[list[float]] = []
        for name in (node.weight for node in model.network.linears(layer)):
            curvature = _Curvature(name, model.moments.pop(name), tokens)
            weight = model.source.matrix(name)
            columns.append([curvature.cost(weight, layout) for layout in self._layouts])
        return torch.tensor(columns, dtype=torch.float64).T


def _block(model: Reference, layer: int, x_TD: Tensor) -> Tensor:
    config = model.config
    nothing = [torch.empty(config.num_key_value_heads, 0, config.head_dim)] * (layer + 1)
    cache = KVCache(keys=[*nothing], values=[*nothing])
    return model.mlp_block(layer, x_TD, model.attention_block(layer, x_TD, cache))


def _head_gradients(model: Reference, hidden: Iterable[Tensor], seed: int) -> list[Tensor]:
    """Of the log-probability of labels that the network draws itself, at its last hidden states."""
    head = Reference(model.config, CachedSource(model.source))
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
    model: Reference, layer: int, inputs: Iterable[Tensor], gradients: Iterable[Tensor]
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
        self._columns = Curvature.of(name, moments.inputs / tokens).costs()
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
