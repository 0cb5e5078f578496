"""Desktop runtimes by name: each runs one backend's written artifacts."""

from collections.abc import Callable, Mapping
from typing import Final

from llama_edge.core.errors import MissingComponentError, UnknownNameError, UsageError
from llama_edge.core.session import Runtime


def _coreml() -> Runtime:
    from llama_edge.runtimes.coreml.session import CoreMLInterpreterRuntime

    return CoreMLInterpreterRuntime()


def _coreml_fp16() -> Runtime:
    from llama_edge.runtimes.coreml.interpreter import Precision
    from llama_edge.runtimes.coreml.session import CoreMLInterpreterRuntime

    return CoreMLInterpreterRuntime(Precision.HALF)


def _coreml_apple() -> Runtime:
    from llama_edge.runtimes.coreml.apple import AppleRuntime

    return AppleRuntime()


def _executorch() -> Runtime:
    from llama_edge.runtimes.executorch import ExecuTorchRuntime

    return ExecuTorchRuntime()


def _onnx() -> Runtime:
    from llama_edge.runtimes.onnx import OnnxRuntime

    return OnnxRuntime()


#: By backend: what every machine can run its artifacts with, and what the gate uses.
RUNTIMES: Final[Mapping[str, Callable[[], Runtime]]] = {
    "coreml": _coreml,
    "executorch": _executorch,
    "onnx": _onnx,
}

#: Only asked for by name, which begins with the backend's: an estimate, or a system's own.
OTHER_RUNTIMES: Final[Mapping[str, Callable[[], Runtime]]] = {
    "coreml-apple": _coreml_apple,
    "coreml-fp16": _coreml_fp16,
}


def choose_runtime(backend: str, asked: str | None) -> str:
    """The name of the runtime for this backend's artifacts: the one asked for, where it fits.

    Raises:
        UsageError: It runs another backend's artifacts, or there is none of that name.
    """
    fitting = [name for name in (*RUNTIMES, *OTHER_RUNTIMES) if name.split("-")[0] == backend]
    if asked is not None and asked not in fitting:
        raise UsageError(
            f"--runtime {asked}: the artifact's backend is {backend}, which runs on: "
            f"{', '.join(fitting)}"
        )
    return asked or backend


def get_runtime(name: str) -> Runtime:
    """The runtime for a backend's artifacts, or another one by its name.

    Raises:
        UnknownNameError: There is none.
        MissingComponentError: Its packages are not installed, or it is not for this system.
    """
    known = {**RUNTIMES, **OTHER_RUNTIMES}
    if name not in known:
        raise UnknownNameError(f"runtime {name!r} is unknown; choose: {', '.join(known)}")
    try:
        return known[name]()
    except ModuleNotFoundError as error:
        raise MissingComponentError(
            f"runtime {name}: the package {error.name!r} is not installed; "
            f"pip install 'llama-edge[{name.partition('-')[0]}]'"
        ) from error
