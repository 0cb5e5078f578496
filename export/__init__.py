"""Backends by name, and the targets that a user asks for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from llama_edge.core.errors import MissingComponentError, UnknownNameError
from llama_edge.export.base import Exporter


def _executorch() -> Exporter:
    from llama_edge.export.executorch.exporter import ExecuTorchExporter

    return ExecuTorchExporter()


def _onnx() -> Exporter:
    from llama_edge.export.onnx.exporter import OnnxExporter

    return OnnxExporter()


EXPORTERS: Final[Mapping[str, Callable[[], Exporter]]] = {
    "executorch": _executorch,
    "onnx": _onnx,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a bundle is meant to run."""

    name: str
    backend: str
    summary: str
    #: what nobody has checked on such a device
    not_verified: str


TARGETS: Final[Mapping[str, Target]] = {
    "android": Target(
        name="android",
        backend="executorch",
        summary="ExecuTorch .pte on XNNPACK, as ExecuTorch's own LLM runner loads it",
        not_verified="not run on a phone: speed, memory and Arm kernels are unmeasured",
    ),
    "onnx": Target(
        name="onnx",
        backend="onnx",
        summary="ONNX folder with MatMulNBits, as onnxruntime-genai loads it",
        not_verified="run on this machine's CPU provider only",
    ),
}


def get_exporter(backend: str) -> Exporter:
    """The backend of that name.

    Raises:
        UnknownNameError: There is none.
        MissingComponentError: Its packages are not installed.
    """
    if backend not in EXPORTERS:
        raise UnknownNameError(f"backend {backend!r} is unknown; choose: {', '.join(EXPORTERS)}")
    try:
        return EXPORTERS[backend]()
    except ModuleNotFoundError as error:
        raise MissingComponentError(
            f"backend {backend}: the package {error.name!r} is not installed; "
            f"pip install 'llama-edge[{backend}]'"
        ) from error


def get_target(name: str) -> Target:
    """The target of that name.

    Raises:
        UnknownNameError: There is none.
    """
    if name not in TARGETS:
        raise UnknownNameError(f"target {name!r} is unknown; choose from: {', '.join(TARGETS)}")
    return TARGETS[name]
