"""An XNNPACK delegate's payload as plain JSON values, and back (`schema.fbs` of the backend)."""

import json
import tempfile
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import executorch.backends.xnnpack.serialization as xnnpack_serialization
from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import XNNHeader
from executorch.exir._serialize._flatbuffer import _flatc_compile, _flatc_decompile

from llama_edge.formats.pte import align


@cache
def _schema_bytes() -> bytes:
    return resources.files(xnnpack_serialization).joinpath("schema.fbs").read_bytes()


def parse_payload(payload: bytes) -> dict[str, Any]:
    """A delegate's graph.

    Raises:
        ValueError, KeyError, IndexError, RuntimeError: It is damaged.
    """
    header = XNNHeader.from_bytes(payload[: XNNHeader.EXPECTED_LENGTH])
    start = header.flatbuffer_offset
    with tempfile.TemporaryDirectory() as folder:
        schema_path, data_path = Path(folder, "schema.fbs"), Path(folder, "graph.bin")
        schema_path.write_bytes(_schema_bytes())
        data_path.write_bytes(payload[start : start + header.flatbuffer_size])
        _flatc_decompile(folder, str(schema_path), str(data_path), ["--raw-binary"])
        graph: dict[str, Any] = json.loads(Path(folder, "graph.json").read_text())
    return graph


def build_payload(graph: dict[str, Any]) -> bytes:
    """The inverse of `parse_payload`, of a graph without constant data of its own."""
    with tempfile.TemporaryDirectory() as folder:
        schema_path, json_path = Path(folder, "schema.fbs"), Path(folder, "graph.json")
        schema_path.write_bytes(_schema_bytes())
        json_path.write_text(json.dumps(graph))
        _flatc_compile(folder, str(schema_path), str(json_path))
        data = Path(folder, "graph.bin").read_bytes()
    start = align(XNNHeader.EXPECTED_LENGTH)
    header: bytes = XNNHeader(start, len(data), start + align(len(data)), 0).to_bytes()
    return header.ljust(start, b"\0") + data.ljust(align(len(data)), b"\0")
