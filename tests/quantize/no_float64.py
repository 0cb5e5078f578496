"""A device without float64, as Apple's GPU is: PyTorch's "meta" device stands for it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, float64
from torch.utils._python_dispatch import TorchDispatchMode


class NoFloat64(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is entered, no operation may make a float64 tensor on that device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """See `TorchDispatchMode`."""
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and made.device.type == "meta":
            assert made.dtype is not float64, func
        return made
