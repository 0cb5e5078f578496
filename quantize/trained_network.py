"""A quantized network whose scales, norm weights and head rotation are trained; codes are fixed.

What is trained are shifts from where rounding has left these: of the logarithm of a scale or of a
norm weight, which keeps its sign and makes a learning rate a relative change; and of the elements
of the rotation before a tied head. All shifts are in one vector, so that the optimizer, the average
and the saved state need no names. The first norm's uneven weights (`rotate.tie_breaker`) are
trained like any other: factors of their own for each channel leave them as uneven.

The int8 embedding and head stay as they are: on SmolLM2 rounding them costs KL 0.002, and nearly
all of the rest is the block linears'.

Shape legend: P trained numbers, O out_features, I in_features, G groups of inputs, D hidden.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from llama_edge.core.packing import MAX_SCALE, MIN_SCALE, QuantizedTensor
from llama_edge.core.recipe import Distillation
from llama_edge.formats.quantized_checkpoint import TABLES, Layout, QuantizedEntry
from llama_edge.models.blocks import HeadNorm, RMSNorm
from llama_edge.models.network import network_of
from llama_edge.models.weight_names import EMBEDDING, HEAD_ROTATION, LM_HEAD
from llama_edge.models.weights import block_linear_names, float_shapes
from llama_edge.quantize.straight_through import straight_through


@dataclass(frozen=True, slots=True)
class _Part:
    """The shifts of one tensor."""

    name: str
    shape: tuple[int, ...]
    rate: float

    @property
    def count(self) -> int:
        return math.prod(self.shape)


def _parts(layout: Layout, distillation: Distillation) -> Iterator[_Part]:
    """What is trained, in the order of the vector; what has a rate of zero is left out."""
    for name in block_linear_names(layout.config):
        _, shape = layout.matrix_tensors(name)[f"{name}.scales"]
        yield _Part(name, shape, distillation.scale_rate)
    network = network_of(layout.config)
    norms = {node.weight for kind in (RMSNorm, HeadNorm) for node in network.of_kind(kind)}
    for name, shape in float_shapes(layout.config).items():
        if name in norms and distillation.norm_rate:
            yield _Part(name, shape, distillation.norm_rate)
        if name == HEAD_ROTATION and distillation.rotation_rate:
            yield _Part(name, shape, distillation.rotation_rate)


def _stored(scales: Tensor) -> Tensor:
    """In bfloat16, and in the range that every backend holds exactly."""
    return scales.clamp(MIN_SCALE, MAX_SCALE).bfloat16()


class TrainedNetwork:
    """`MatrixSource` of quantized weights, with gradients.

    Args:
        layout: How the entries are stored.
        entries: Everything that is stored.
        distillation: The learning rates.
        device: Where the network is computed.
    """

    def __init__(
        self,
        layout: Layout,
        entries: Iterable[QuantizedEntry],
        distillation: Distillation,
        device: torch.device,
    ) -> None:
        self._entries = tuple(entries)
        self._head = EMBEDDING if layout.config.tie_word_embeddings else LM_HEAD
        self._tables: dict[str, Tensor] = {}
        self._codes: dict[str, Tensor] = {}
        #: before training: scales, vectors, and the head rotation
        self._start: dict[str, Tensor] = {}
        for entry in self._entries:
            self._place(entry, device)
        parts = tuple(_parts(layout, distillation))
        count = sum(part.count for part in parts)
        #: float32 (P,), as the next two
        self.shifts = torch.zeros(count, device=device)
        #: the loss's, added to by each backward pass
        self.gradient = torch.zeros(count, device=device)
        self.rates = torch.cat([torch.full((part.count,), part.rate) for part in parts]).to(device)
        self._shifts = dict(self._leaves(parts))

    def _place(self, entry: QuantizedEntry, device: torch.device) -> None:
        name, value = entry.name, entry.value
        if not isinstance(value, QuantizedTensor):
            self._start[name] = value.to(device)
        elif name in TABLES:
            self._tables[name] = value.dequantize().to(device)
        else:
            self._codes[name] = value.codes.to(device)
            self._start[name] = value.scales.float().to(device)

    def _leaves(self, parts: Iterable[_Part]) -> Iterator[tuple[str, Tensor]]:
        """Views of the vector, whose gradients are views of its gradient."""
        start = 0
        for part in parts:
            piece = slice(start, start + part.count)
            leaf = self.shifts[piece].view(part.shape).requires_grad_()
            leaf.grad = self.gradient[piece].view(part.shape)
            yield part.name, leaf
            start += part.count

    def _scales(self, name: str) -> Tensor:
        """A block linear's scales, before they become bfloat16 (O, G)."""
        return self._start[name] * self._shifts[name].exp()

    def matrix(self, name: str) -> Tensor:
        """See `MatrixSource`."""
        if name == HEAD_ROTATION:
            start = self._start[name]
            return start + self._shifts[name] if name in self._shifts else start
        if name == LM_HEAD:
            return self._tables[self._head]
        codes, wanted = self._codes[name], self._scales(name)
        scales = straight_through(wanted, _stored(wanted).float())
        return (codes.view(*scales.shape, -1) * scales[..., None]).view(codes.shape)

    def vector(self, name: str) -> Tensor:
        """See `MatrixSource`."""
        start = self._start[name]
        return start * self._shifts[name].exp() if name in self._shifts else start

    def embedding_rows(self, tokens_T: Tensor) -> Tensor:
        """See `MatrixSource`."""
        return self._tables[EMBEDDING][tokens_T]

    @torch.no_grad()
    def entries(self) -> Iterator[QuantizedEntry]:
        """What is stored, with the shifts as they are."""
        for entry in self._entries:
            name, value = entry.name, entry.value
            if name in TABLES:
                yield entry
            elif isinstance(value, QuantizedTensor):
                scales = _stored(self._scales(name)).cpu()
                yield QuantizedEntry(name, replace(value, scales=scales))
            else:
                trained = self.matrix(name) if name == HEAD_ROTATION else self.vector(name)
                yield QuantizedEntry(name, trained.cpu())
