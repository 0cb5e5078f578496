import pytest
import torch

from llama_edge.core.errors import MissingComponentError
from llama_edge.core.recipe import Device
from llama_edge.quantize.device import (
    check_device,
    factoring_device,
    is_out_of_memory,
    release_memory,
)


@pytest.mark.parametrize(
    ("device", "asked", "message"),
    [
        (Device.CUDA, "torch.cuda.is_available", "finds no CUDA device"),
        (Device.MPS, "torch.backends.mps.is_available", "finds no Metal device"),
    ],
)
def test_a_device_that_is_not_there(
    device: Device, asked: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asked, lambda: True)
    check_device(device)
    check_device(Device.CPU)
    monkeypatch.setattr(asked, lambda: False)
    with pytest.raises(MissingComponentError, match=f"--device {device.value}: .*{message}"):
        check_device(device)
    check_device(Device.CPU)


def test_matrices_of_apples_gpu_are_factored_on_the_cpu() -> None:
    assert factoring_device(torch.device("mps")) == torch.device("cpu")
    assert factoring_device(torch.device("cuda", 1)) == torch.device("cuda", 1)


def test_full_memory_is_told_from_other_errors() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GiB)"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_nothing_is_released_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    released = []
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: released.append("cuda"))
    monkeypatch.setattr("torch.mps.empty_cache", lambda: released.append("mps"))
    release_memory(Device.CPU)
    assert not released
    release_memory(Device.CUDA)
    release_memory(Device.MPS)
    assert released == ["cuda", "mps"]
