"""Where a recipe calibrates: is it here, what can it not do, and is its memory full."""

import torch

from llama_edge.core.errors import MissingComponentError
from llama_edge.core.recipe import Device


def check_device(device: Device) -> None:
    """Fail before any work when this machine lacks the device.

    Raises:
        MissingComponentError: "cuda" or "mps", without such a GPU or without a PyTorch that can use
            it.
    """
    if device is Device.CUDA and not torch.cuda.is_available():
        raise MissingComponentError(
            "--device cuda: PyTorch finds no CUDA device on this machine; leave the option out to "
            "calibrate on the CPU, or install a CUDA build of torch where there is a GPU"
        )
    if device is Device.MPS and not torch.backends.mps.is_available():
        raise MissingComponentError(
            "--device mps: PyTorch finds no Metal device on this machine, which is there on Macs "
            "with Apple silicon and macOS 14 or later; leave the option out to calibrate "
            "on the CPU"
        )


def factoring_device(device: torch.device) -> torch.device:
    """Where matrices of the device are factored: PyTorch has not all it takes on Apple's GPU."""
    return torch.device("cpu") if device.type == "mps" else device


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether the device's memory was full; Metal's allocator has no error class of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error)


def release_memory(device: Device) -> None:
    """Give back what PyTorch keeps of freed tensors, which may be in pieces too small to use."""
    if device is Device.CUDA:
        torch.cuda.empty_cache()
    elif device is Device.MPS:
        torch.mps.empty_cache()
