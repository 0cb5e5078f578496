"""Block linears rounded one after the other, each on what the rounded ones before it really give.

The calibration text runs through the network twice, side by side: in full precision, and rounded.
At each linear the rounded inputs, as the artifact will see them, give the Hessian; where they have
drifted from the full-precision ones, the weight is first moved to make up for it (GPTAQ, Li et al.,
2025: asymmetric calibration); then it is rounded, and only then its outputs are computed. Memory
holds one layer's weights and the activations between two linears; large activations are in a file.

Shape legend: N sequences, T tokens, D hidden, I in_features.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from llama_edge.core.artifact import ActivationQuantization
from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.errors import QuantizeError
from llama_edge.core.packing import QuantizedTensor
from llama_edge.formats.quantized_checkpoint import Layout, QuantizedEntry
from llama_edge.models.blocks import Linear
from llama_edge.models.network import COS, SIN, Network, Node
from llama_edge.models.reference import is_rounded, rounded
from llama_edge.models.sources import CachedSource, FullPrecisionSource
from llama_edge.quantize.arithmetic import Arithmetic, FastReference, ProductSource, in_batches
from llama_edge.quantize.device import factoring_device
from llama_edge.quantize.gptq import Curvature, gptq_codes
from llama_edge.quantize.groupwise import check_scales
from llama_edge.quantize.moments import Drift, Hessian, of_like_size
from llama_edge.quantize.refine import refine
from llama_edge.quantize.resume import KeptLayers, activation_buffer, scratch_folder
from llama_edge.quantize.scale_search import recipe_scales

#: Ridge of the correction for drift, relative to the Hessian's mean diagonal. Without one it fits
#: the calibration text's own noise.
DRIFT_RIDGE: Final = 0.3
#: Inputs from which on a linear counts as wide, when it is decided about drift.
WIDE: Final = 4096
#: Tokens whose products are summed between two readings of the sums.
_TOKENS: Final = 4096


class _LayerSource:
    """`MatrixSource`: matrices that are rounded already, norms from the checkpoint."""

    def __init__(
        self, checkpoint: Checkpoint, embedding: QuantizedTensor, arithmetic: Arithmetic
    ) -> None:
        self._weights = checkpoint.weights
        self._embedding = embedding
        self._arithmetic = arithmetic
        self.rounded: dict[str, Tensor] = {}

    def matrix(self, name: str) -> Tensor:
        return self.rounded[name]

    def vector(self, name: str) -> Tensor:
        return self._weights.read(name).to(self._arithmetic.device)

    def embedding_rows(self, tokens_T: Tensor) -> Tensor:
        rows = self._embedding.rows(tokens_T.reshape(-1)).dequantize()
        return rows.view(*tokens_T.shape, -1).to(self._arithmetic.device)


class _Rounder:
    """Chooses scales and codes of linears that share an input, given what that input was."""

    def __init__(self, layout: Layout, source: _LayerSource, arithmetic: Arithmetic) -> None:
        self._layout = layout
        self._source = source
        self._arithmetic = arithmetic

    def round(self, weights: Mapping[str, Tensor], moments: "_Moments") -> Iterator[QuantizedEntry]:
        """Round the linears that multiply the inputs of `moments`, those alike as one matrix.

        Args:
            weights: By name, on the device.
            moments: Of these; they are used up.
        """
        name, hessian = next(iter(weights)), moments.hessian.total()
        products = self._arithmetic.products
        wanted_OI = torch.cat(tuple(weights.values()))
        if moments.drift is not None:
            lower = _with_ridge(name, hessian)
            wanted_OI = moments.drift.made_up_for(wanted_OI, lower, products)
        curvature = Curvature.of(name, hessian, products)
        del hessian
        wanted = dict(
            zip(weights, torch.split(wanted_OI, [len(w) for w in weights.values()]), strict=True)
        )

        def kind(name: str) -> tuple[int, int]:
            return self._layout.bits(name), self._layout.group_size(name)

        for (bits, group_size), group in groupby(weights, kind):
            names = tuple(group)
            scales = torch.cat([recipe_scales(n, weights[n], self._layout) for n in names])
            near = torch.cat([wanted[n] for n in names])
            codes = gptq_codes(near, curvature, scales, bits)
            if bits == 4:  # eight bits leave nothing to gain
                codes, scales = refine(near, curvature, codes, scales, bits)
            sizes = [len(weights[n]) for n in names]
            for name, some, theirs in zip(
                names,
                torch.split(codes.cpu(), sizes),
                torch.split(scales.cpu(), sizes),
                strict=True,
            ):
                check_scales(name, weights[name], theirs)
                tensor = QuantizedTensor(
                    codes=some.clone(), scales=theirs.clone(), bits=bits, group_size=group_size
                )
                self._source.rounded[name] = tensor.dequantize().to(
                    self._arithmetic.device, self._arithmetic.products
                )
                yield QuantizedEntry(name, tensor)


@dataclass(frozen=True, slots=True)
class _Moments:
    """Of the inputs that some linears share."""

    hessian: Hessian
    #: None: it is not made up for
    drift: Drift | None


def _with_ridge(name: str, hessian: Tensor) -> Tensor:
    """Its lower Cholesky factor.

    Raises:
        QuantizeError: The inputs are not finite.
    """
    ridge = DRIFT_RIDGE * hessian.diagonal().mean()
    damped = hessian.clone()
    damped.diagonal().add_(ridge.clamp(min=torch.finfo(torch.float32).tiny))
    lower: Tensor
    lower, failed = torch.linalg.cholesky_ex(damped.to(factoring_device(damped.device)))
    if failed:
        raise QuantizeError(
            f"{name}: its calibration activations are not finite; the weights are damaged or "
            "overflow float32"
        )
    return lower


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
    """The calibration text on its way through the network, some sequences at a time.

    Args:
        model: What computes it.
        tokens_NT: The text.
        scratch: Where large activations are in files.
    """

    def __init__(self, model: FastReference, tokens_NT: Tensor, scratch: Path) -> None:
        scratch.mkdir()
        self._model = model
        self._tokens = tokens_NT
        self._scratch = scratch
        self._buffers: list[Tensor] = []
        #: values (N, T, width) by name
        self._values: dict[str, Tensor] = {}
        self._angles = model.angles(tokens_NT.shape[1])
        #: sequences that are computed together
        self.at_once = model.arithmetic.sequences_at_once(tokens_NT.shape[1])

    def begin(self) -> None:
        """To the first layer."""
        stream = self._start(0)

        def embed(rows: slice) -> None:
            stream[rows] = self._model.embed(self._tokens[rows])

        in_batches(len(stream), self.at_once, embed)

    def resume(self, layer: int) -> Tensor:
        """The residual stream (N, T, D) before this layer, to be filled."""
        return self._start(layer)

    def _start(self, layer: int) -> Tensor:
        name = self._model.stream(layer)
        self._values = {name: self._free(self._model.config.hidden_size, torch.float32)}
        return self._values[name]

    @property
    def stream(self) -> Tensor:
        """The residual stream (N, T, D), between two layers."""
        (stream,) = self._values.values()
        return stream

    def _free(self, width: int, dtype: torch.dtype) -> Tensor:
        """A buffer that holds no value."""
        used = {value.data_ptr() for value in self._values.values()}
        for buffer in self._buffers:
            fits = buffer.shape[-1] == width and buffer.dtype == dtype
            if fits and buffer.data_ptr() not in used:
                return buffer
        place = self._scratch / f"activations-{len(self._buffers)}"
        shape = (*self._tokens.shape, width)
        device = self._model.arithmetic.device
        self._buffers.append(activation_buffer(shape, place, dtype, device))
        return self._buffers[-1]

    def advance(self, step: _Step) -> None:
        """Compute what the step keeps; a value that is not kept gives its buffer away."""
        before = dict(self._values)
        self._values = {name: before[name] for name in step.kept if name in before}
        new = [name for name in step.kept if name not in before]
        arithmetic = self._model.arithmetic

        def compute(rows: slice) -> None:
            known = {name: value[rows].to(arithmetic.device) for name, value in before.items()}
            known |= self._angles
            made = {name: self._model.value(name, known) for name in new}
            for name, value in made.items():
                if name not in self._values:
                    # What linears alone use is kept as they multiply it.
                    dtype = arithmetic.products if is_rounded(name) else torch.float32
                    self._values[name] = self._free(value.shape[-1], dtype)
                self._values[name][rows] = value.to(self._values[name].dtype)

        in_batches(len(self._tokens), self.at_once, compute)

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
    arithmetic: Arithmetic,
) -> Iterator[QuantizedEntry]:
    """Every block linear in canonical order, as its layer is reached.

    What is kept of an earlier run comes first, and the rest is what that run would have given.

    Args:
        checkpoint: Rotated already where the recipe asks for it.
        layout: The recipe, and each linear's bits and group size.
        embedding: The rounded table; the first layer sees its rows.
        tokens_NT: Calibration text, int64.
        kept: The layers that are finished already; each further one is kept in its turn.
        arithmetic: Of products, and where they are computed.

    Raises:
        QuantizeError: Activations are not finite, or a Hessian is degenerate.
        OutputError: A layer cannot be kept, or what is kept is damaged.
    """
    config = checkpoint.config
    source = _LayerSource(checkpoint, embedding, arithmetic)
    rounder = _Rounder(layout, source, arithmetic)
    weight_only = layout.recipe.activation_bits is None
    activation = (
        ActivationQuantization.NONE if weight_only else ActivationQuantization.INT8_PER_TOKEN
    )
    quantized = FastReference(config, source, arithmetic, activation)
    full = FastReference(config, source, arithmetic)
    with scratch_folder(kept.folder) as scratch:
        artifact = _CalibrationPass(quantized, tokens_NT, scratch / "rounded")
        wanted = _CalibrationPass(full, tokens_NT, scratch / "full")
        finished = kept.finished()
        for layer in range(finished):
            yield from kept.entries(layer)
        # The table is read, and rotated, once.
        full.source = ProductSource(
            CachedSource(FullPrecisionSource(config, checkpoint.weights)), arithmetic
        )
        if finished:
            streams = artifact.resume(finished), wanted.resume(finished)
            kept.load_activations(finished - 1, streams)
        else:
            artifact.begin()
            wanted.begin()
        for layer in range(finished, config.num_hidden_layers):
            # Every weight of the layer is read once, for the full-precision pass and for rounding.
            weights = CachedSource(FullPrecisionSource(config, checkpoint.weights))
            full.source = ProductSource(weights, arithmetic)
            entries: list[QuantizedEntry] = []
            for step in _steps(quantized.network, layer):
                artifact.advance(step)
                wanted.advance(step)
                if step.linears:
                    theirs = {
                        node.weight: weights.matrix(node.weight).to(arithmetic.device)
                        for node in step.linears
                    }
                    moments = _moments(artifact, wanted, step, arithmetic)
                    for entry in rounder.round(theirs, moments):
                        entries.append(entry)
                        yield entry
            source.rounded.clear()
            kept.keep(layer, entries, (artifact.stream, wanted.stream))


def makes_up_for_drift(linears: Sequence[Node]) -> bool:
    """Whether linears that share an input are corrected for its drift.

    Not where many inputs have few outputs, as in down_proj of large models: there it would take a
    fifth of the time.
    """
    shapes = [linear.shapes[linear.weight] for linear in linears]
    outputs, columns = sum(rows for rows, _ in shapes), shapes[0][1]
    return columns < WIDE or 2 * outputs > columns


def _moments(
    artifact: _CalibrationPass, wanted: _CalibrationPass, step: _Step, arithmetic: Arithmetic
) -> _Moments:
    """Of the inputs of the step's linears."""
    width = artifact.input_of(step).shape[-1]
    hessian = Hessian(width, arithmetic.device)
    drift = Drift(width, arithmetic.device) if makes_up_for_drift(step.linears) else None
    pieces = (
        torch.split(inputs.view(-1, width), _TOKENS)
        for inputs in (artifact.input_of(step), wanted.input_of(step))
    )
    for rows, full_rows in zip(*pieces, strict=True):
        both = rows.to(arithmetic.device), full_rows.to(arithmetic.device)
        for x, full in of_like_size(*both):
            hessian.add(x)
            if drift is not None:
                drift.add(x, full)
    return _Moments(hessian, drift)
