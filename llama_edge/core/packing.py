"""Integer codes: int4 packing, dequantization, and the hashes by which artifacts are compared.

Shape legend: O out_features, I in_features, G groups along the input (I // group_size).
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llama_edge.core.errors import QuantizeError

#: Smallest and largest scale that bf16, fp16 and fp32 all hold as the same normal number, so
#: that .pte (bf16), .mlpackage (fp16) and .onnx (fp32) carry bit-identical scales.
MIN_SCALE = 2.0**-14
MAX_SCALE = 65280.0  # the largest bf16 number not above fp16's maximum, 65504


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedTensor:
    """A weight matrix as symmetric integer codes with one scale per group of inputs.

    `codes` is int8 (O, I) in [-2^(bits-1), 2^(bits-1) - 1]; `scales` is bfloat16 (O, G), positive.
    The value is `codes * scale`, the scale repeated over `group_size` inputs. An int8 table with
    one scale per row has `group_size == I`.
    """

    codes: Tensor
    scales: Tensor
    bits: int
    group_size: int

    def __post_init__(self) -> None:
        if self.bits not in (4, 8) or self.group_size < 1:
            raise QuantizeError(
                f"codes of {self.bits} bits in groups of {self.group_size}; "
                "4 or 8 bits and groups of at least one input are needed"
            )
        self._check_layout()
        self._check_range()

    def _check_layout(self) -> None:
        rows, columns = self.codes.shape
        expected = (rows, columns // self.group_size)
        if self.codes.dtype != torch.int8 or self.scales.dtype != torch.bfloat16:
            raise QuantizeError(
                f"codes are {self.codes.dtype} and scales {self.scales.dtype}; "
                "they must be torch.int8 and torch.bfloat16"
            )
        if columns % self.group_size or tuple(self.scales.shape) != expected:
            raise QuantizeError(
                f"scales have shape {tuple(self.scales.shape)}; codes {rows} x {columns} in groups "
                f"of {self.group_size} need {expected}"
            )

    def _check_range(self) -> None:
        if self.bits == 4 and self.codes.numel():
            low, high = self.codes.aminmax()
            if low < -8 or high > 7:
                raise QuantizeError(
                    f"4-bit codes run from {low} to {high}; the limits are -8 and 7"
                )
        # The comparison is false for NaN too.
        inside = (self.scales >= MIN_SCALE) & (self.scales <= MAX_SCALE)
        if not inside.all():
            raise QuantizeError(
                f"a scale is {self.scales[~inside][0]}; every scale must be in "
                f"[{MIN_SCALE:g}, {MAX_SCALE:g}], which each backend holds exactly"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I)."""
        rows, columns = self.codes.shape
        return rows, columns

    def dequantize(self) -> Tensor:
        """The matrix as float32 (O, I)."""
        groups = self.codes.float().view(*self.scales.shape, self.group_size)
        # In place: a 3B's table is 1.6 GB.
        return groups.mul_(self.scales.float()[..., None]).view(self.shape)

    def rows(self, index: Tensor) -> "QuantizedTensor":
        """The rows that `index` (int64) names, in its order: fusing and splitting keep codes."""
        return QuantizedTensor(
            codes=self.codes[index],
            scales=self.scales[index],
            bits=self.bits,
            group_size=self.group_size,
        )


def concatenate_rows(parts: list[QuantizedTensor]) -> QuantizedTensor:
    """Stack matrices along the output; groups run along the input, so no code changes.

    Raises:
        QuantizeError: Their bits or group sizes differ.
    """
    first = parts[0]
    formats = [(part.bits, part.group_size) for part in parts]
    if len(set(formats)) > 1:
        raise QuantizeError(
            f"matrices with (bits, group size) {formats} cannot be stacked; linears that share one "
            "product need codes of one width"
        )
    return QuantizedTensor(
        codes=torch.cat([part.codes for part in parts]),
        scales=torch.cat([part.scales for part in parts]),
        bits=first.bits,
        group_size=first.group_size,
    )


def pack_int4(codes: Tensor) -> Tensor:
    """Two's complement nibbles, low nibble first: int8 (O, I) in [-8, 7] -> uint8 (O, I // 2)."""
    nibbles = codes.view(torch.uint8) & 0xF
    return nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)


def unpack_int4(packed: Tensor) -> Tensor:
    """Inverse of `pack_int4`: uint8 (O, I // 2) -> int8 (O, I)."""
    nibbles = torch.stack((packed & 0xF, packed >> 4), dim=-1).view(packed.shape[0], -1)
    return ((nibbles ^ 8).view(torch.int8)) - 8


def pack_uint4(codes: Tensor) -> Tensor:
    """Offset-8 nibbles, low nibble first: int8 (O, I) in [-8, 7] -> uint8 (O, I // 2)."""
    nibbles = (codes + 8).view(torch.uint8)
    return nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)


def unpack_uint4(packed: Tensor) -> Tensor:
    """Inverse of `pack_uint4`: uint8 (O, I // 2) -> int8 (O, I)."""
    nibbles = torch.stack((packed & 0xF, packed >> 4), dim=-1).view(packed.shape[0], -1)
    return nibbles.view(torch.int8) - 8


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The tensor's elements in row-major order, little-endian, without a copy when contiguous."""
    flat: NDArray[np.uint8] = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return flat.data


def tensor_sha256(tensor: Tensor) -> str:
    """SHA-256 of `tensor_bytes`."""
    return hashlib.sha256(tensor_bytes(tensor)).hexdigest()
