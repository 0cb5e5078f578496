"""Desktop runtimes by name: each runs one backend's written artifacts."""

from collections.abc import Callable, Mapping
from typing import Final

from llama_edge.core.errors import MissingComponentError, UnknownNameError
from llama_edge.core.session import Runtime


def _coreml() -> Runtime:
    from llama_edge.runtimes.coreml.session import CoreMLInterpreterRuntime

    return CoreMLInterpreterRuntime()


def _executorch() -> Runtime:
    from llama_edge.runtimes.executorch import ExecuTorchRuntime

    return ExecuTorchRuntime()


def _onnx() -> Runtime:
    from llama_edge.runtimes.onnx import OnnxRuntime

    return OnnxRuntime()


RUNTIMES: Final[Mapping[str, Callable[[], Runtime]]] = {
    "coreml": _coreml,
    "executorch": _executorch,
    "onnx": _onnx,
}


def get_runtime(backend: str) -> Runtime:
    """The runtime for a backend's artifacts.

    Raises:
        UnknownNameError: There is none.
        MissingComponentError: Its packages are not installed.
    """
    if backend not in RUNTIMES:
        raise UnknownNameError(f"runtime {backend!r} is unknown; choose: {', '.join(RUNTIMES)}")
    try:
        return RUNTIMES[backend]()
    except ModuleNotFoundError as error:
        raise MissingComponentError(
            f"runtime {backend}: the package {error.name!r} is not installed; "
            f"pip install 'llama-edge[{backend}]'"
        ) from error
