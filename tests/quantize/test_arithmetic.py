"""Products in bfloat16 against exact ones, and batches that a device cannot hold."""

import pytest
import torch

from llama_edge.core.artifact import ActivationQuantization
from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.errors import MissingComponentError
from llama_edge.core.recipe import Device
from llama_edge.models.reference import KVCache, Reference
from llama_edge.models.sources import FullPrecisionSource
from llama_edge.quantize.arithmetic import (
    EXACT,
    Arithmetic,
    FastReference,
    ProductSource,
    arithmetic_on,
    in_batches,
)

HALF = Arithmetic(device=torch.device("cpu"), products=torch.bfloat16)


def final(checkpoint: Checkpoint, arithmetic: Arithmetic, tokens: torch.Tensor) -> torch.Tensor:
    """Residual stream of the last layer, block by block as calibration computes it."""
    source = ProductSource(FullPrecisionSource(checkpoint.config, checkpoint.weights), arithmetic)
    rounding = ActivationQuantization.INT8_PER_TOKEN
    model = FastReference(checkpoint.config, source, arithmetic, rounding)
    return model.hidden(model.embed(tokens), KVCache())


def test_exact_products_are_the_references(debug_checkpoint: Checkpoint) -> None:
    tokens = torch.arange(3, 99)
    source = FullPrecisionSource(debug_checkpoint.config, debug_checkpoint.weights)
    rounding = ActivationQuantization.INT8_PER_TOKEN
    reference = Reference(debug_checkpoint.config, source, rounding)
    wanted = reference.hidden(reference.embed(tokens), KVCache())
    torch.testing.assert_close(final(debug_checkpoint, EXACT, tokens), wanted)


def test_bfloat16_products_are_near(debug_checkpoint: Checkpoint) -> None:
    tokens = torch.arange(3, 99)
    wanted, found = (final(debug_checkpoint, kind, tokens) for kind in (EXACT, HALF))
    error = (found - wanted).norm() / wanted.norm()
    assert 0 < error < 0.05


def test_the_label_tells_them_apart() -> None:
    assert (EXACT.label, HALF.label) == ("cpu float32", "cpu bfloat16")


@pytest.mark.parametrize(
    ("found", "products"),
    [({"avx512_bf16": True}, torch.bfloat16), ({"avx2": True}, torch.float32)],
)
def test_a_processor_without_bfloat16_multiplies_float32(
    found: dict[str, bool], products: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: found)
    arithmetic = arithmetic_on(Device.CPU)
    assert arithmetic.products is products
    assert arithmetic.is_native is (products is torch.bfloat16)


@pytest.mark.parametrize(
    ("device", "asked", "products"),
    [
        (Device.CUDA, "torch.cuda.is_available", torch.bfloat16),
        (Device.MPS, "torch.backends.mps.is_available", torch.float32),
    ],
)
def test_a_gpu_multiplies_what_was_tried_on_it(
    device: Device, asked: str, products: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asked, lambda: True)
    arithmetic = arithmetic_on(device)
    assert (arithmetic.device.type, arithmetic.products) == (device.value, products)
    assert arithmetic.is_native
    monkeypatch.setattr(asked, lambda: False)
    with pytest.raises(MissingComponentError, match=f"--device {device.value}: "):
        arithmetic_on(device)


@pytest.mark.parametrize("full", [torch.OutOfMemoryError(), RuntimeError("MPS: out of memory")])
def test_what_does_not_fit_is_done_in_smaller_batches(full: RuntimeError) -> None:
    done: list[int] = []

    def work(rows: slice) -> None:
        if rows.stop - rows.start > 3:
            raise full
        done.extend(range(rows.start, rows.stop))

    in_batches(11, 8, work)
    assert done == list(range(11))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(), RuntimeError("another")])
def test_a_row_that_does_not_fit_is_an_error(error: RuntimeError) -> None:
    def work(rows: slice) -> None:
        del rows
        raise error

    with pytest.raises(type(error)):
        in_batches(2, 2, work)
