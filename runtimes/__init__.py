"""Desktop runtimes by name: each runs one backend's written artifacts."""

from collections.abc import Callable, Mapping
from typing import Final

from llama_edge.core.errors import MissingComponentError, UnknownNameError
from llama_edge.core.session import Runtime


def _coreml() -> Runtime:
    from llama_edge.runtimes.coreml.session import CoreMLInterpreterRuntime

    return CoreMLInterpreterRuntime()


def _coreml_apple() -> Runtime:
    from llama_edge.runtimes.coreml.apple import AppleRuntime

    return AppleRuntime()


def _executorch() -> Runtime:
    from llama_edge.runtimes.executorch import ExecuTorchRuntime

    return ExecuTorchRuntime()


def _onnx() -> Runtime:
    from llama_edge.runtimes.onnx import OnnxRuntime

    return OnnxRuntime()


#: By backend: what every machine can run its artifacts with.
RUNTIMES: Final[Mapping[str, Callable[[], Runtime]]] = {
    "coreml": _coreml,
    "executorch": _executorch,
    "onnx": _onnx,
}

#: Only asked for by name: they need a system that not every machine has.
SYSTEM_RUNTIMES: Final[Mapping[str, Callable[[], Runtime]]] = {"coreml-apple": _coreml_apple}


def get_runtime(name: str) -> Runtime:
    """The runtime for a backend's artifacts, or another one by its name.

    Raises:
        UnknownNameError: There is none.
        MissingComponentError: Its packages are not installed, or it is not for this system.
    """
    known = {**RUNTIMES, **SYSTEM_RUNTIMES}
    if name not in known:
        raise UnknownNameError(f"runtime {name!r} is unknown; choose: {', '.join(known)}")
    try:
        return known[name]()
    except ModuleNotFoundError as error:
        raise MissingComponentError(
            f"runtime {name}: the package {error.name!r} is not installed; "
            f"pip install 'llama-edge[{name.partition('-')[0]}]'"
        ) from error
