"""An XNNPACK delegate's payload as plain JSON values, and back (`schema.fbs` of the backend)."""

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import executorch.backends.xnnpack.serialization as xnnpack_serialization
from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import XNNHeader
from executorch.exir._serialize._flatbuffer import _flatc_compile, _flatc_decompile

from llama_edge.core.errors import ArtifactError
from llama_edge.formats.pte import align


@cache
def _schema_bytes() -> bytes:
    return resources.files(xnnpack_serialization).joinpath("schema.fbs").read_bytes()


@dataclass(frozen=True, slots=True)
class PayloadPart:
    """An object of a payload's JSON; what it leaves out is 0, "" or empty, as in the schema."""

    values: Mapping[str, Any]
    #: Names the file in messages.
    where: str

    def number(self, key: str) -> int:
        """An integer, not negative.

        Raises:
            ArtifactError: It is something else.
        """
        value = self.values.get(key, 0)
        if type(value) is not int or value < 0:
            raise self._wrong(key, value, "a number")
        return value

    def text(self, key: str) -> str:
        """A text.

        Raises:
            ArtifactError: It is something else.
        """
        value = self.values.get(key, "")
        if not isinstance(value, str):
            raise self._wrong(key, value, "a text")
        return value

    def part(self, key: str) -> "PayloadPart":
        """An object.

        Raises:
            ArtifactError: It is something else.
        """
        value = self.values.get(key, {})
        if not isinstance(value, dict):
            raise self._wrong(key, value, "an object")
        return PayloadPart(value, self.where)

    def parts(self, key: str) -> Sequence["PayloadPart"]:
        """A list of objects.

        Raises:
            ArtifactError: It is something else.
        """
        value = self.values.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self._wrong(key, value, "a list of objects")
        return [PayloadPart(item, self.where) for item in value]

    def _wrong(self, key: str, value: object, needed: str) -> ArtifactError:
        return ArtifactError(
            f"{self.where}: a delegate's {key} is {value!r:.80}; {needed} is needed: the file is "
            "damaged; copy or export it again"
        )


def read_payload(payload: bytes, where: str) -> PayloadPart:
    """An untrusted delegate's graph.

    Args:
        payload: Its bytes.
        where: Names the file in messages.

    Raises:
        ArtifactError: It is damaged.
    """
    try:
        return PayloadPart(parse_payload(payload), where)
    except (ValueError, LookupError, RuntimeError, OSError, subprocess.SubprocessError) as error:
        raise ArtifactError(f"{where}: a delegate's payload cannot be parsed: {error}") from error


def parse_payload(payload: bytes) -> dict[str, Any]:
    """A delegate's graph.

    Raises:
        ValueError, LookupError, RuntimeError, OSError, SubprocessError: It is damaged.
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
