"""Block linears rounded one after the other, each on what the rounded ones before it really give.

The calibration text runs through the network twice, side by side: in full precision, and rounded.
At each linear the rounded inputs, as the artifact will see them, give the Hessian; where they have
drifted from the full-precision ones, the weight is first moved to make up for it (GPTAQ, Li et al.,
2025: asymmetric calibration); then it is rounded, and only then its outputs are computed. Memory
holds one layer's weights and the activations between two linears; large activations are in a file.

Shape legend: N sequences, T tokens, D hidden, I in_features.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from llama_edge.core.artifact import ActivationQuantization
from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.packing import QuantizedTensor
from llama_edge.formats.quantized_checkpoint import Layout, QuantizedEntry
from llama_edge.models.blocks import Linear
from llama_edge.models.network import COS, SIN, Network, Node
from llama_edge.models.reference import Reference, rounded
from llama_edge.models.rope import rope_tables
from llama_edge.models.sources import CachedSource, FullPrecisionSource
from llama_edge.quantize.gptq import gptq_codes
from llama_edge.quantize.resume import KeptLayers, activation_buffer, scratch_folder
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


@dataclass(frozen=True, slots=True)
class _Step:
    """From one input of linears to the next, or to the end of the block."""

    #: values that are kept when it is done, as `Reference.value` names them
    kept: tuple[str, ...]
    #: the linears that multiply `input` next, and are rounded first; none at the end
    linears: tuple[Node, ...] = ()
    input: str = ""


def _steps(network: Network, layer: int) -> tuple[_Step, ...]:
    """A block, cut where linears need an input: what is used after a cut is kept there.

    A value that only linears use is kept as they multiply it, rounded.
    """
    nodes = tuple(network.in_layer(layer).values())
    groups = network.linears_by_input(layer)
    steps = []
    for linears in groups:
        later = nodes[nodes.index(linears[0]) :]
        made_later = {node.name for node in later} | {COS, SIN}
        users: dict[str, list[Node]] = {}
        for node in later:
            for name in node.inputs:
                if name not in made_later:
                    users.setdefault(name, []).append(node)
        kept = tuple(
            rounded(name) if all(isinstance(user.block, Linear) for user in using) else name
            for name, using in users.items()
        )
        steps.append(_Step(kept, linears, rounded(linears[0].inputs[0])))
    return (*steps, _Step((nodes[-1].name,)))


class _CalibrationPass:
    """The calibration text on its way through the network, all sequences step by step.

    Args:
        model: What computes it.
        tokens_NT: The text.
        scratch: Where large activations are in files.
    """

    def __init__(self, model: Reference, tokens_NT: Tensor, scratch: Path) -> None:
        scratch.mkdir()
        self._model = model
        self._tokens = tokens_NT
        self._scratch = scratch
        self._buffers: list[Tensor] = []
        #: values (N, T, width) by name
        self._values: dict[str, Tensor] = {}

    def begin(self) -> None:
        """To the first layer."""
        stream = self._start(0)
        for x, tokens in zip(stream, self._tokens, strict=True):
            x.copy_(self._model.embed(tokens))

    def resume(self, layer: int) -> Tensor:
        """The residual stream (N, T, D) before this layer, to be filled."""
        return self._start(layer)

    def _start(self, layer: int) -> Tensor:
        name = self._model.stream(layer)
        self._values = {name: self._free(self._model.config.hidden_size)}
        return self._values[name]

    @property
    def stream(self) -> Tensor:
        """The residual stream (N, T, D), between two layers."""
        (stream,) = self._values.values()
        return stream

    def _free(self, width: int) -> Tensor:
        """A buffer that holds no value."""
        used = {value.data_ptr() for value in self._values.values()}
        for buffer in self._buffers:
            if buffer.shape[-1] == width and buffer.data_ptr() not in used:
                return buffer
        place = self._scratch / f"activations-{len(self._buffers)}"
        self._buffers.append(activation_buffer((*self._tokens.shape, width), place))
        return self._buffers[-1]

    def advance(self, step: _Step) -> None:
        """Compute what the step keeps; a value that is not kept gives its buffer away."""
        cos, sin = rope_tables(self._model.config, 0, self._tokens.shape[1])
        before = dict(self._values)
        self._values = {name: before[name] for name in step.kept if name in before}
        new = [name for name in step.kept if name not in before]
        for row in range(len(self._tokens)):
            known = {name: value[row] for name, value in before.items()} | {COS: cos, SIN: sin}
            made = {name: self._model.value(name, known) for name in new}
            for name, value in made.items():
                if name not in self._values:
                    self._values[name] = self._free(value.shape[-1])
                self._values[name][row] = value

    def input_of(self, step: _Step) -> Tensor:
        """What the step's linears multiply (N, T, I)."""
        return self._values[step.input]


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
    quantized = Reference(config, source, activation)
    full = Reference(config, FullPrecisionSource(config, checkpoint.weights))
    with scratch_folder(kept.folder) as scratch:
        artifact = _CalibrationPass(quantized, tokens_NT, scratch / "rounded")
        wanted = _CalibrationPass(full, tokens_NT, scratch / "full")
        finished = kept.finished()
        for layer in range(finished):
            yield from kept.entries(layer)
        if finished:
            streams = artifact.resume(finished), wanted.resume(finished)
            kept.load_activations(finished - 1, streams)
        else:
            artifact.begin()
            wanted.begin()
        for layer in range(finished, config.num_hidden_layers):
            # Every weight of the layer is read once, for the full-precision pass and for rounding.
            full.source = CachedSource(FullPrecisionSource(config, checkpoint.weights))
            entries: list[QuantizedEntry] = []
            for step in _steps(quantized.network, layer):
                artifact.advance(step)
                wanted.advance(step)
                if step.linears:
                    weights = {n.weight: full.source.matrix(n.weight) for n in step.linears}
                    inputs, full_inputs = artifact.input_of(step), wanted.input_of(step)
                    for entry in rounder.round(weights, inputs, full_inputs):
                        entries.append(entry)
                        yield entry
            source.rounded.clear()
            kept.keep(layer, entries, (artifact.stream, wanted.stream))
