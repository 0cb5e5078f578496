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

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.errors import QuantizeError
from llama_edge.core.model_config import ModelConfig
from llama_edge.core.progress import Progress, Step, layer_name
from llama_edge.formats.quantized_checkpoint import Layout
from llama_edge.models.network import Node, network_of
from llama_edge.models.reference import rounded
from llama_edge.models.sources import CachedSource, FullPrecisionSource, MatrixSource
from llama_edge.quantize.arithmetic import Arithmetic, FastReference, ProductSource, in_batches
from llama_edge.quantize.gptq import Curvature
from llama_edge.quantize.groupwise import round_to_nearest
from llama_edge.quantize.moments import Hessian, of_like_size
from llama_edge.quantize.resume import CostsSoFar, KeptCosts, activation_buffer, scratch_folder
from llama_edge.quantize.scale_search import recipe_scales
from llama_edge.quantize.steps import back_steps
from llama_edge.quantize.text_writer import drawn

#: Calibration sequences that are used, evenly spread: what is wanted is an order of linears, and
#: time and memory grow with each.
SEQUENCES: Final = 8


class _Measured(FastReference):
    """Full precision; block linears that run with gradients leave those of their outputs."""

    def __init__(self, config: ModelConfig, source: MatrixSource, arithmetic: Arithmetic) -> None:
        super().__init__(config, source, arithmetic)
        #: sums over the last batch's tokens of squared gradients (O,), by weight
        self.squares: dict[str, Tensor] = {}

    def _linear(self, x: Tensor, node: Node) -> Tensor:
        out = super()._linear(x, node)
        if torch.is_grad_enabled() and node.layer is not None:

            def keep(gradient: Tensor) -> None:
                self.squares[node.weight] = gradient.square().sum((0, 1))

            out.register_hook(keep)  # type: ignore[no-untyped-call]
        return out


def measure_costs(
    checkpoint: Checkpoint,
    layouts: Sequence[Layout],
    tokens_NT: Tensor,
    kept: KeptCosts,
    arithmetic: Arithmetic,
    progress: Progress,
) -> list[dict[str, float]]:
    """Expected KL (nats a token) that rounding each block linear costs, under each layout.

    Args:
        checkpoint: Full precision, rotated already where the recipe asks for it.
        layouts: Bits and group sizes to try.
        tokens_NT: Calibration text, int64; at most `SEQUENCES` of its rows are used.
        kept: Layers that an earlier run has measured; each further one is kept in its turn.
        arithmetic: Of products, and where they are computed.
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
            measurement = _Measurement(checkpoint, layouts, kept, arithmetic, progress)
            found = measurement.run(tokens, streams, found)
    return [dict(zip(names, row.tolist(), strict=True)) for row in found.costs]


class _Measurement:
    """One pass forward and one back."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        layouts: Sequence[Layout],
        kept: KeptCosts,
        arithmetic: Arithmetic,
        progress: Progress,
    ) -> None:
        self._checkpoint = checkpoint
        self._layouts = layouts
        self._kept = kept
        self._progress = progress
        self._weights = self._fresh_weights()
        source = ProductSource(self._weights, arithmetic)
        self._model = _Measured(checkpoint.config, source, arithmetic)

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
            self._forget_weights()
            head = _head_gradients(model, streams[layers], self._layouts[0].recipe.seed)
            nothing = torch.empty(len(self._layouts), 0, dtype=torch.float64)
            found = CostsSoFar(costs=nothing, gradients=tuple(head))
            self._progress.advance()
        for layer in reversed(range(layers - done)):
            self._forget_weights()
            before = _backward(model, layer, streams[layer], found.gradients)
            costs = torch.cat([found.costs, self._costs(layer, before, tokens_NT.numel())], dim=1)
            found = CostsSoFar(costs=costs, gradients=tuple(before.gradients))
            self._kept.keep(found)
            self._progress.advance()
        return found

    def _fresh_weights(self) -> CachedSource:
        config = self._checkpoint.config
        return CachedSource(FullPrecisionSource(config, self._checkpoint.weights))

    def _forget_weights(self) -> None:
        self._weights = self._fresh_weights()
        self._model.source = ProductSource(self._weights, self._model.arithmetic)

    @torch.no_grad()
    def _forward(self, tokens_NT: Tensor, streams: Tensor, layers: int) -> None:
        """Fill the streams (N, T, D) before each of the first layers, and after the last one."""
        model = self._model
        # The table is read, and rotated, once for all.
        streams[0] = model.embed(tokens_NT)
        at_once = model.arithmetic.sequences_at_once(tokens_NT.shape[1])
        for layer in range(layers):
            self._forget_weights()

            def run(rows: slice, layer: int = layer) -> None:
                known = _entering(model, layer, streams[layer][rows])
                streams[layer + 1][rows] = model.value(model.stream(layer + 1), known)

            in_batches(len(tokens_NT), at_once, run)
            self._progress.advance()

    def _costs(self, layer: int, before: "_Before", tokens: int) -> Tensor:
        """float64 (layouts, linears of the layer); the sums are used up."""
        network, found = self._model.network, dict[str, list[float]]()
        groups = network.linears_by_input(layer)
        for linears, hessian in zip(groups, before.hessians, strict=True):
            columns = Curvature.of(linears[0].weight, hessian.total().div_(tokens)).costs()
            for node in linears:
                rows = before.squares[node.weight] / tokens
                if not rows.isfinite().all():
                    raise QuantizeError(
                        f"{node.weight}: gradients on the calibration text are not finite; the "
                        "weights are damaged or overflow float32"
                    )
                weight = self._weights.matrix(node.weight).to(columns.device)
                found[node.weight] = [
                    0.5 * float(rows @ (_squared_errors(node.weight, weight, layout) @ columns))
                    for layout in self._layouts
                ]
        ordered = [found[node.weight] for node in network.linears(layer)]
        return torch.tensor(ordered, dtype=torch.float64).T


def _entering(model: FastReference, layer: int, x_BTD: Tensor) -> dict[str, Tensor]:
    """What a block starts from, on the device."""
    entering = x_BTD.to(model.arithmetic.device)
    return {model.stream(layer): entering, **model.angles(x_BTD.shape[1])}


def _head_gradients(model: FastReference, hidden: Iterable[Tensor], seed: int) -> list[Tensor]:
    """Of the log-probability of labels that the network draws itself, at its last hidden states."""
    generator = torch.Generator().manual_seed(seed)
    gradients: list[Tensor] = []
    for x_TD in hidden:
        x = x_TD.to(model.arithmetic.device, copy=True).requires_grad_()
        logits = model.head(x)
        if not logits.isfinite().all():
            raise QuantizeError(
                "lm_head: logits on the calibration text are not finite; the weights are damaged "
                "or overflow float32"
            )
        chances = torch.rand(len(x), 1, generator=generator).to(x.device)
        predicted = logits.detach().softmax(-1)
        labels = drawn(predicted, chances)
        # Of the cross entropy, by hand: nothing as wide as the logits is computed again.
        at_logits = predicted.scatter_add_(1, labels[:, None], -torch.ones_like(chances))
        (gradient,) = torch.autograd.grad(logits, x, at_logits)
        gradients.append(gradient.cpu())
    return gradients


@dataclass(frozen=True, slots=True)
class _Before:
    """What a pass back through a layer leaves."""

    #: at the layer's input, of each sequence (T, D)
    gradients: Sequence[Tensor]
    #: of its linears' outputs: sums over tokens of their squares (O,), by weight
    squares: Mapping[str, Tensor]
    #: of the inputs of `Network.linears_by_input`
    hessians: Sequence[Hessian]


def _backward(
    model: _Measured, layer: int, inputs_NTD: Tensor, gradients: Sequence[Tensor]
) -> _Before:
    """From the gradients at a layer's output."""
    arithmetic = model.arithmetic
    groups = model.network.linears_by_input(layer)
    hessians = [Hessian(_width(linears[0]), arithmetic.device) for linears in groups]
    before: list[Tensor] = []
    squares: dict[str, Tensor] = {}

    def run(rows: slice) -> None:
        known = _entering(model, layer, inputs_NTD[rows])
        x = known[model.stream(layer)].requires_grad_()
        out = model.value(model.stream(layer + 1), known)
        behind = torch.stack(list(gradients[rows])).to(out.device)
        (found,) = torch.autograd.grad(out, x, behind)
        for name, more in model.squares.items():
            squares[name] = squares[name] + more if name in squares else more
        before.extend(found.cpu())
        for linears, hessian in zip(groups, hessians, strict=True):
            multiplied = known[rounded(linears[0].inputs[0])].detach().flatten(0, 1)
            for (alike,) in of_like_size(multiplied.to(arithmetic.products)):
                hessian.add(alike)

    in_batches(len(inputs_NTD), arithmetic.sequences_at_once(inputs_NTD.shape[1]), run)
    return _Before(before, squares, hessians)


def _width(linear: Node) -> int:
    return linear.shapes[linear.weight][1]


def _squared_errors(name: str, weight_OI: Tensor, layout: Layout) -> Tensor:
    """Of rounding to nearest (O, I)."""
    scales = recipe_scales(name, weight_OI, layout)
    nearest = round_to_nearest(name, weight_OI, scales, layout.bits(name)).dequantize()
    return nearest.sub_(weight_OI).square_()
