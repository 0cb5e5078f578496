"""llama-edge: from a Llama 3.2 checkpoint to a phone bundle that was run before it was shipped."""

import os

__version__ = "0.1.0"

# Before either is imported, here and in every child: onnxruntime otherwise writes a device id and a
# database of events into the user's cache folder, and sends them; datasets, by which `eval` reads
# the data of a task, reports each file that it opens to a server.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ["HF_UPDATE_DOWNLOAD_COUNTS"] = "0"
