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
from llama_edge.models.rope import rope_tables
from llama_edge.models.sources import CachedSource, FullPrecisionSource
from llama_edge.quantize.arithmetic import Arithmetic, FastReference, ProductSource, in_batches
from llama_edge.quantize.device import factoring_device
from llama_edge.quantize.gptq import Curvature, gptq_codes
from llama_edge.quantize.groupwise import check_scales
from llama_edge.quantize.refine import refine
from llama_edge.quantize.resume import KeptLayers, activation_buffer, scratch_folder
from llama_edge.quantize.scale_search import recipe_scales

#: Ridge of the correction for drift, relative to the Hessian's mean diagonal. Without one it fits
#: the calibration text's own noise.
DRIFT_RIDGE: Final = 0.3
#: Tokens whose products are summed at once: in bfloat16 a sum is as coarse as its terms.
_MOMENT_TOKENS: Final = 512
#: Squared length, in medians, of inputs that are summed in float32: in bfloat16 the first token,
#: whose activations are a hundred times larger, would leave noise that drowns all the others.
_LARGE: Final = 16.0
#: Rows of a symmetric product that are computed together; what is right of them is mirrored.
_MOMENT_ROWS: Final = 2048


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


class Moments:
    """Sums over sequences and tokens of x x^T and (x_full - x) x^T, float32 (I, I).

    Half of the first one is computed, and mirrored.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        self._hessian = torch.zeros(width, width, device=device)
        self.drift = torch.zeros(width, width, device=device)

    def add(self, inputs: Tensor, full_inputs: Tensor) -> None:
        """Of (T, I), as products take them."""
        sizes = inputs.float().square().sum(-1)
        is_large = sizes > _LARGE * sizes.median()
        self._add(inputs[is_large].float(), full_inputs[is_large].float())
        for x, full in zip(
            torch.split(inputs[~is_large], _MOMENT_TOKENS),
            torch.split(full_inputs[~is_large], _MOMENT_TOKENS),
            strict=True,
        ):
            self._add(x, full)

    def _add(self, x: Tensor, full: Tensor) -> None:
        difference = (full.float() - x.float()).to(x.dtype)
        self.drift += difference.T @ x
        for start in range(0, len(self._hessian), _MOMENT_ROWS):
            rows = slice(start, start + _MOMENT_ROWS)
            self._hessian[rows, : rows.stop] += x[:, rows].T @ x[:, : rows.stop]

    def hessian(self) -> Tensor:
        """Both halves; the sums are used up."""
        return self._hessian.tril_().add_(self._hessian.tril(-1).T)


class _Rounder:
    """Chooses scales and codes of linears that share an input, given what that input was."""

    def __init__(self, layout: Layout, source: _LayerSource, arithmetic: Arithmetic) -> None:
        self._layout = layout
        self._source = source
        self._arithmetic = arithmetic

    def round(self, weights: Mapping[str, Tensor], moments: Moments) -> Iterator[QuantizedEntry]:
        """Round the linears that multiply the inputs of `moments`, those alike as one matrix."""
        hessian = moments.hessian()
        correction = _Correction(next(iter(weights)), hessian, moments.drift)
        curvature = Curvature.of(next(iter(weights)), hessian)

        def kind(name: str) -> tuple[int, int]:
            return self._layout.bits(name), self._layout.group_size(name)

        for (bits, group_size), names in groupby(weights, kind):
            alike = {name: weights[name] for name in names}
            scales = torch.cat(
                [recipe_scales(name, weight, self._layout) for name, weight in alike.items()]
            ).to(self._arithmetic.device)
            weight = torch.cat(tuple(alike.values())).to(self._arithmetic.device)
            wanted = correction.applied(weight)
            codes = gptq_codes(wanted, curvature, scales, bits)
            if bits == 4:  # eight bits leave nothing to gain
                codes, scales = refine(wanted, curvature, codes, scales, bits)
            sizes = [len(weight) for weight in alike.values()]
            for name, some, theirs in zip(
                alike,
                torch.split(codes.cpu(), sizes),
                torch.split(scales.cpu(), sizes),
                strict=True,
            ):
                check_scales(name, alike[name], theirs)
                tensor = QuantizedTensor(
                    codes=some.clone(), scales=theirs.clone(), bits=bits, group_size=group_size
                )
                self._source.rounded[name] = tensor.dequantize().to(
                    self._arithmetic.device, self._arithmetic.products
                )
                yield QuantizedEntry(name, tensor)


class _Correction:
    """`W + W D (H + ridge)^-1`: what on the drifted inputs comes nearest to W on the right ones."""

    def __init__(self, name: str, hessian: Tensor, drift: Tensor) -> None:
        ridge = DRIFT_RIDGE * hessian.diagonal().mean()
        damped = hessian.clone()
        damped.diagonal().add_(ridge.clamp(min=torch.finfo(torch.float32).tiny))
        self._lower, failed = torch.linalg.cholesky_ex(damped.to(factoring_device(damped.device)))
        if failed:
            raise QuantizeError(
                f"{name}: its calibration activations are not finite; the weights are damaged or "
                "overflow float32"
            )
        self._drift = drift

    def applied(self, weight: Tensor) -> Tensor:
        """To (O, I)."""
        right = (weight @ self._drift).T.to(self._lower.device)
        moved = torch.cholesky_solve(right, self._lower).T.to(weight.device)
        return moved.add_(weight)


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
        cos, sin = rope_tables(model.config, 0, tokens_NT.shape[1])
        device = model.arithmetic.device
        self._angles = {COS: cos.to(device), SIN: sin.to(device)}
        #: sequences that are computed together
        self.at_once = max(1, model.arithmetic.tokens_at_once // tokens_NT.shape[1])

    def begin(self) -> None:
        """To the first layer."""
        stream = self._start(0)

        def embed(rows: slice) -> None:
            stream[rows] = self._model.embed(self._tokens[rows]).cpu()

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
        self._buffers.append(activation_buffer((*self._tokens.shape, width), place, dtype))
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
                self._values[name][rows] = value.to("cpu", self._values[name].dtype)

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
                    moments = _moments(artifact, wanted, step, arithmetic)
                    theirs = {n.weight: weights.matrix(n.weight) for n in step.linears}
                    for entry in rounder.round(theirs, moments):
                        entries.append(entry)
                        yield entry
            source.rounded.clear()
            kept.keep(layer, entries, (artifact.stream, wanted.stream))


def _moments(
    artifact: _CalibrationPass, wanted: _CalibrationPass, step: _Step, arithmetic: Arithmetic
) -> Moments:
    """Of the inputs of the step's linears."""
    inputs, full_inputs = artifact.input_of(step), wanted.input_of(step)
    found = Moments(inputs.shape[-1], arithmetic.device)
    for rows, full_rows in zip(inputs, full_inputs, strict=True):
        found.add(rows.to(arithmetic.device), full_rows.to(arithmetic.device))
    return found
