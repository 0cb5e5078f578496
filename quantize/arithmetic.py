"""In which numbers, and on which device, calibration multiplies.

Products in bfloat16 take a quarter of the time that float32's take where the processor has them.
What they round away is small beside what int8 activations do: on SmolLM2 the KL of the recipes is
the same. Codes may differ between the two, so `Arithmetic.label` is part of every cache key.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from llama_edge.core.artifact import ActivationQuantization
from llama_edge.core.model_config import ModelConfig
from llama_edge.core.recipe import Device
from llama_edge.models.blocks import Attention, split_heads
from llama_edge.models.network import COS, SIN, Node
from llama_edge.models.reference import Reference
from llama_edge.models.rope import rope_tables
from llama_edge.models.sources import MatrixSource
from llama_edge.quantize.device import check_device, is_out_of_memory

#: Processors that multiply bfloat16: x86-64's two ways, and ARM's.
_NATIVE = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Arithmetic:
    """Where products are computed, and what their factors are rounded to."""

    device: torch.device
    products: torch.dtype

    @property
    def label(self) -> str:
        """Two runs with the same label choose the same codes, on the same kind of machine."""
        return f"{self.device.type} {str(self.products).removeprefix('torch.')}"

    @property
    def is_native(self) -> bool:
        """Whether nothing faster could be had from another processor of the kind."""
        return self.device.type != "cpu" or self.products is torch.bfloat16

    def sequences_at_once(self, length: int) -> int:
        """So many that a matrix product is efficient, and what it makes stays in the caches.

        Args:
            length: Tokens of each.
        """
        tokens = 1024 if self.device.type == "cpu" else 16384
        return max(1, tokens // length)


def arithmetic_on(device: Device) -> Arithmetic:
    """The fastest that this machine is known to have on the device.

    On Apple's GPU that is float32: nobody has compared its bfloat16.

    Raises:
        MissingComponentError: As `check_device`.
    """
    check_device(device)
    if device is Device.CPU:
        found = torch.cpu.get_capabilities()
        native = any(found.get(name, False) for name in _NATIVE)
        return Arithmetic(
            device=torch.device("cpu"), products=torch.bfloat16 if native else torch.float32
        )
    products = torch.float32 if device is Device.MPS else torch.bfloat16
    return Arithmetic(device=torch.device(device.value), products=products)


#: What tests compare with: every product in float32.
EXACT = Arithmetic(device=torch.device("cpu"), products=torch.float32)


class ProductSource:
    """`MatrixSource` whose matrices are factors of products, converted once and kept on the device.

    Args:
        source: Float32, wherever it is.
        arithmetic: What its matrices become.
    """

    def __init__(self, source: MatrixSource, arithmetic: Arithmetic) -> None:
        self._source = source
        self._arithmetic = arithmetic
        self._matrices: dict[str, Tensor] = {}
        self._vectors: dict[str, Tensor] = {}

    def matrix(self, name: str) -> Tensor:
        """See `MatrixSource`; in `Arithmetic.products`."""
        if name not in self._matrices:
            matrix = self._source.matrix(name)
            self._matrices[name] = matrix.to(self._arithmetic.device, self._arithmetic.products)
        return self._matrices[name]

    def vector(self, name: str) -> Tensor:
        """See `MatrixSource`."""
        if name not in self._vectors:
            self._vectors[name] = self._source.vector(name).to(self._arithmetic.device)
        return self._vectors[name]

    def embedding_rows(self, tokens_T: Tensor) -> Tensor:
        """See `MatrixSource`."""
        return self._source.embedding_rows(tokens_T.cpu()).to(self._arithmetic.device)


class FastReference(Reference):
    """The reference, whose products are those of an `Arithmetic`; over sequences (B, T, ...)."""

    def __init__(
        self,
        config: ModelConfig,
        source: MatrixSource,
        arithmetic: Arithmetic,
        activation: ActivationQuantization = ActivationQuantization.NONE,
    ) -> None:
        super().__init__(config, source, activation)
        self.arithmetic = arithmetic

    def angles(self, length: int) -> dict[str, Tensor]:
        """RoPE's tables of the first positions, on the device, as `value` takes them."""
        cos, sin = rope_tables(self.config, 0, length)
        return {COS: cos.to(self.arithmetic.device), SIN: sin.to(self.arithmetic.device)}

    def _linear(self, x: Tensor, node: Node) -> Tensor:
        products, bias = self.arithmetic.products, self.bias(node)
        out = F.linear(x.to(products), self.source.matrix(node.weight).to(products)).float()
        return out if bias is None else out + bias

    def _compute(self, node: Node, known: dict[str, Tensor]) -> Tensor:
        if not isinstance(node.block, Attention):
            return super()._compute(node, known)
        queries, keys, values = (self.value(name, known) for name in node.inputs)
        values = split_heads(values, node.block.head_dim)
        return fused_attention(queries, keys, values)


def fused_attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """`models.blocks.attention` of whole sequences: (B, N, T, H) to (B, T, N * H)."""
    out = F.scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=True)
    return out.transpose(-3, -2).flatten(-2)


def in_batches(count: int, size: int, work: Callable[[slice], None]) -> None:
    """Do `work` on all of `count` rows, at most `size` at a time.

    Where a device runs out of memory, it continues with half as many.

    Raises:
        RuntimeError: Not even one fits.
    """
    start = 0
    while start < count:
        try:
            work(slice(start, min(start + size, count)))
        except RuntimeError as error:
            if size == 1 or not is_out_of_memory(error):
                raise
            size //= 2
            continue
        start = min(start + size, count)
