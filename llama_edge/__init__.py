"""llama-edge: from a Llama 3.2 checkpoint to a phone bundle that was run before it was shipped."""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llama_edge.api import Bundle, export, open_bundle

__version__ = "0.1.0"
__all__ = ["Bundle", "__version__", "export", "open_bundle"]

# Before either is imported, here and in every child: onnxruntime otherwise writes a device id and a
# database of events into the user's cache folder, and sends them; datasets, by which `eval` reads
# the data of a task, reports each file that it opens to a server.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ["HF_UPDATE_DOWNLOAD_COUNTS"] = "0"


def __getattr__(name: str) -> Any:  # noqa: ANN401 (what it is, the type checker sees above)
    """The API, imported when it is first used: `llama-edge --help` must not wait for torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from llama_edge import api

    return getattr(api, name)
