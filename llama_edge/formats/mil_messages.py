"""Core ML's protobuf messages, without the rest of coremltools.

Importing coremltools takes 6 s and 400 MB, because it asks for every framework that it converts
from; its `proto` folder takes 0.1 s and is all that reading a package needs. The modules are loaded
under a name of their own. A process that imports coremltools as well meets the same descriptors
twice, which protobuf allows as long as they are equal, as the same files are.
"""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Final

_PACKAGE: Final = "coremltools"
_NAME: Final = "llama_edge_coremltools_proto"


def _load() -> ModuleType:
    if _NAME in sys.modules:
        return sys.modules[_NAME]
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(f"No module named {_PACKAGE!r}", name=_PACKAGE)
    folder = Path(found.submodule_search_locations[0]) / "proto"
    spec = importlib.util.spec_from_file_location(
        _NAME, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"{folder}: cannot be loaded", name=_PACKAGE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[_NAME] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[_NAME]
        raise
    return module


_load()
MIL_pb2: Final = importlib.import_module(f"{_NAME}.MIL_pb2")
Model_pb2: Final = importlib.import_module(f"{_NAME}.Model_pb2")
