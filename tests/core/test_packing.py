import hashlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from llama_edge.core.errors import QuantizeError
from llama_edge.core.packing import (
    MAX_SCALE,
    MIN_SCALE,
    QuantizedTensor,
    concatenate_rows,
    pack_int4,
    pack_uint4,
    tensor_bytes,
    tensor_sha256,
    unpack_int4,
    unpack_uint4,
)

ROW = torch.tensor([[0, 1, 7, -8, -1, -7, 3, -4]], dtype=torch.int8)
#: Every pair of codes once.
ALL_PAIRS = torch.cartesian_prod(*[torch.arange(-8, 8, dtype=torch.int8)] * 2).view(16, -1)


def quantized(
    codes: list[list[int]], scales: list[list[float]], *, bits: int = 4, group_size: int = 2
) -> QuantizedTensor:
    return QuantizedTensor(
        codes=torch.tensor(codes, dtype=torch.int8),
        scales=torch.tensor(scales, dtype=torch.bfloat16),
        bits=bits,
        group_size=group_size,
    )


def test_int4_nibbles_by_hand() -> None:
    # Low nibble first, two's complement: (0, 1) -> 0x10, (7, -8) -> 0x87, (-1, -7) -> 0x9f,
    # (3, -4) -> 0xc3.
    assert pack_int4(ROW).tolist() == [[0x10, 0x87, 0x9F, 0xC3]]


def test_uint4_nibbles_by_hand() -> None:
    # Code + 8: (8, 9) -> 0x98, (15, 0) -> 0x0f, (7, 1) -> 0x17, (11, 4) -> 0x4b.
    assert pack_uint4(ROW).tolist() == [[0x98, 0x0F, 0x17, 0x4B]]


@pytest.mark.parametrize(("pack", "unpack"), [(pack_int4, unpack_int4), (pack_uint4, unpack_uint4)])
def test_every_pair_of_codes_comes_back(
    pack: Callable[[Tensor], Tensor], unpack: Callable[[Tensor], Tensor]
) -> None:
    packed = pack(ALL_PAIRS)
    assert packed.dtype == torch.uint8
    assert packed.shape == (16, 16)
    assert len(set(packed.flatten().tolist())) == 256
    restored = unpack(packed)
    assert restored.dtype == torch.int8
    assert torch.equal(restored, ALL_PAIRS)


def test_the_two_packings_differ_by_the_sign_bit_of_each_nibble() -> None:
    assert torch.equal(pack_int4(ALL_PAIRS) ^ 0x88, pack_uint4(ALL_PAIRS))


def test_packing_reads_a_view_with_strides() -> None:
    assert torch.equal(unpack_int4(pack_int4(ALL_PAIRS.t())), ALL_PAIRS.t())


def test_dequantize_repeats_a_scale_over_its_group() -> None:
    tensor = quantized([[1, -2, 3, -8], [7, 0, -1, 4]], [[0.5, 2.0], [1.0, 0.25]])
    assert tensor.shape == (2, 4)
    assert tensor.dequantize().tolist() == [[0.5, -1.0, 6.0, -16.0], [7.0, 0.0, -0.25, 1.0]]


def test_rows_and_concatenate_rows_are_inverse() -> None:
    tensor = quantized([[1, 2], [3, 4], [5, 6]], [[0.5], [1.0], [2.0]])
    parts = [tensor.rows(torch.tensor([2])), tensor.rows(torch.tensor([0, 1]))]
    stacked = concatenate_rows(parts)
    assert stacked.codes.tolist() == [[5, 6], [1, 2], [3, 4]]
    assert stacked.scales.tolist() == [[2.0], [0.5], [1.0]]
    assert (stacked.bits, stacked.group_size) == (4, 2)


def test_no_rows_are_an_empty_matrix() -> None:
    tensor = quantized([[1, 2]], [[0.5]]).rows(torch.tensor([], dtype=torch.int64))
    assert tensor.dequantize().shape == (0, 2)


def test_hash_is_over_little_endian_rows() -> None:
    scales = torch.tensor([[1.0, -2.0]], dtype=torch.bfloat16)  # 0x3f80, 0xc000
    assert bytes(tensor_bytes(scales)) == b"\x80\x3f\x00\xc0"
    assert tensor_sha256(ROW) == hashlib.sha256(bytes([0, 1, 7, 248, 255, 249, 3, 252])).hexdigest()
    assert tensor_sha256(ALL_PAIRS.t()) == tensor_sha256(ALL_PAIRS.t().contiguous())
    assert tensor_sha256(ALL_PAIRS.t()) != tensor_sha256(ALL_PAIRS)


@pytest.mark.parametrize(
    ("codes", "scales", "bits", "group_size", "message"),
    [
        ([[1, 2]], [[1.0]], 3, 2, "codes of 3 bits"),
        ([[1, 2]], [[1.0]], 4, 0, "groups of 0"),
        ([[1, 2, 3]], [[1.0]], 4, 2, r"scales have shape \(1, 1\); codes 1 x 3"),
        ([[1, 2]], [[1.0, 1.0]], 4, 2, r"need \(1, 1\)"),
        ([[1, 8]], [[1.0]], 4, 2, r"4-bit codes run from 1 to 8"),
        ([[-9, 2]], [[1.0]], 4, 2, r"4-bit codes run from -9 to 2"),
        ([[1, 2]], [[0.0]], 4, 2, "a scale is 0"),
        ([[1, 2]], [[-1.0]], 4, 2, "a scale is -1"),
        ([[1, 2]], [[float("nan")]], 8, 2, "a scale is nan"),
        ([[1, 2]], [[MIN_SCALE / 2]], 8, 2, "a scale is 3.05"),
        ([[1, 2]], [[65536.0]], 8, 2, "a scale is 65536"),
    ],
)
def test_a_damaged_matrix_is_refused(
    codes: list[list[int]],
    scales: list[list[float]],
    bits: int,
    group_size: int,
    message: str,
) -> None:
    with pytest.raises(QuantizeError, match=message):
        quantized(codes, scales, bits=bits, group_size=group_size)


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(QuantizeError, match=r"torch\.int32"):
        QuantizedTensor(codes=ROW.int(), scales=torch.ones(1, 1).bfloat16(), bits=4, group_size=8)
    with pytest.raises(QuantizeError, match=r"torch\.float32"):
        QuantizedTensor(codes=ROW, scales=torch.ones(1, 1), bits=4, group_size=8)


@pytest.mark.parametrize("limit", [MIN_SCALE, MAX_SCALE])
def test_the_limits_are_normal_numbers_of_every_backends_format(limit: float) -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        stored = torch.tensor(limit, dtype=dtype)
        assert stored.item() == limit
        assert stored.item() >= torch.finfo(dtype).smallest_normal
    assert quantized([[1, 2]], [[limit]]).dequantize()[0, 1] == 2 * limit
