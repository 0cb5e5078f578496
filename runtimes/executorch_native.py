"""ExecuTorch's C extension, with the operators that a program names, and nothing else.

The package's own doors, `executorch.runtime` and `custom_ops.custom_ops`, import its exporter and
torch's compiler too, which took two thirds of the processor time until a program was loaded. What
runs a program is in three shared libraries, and all that those doors add is to load them.
Source: `runtime/__init__.py`, `extension/pybindings/portable_lib.py` and
`extension/llm/custom_ops/custom_ops.py` in ExecuTorch.
"""

import importlib.metadata
from importlib import resources
from pathlib import Path

import torch  # first: the extension is linked against its libraries

# Second: the operators are linked against it.
from executorch.extension.pybindings._portable_lib import (
    ExecuTorchProgram,
    Verification,
    _load_program,
    _unsafe_reset_threadpool,
)

from llama_edge.core.errors import MissingComponentError


def load_operators(package: str, library: str) -> None:
    """Register the operators of an installed package's one library of that name.

    Args:
        package: Imported in full, as `executorch.kernels.quantized`.
        library: Name without the system's ending.

    Raises:
        MissingComponentError: There is none, or more than one.
    """
    found = [
        item for item in resources.files(package).iterdir() if item.name.startswith(f"{library}.")
    ]
    if len(found) != 1:
        raise MissingComponentError(
            f"{package}: has {len(found)} libraries named {library}, where ExecuTorch "
            f"{importlib.metadata.version('executorch')} needs one; install executorch again"
        )
    with resources.as_file(found[0]) as path:
        torch.ops.load_library(path)  # type: ignore[no-untyped-call]


def load_program(path: Path) -> ExecuTorchProgram:
    """Map a `.pte` and check its flatbuffer; the program owns the mapped file.

    Raises:
        RuntimeError: ExecuTorch refuses it.
    """
    return _load_program(str(path), program_verification=Verification.InternalConsistency)


def reset_thread_pool(threads: int) -> None:
    """Replace the process's pool; nothing may run in it meanwhile."""
    _unsafe_reset_threadpool(threads)


load_operators("executorch.extension.llm.custom_ops", "libcustom_ops_aot_lib")
load_operators("executorch.kernels.quantized", "libquantized_ops_aot_lib")
