"""The bytes of a `.pte`: flatbuffer, extended header, segments; written as a stream, read lazily.

Source: `exir/_serialize/_program.py` and `schema/extended_header.cpp` in ExecuTorch. The stock
writer builds the whole file in memory; here a segment's bytes are made when its turn comes.
"""

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from executorch.exir import schema
from executorch.exir._serialize._flatbuffer_program import (
    _flatbuffer_to_program,
    _program_to_flatbuffer,
)

from llama_edge.core.errors import ArtifactError
from llama_edge.core.files import open_new
from llama_edge.core.regular import map_regular

SEGMENT_ALIGNMENT: Final = 128
_HEADER_MAGIC: Final = b"eh00"
_HEADER_LENGTH: Final = 32
_CONSTANT_ALIGNMENT: Final = 16


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of bytes after the flatbuffer; `read` is called once, in file order."""

    size_bytes: int
    read: Callable[[], Iterable[memoryview]]


@dataclass(frozen=True, slots=True)
class SegmentAlias:
    """A second name for part of an earlier segment: one table, two readers."""

    segment: int
    offset: int
    size_bytes: int


def align(offset: int) -> int:
    """The next multiple of the segment alignment."""
    return offset + -offset % SEGMENT_ALIGNMENT


def lay_out(segments: Sequence[Segment | SegmentAlias]) -> list[schema.DataSegment]:
    """Offsets, relative to the first segment, in the order given."""
    placed: list[schema.DataSegment] = []
    end = 0
    for segment in segments:
        if isinstance(segment, SegmentAlias):
            start = placed[segment.segment].offset + segment.offset
        else:
            start = align(end)
            end = start + segment.size_bytes
        placed.append(schema.DataSegment(offset=start, size=segment.size_bytes))
    return placed


def encode_program(program: schema.Program) -> tuple[bytes, int]:
    """The file's front: flatbuffer and header, padded; its length is where segments begin.

    `program.segments` must be laid out already.
    """
    flatbuffer = _program_to_flatbuffer(
        program, constant_tensor_alignment=_CONSTANT_ALIGNMENT, delegate_alignment=None
    )
    header_size = _HEADER_LENGTH + -_HEADER_LENGTH % flatbuffer.max_alignment
    program_size = header_size + len(flatbuffer.data)
    base = align(program_size)
    ends = [segment.offset + segment.size for segment in program.segments]
    header = _HEADER_MAGIC + struct.pack(
        "<IQQQ", _HEADER_LENGTH, program_size, base, max(ends, default=0)
    )
    # The header sits after the root offset and the file identifier, so the root moves.
    (root,) = struct.unpack_from("<I", flatbuffer.data)
    moved_root = struct.pack("<I", root + header_size) + bytes(flatbuffer.data[4:8])
    front = moved_root + header.ljust(header_size, b"\0") + bytes(flatbuffer.data[8:])
    return front.ljust(base, b"\0"), base


def write_pte(
    path: Path, program: schema.Program, segments: Sequence[Segment | SegmentAlias]
) -> None:
    """Write the file; `program.segments` is set from the layout of `segments`."""
    program.segments = lay_out(segments)
    front, base = encode_program(program)
    with open_new(path) as stream:
        stream.write(front)
        for segment, placed in zip(segments, program.segments, strict=True):
            if isinstance(segment, SegmentAlias):
                continue
            stream.write(b"\0" * (base + placed.offset - stream.tell()))
            for piece in segment.read():
                stream.write(piece)
            assert stream.tell() == base + placed.offset + segment.size_bytes


class PteFile:
    """A `.pte` opened for reading: its program, and its segments as views of the mapped file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        view = map_regular(path)
        program_size, self._base = self._read_header(view)
        try:
            self.program: schema.Program = _flatbuffer_to_program(bytes(view[:program_size]))
        except (struct.error, ValueError, TypeError, IndexError, AttributeError) as error:
            raise ArtifactError(f"{path}: the program cannot be parsed: {error}") from error
        for index, segment in enumerate(self.program.segments):
            if self._base + segment.offset + segment.size > len(view):
                raise ArtifactError(
                    f"{path}: segment {index} ends at byte "
                    f"{self._base + segment.offset + segment.size}; the file has {len(view)}: "
                    "it is truncated"
                )
        self._view = view

    def _read_header(self, view: memoryview) -> tuple[int, int]:
        if (
            len(view) < 8 + _HEADER_LENGTH
            or bytes(view[4:6]) != b"ET"
            or bytes(view[8:12]) != _HEADER_MAGIC
        ):
            raise ArtifactError(f"{self.path}: not an ExecuTorch program with segments")
        program_size, base = struct.unpack_from("<QQ", view, 16)
        if program_size > len(view) or base > len(view):
            raise ArtifactError(
                f"{self.path}: the header promises a program of {program_size} bytes and segments "
                f"from {base}; the file has {len(view)}: it is truncated"
            )
        return program_size, base

    def segment_data(self) -> memoryview:
        """Everything from the first segment to the end of the file."""
        return self._view[self._base :]

    def segment(self, index: int) -> memoryview:
        """A segment's bytes.

        Raises:
            ArtifactError: The program names a segment that it does not have.
        """
        if not 0 <= index < len(self.program.segments):
            raise ArtifactError(
                f"{self.path}: segment {index} of {len(self.program.segments)} is named"
            )
        placed = self.program.segments[index]
        start = self._base + placed.offset
        return self._view[start : start + placed.size]

    def named(self) -> dict[str, int]:
        """Segment index of each named piece of data."""
        return {entry.key: entry.segment_index for entry in self.program.named_data or []}

    def method(self, name: str) -> schema.ExecutionPlan:
        """A method's plan.

        Raises:
            ArtifactError: There is none of that name.
        """
        for plan in self.program.execution_plan:
            if plan.name == name:
                return plan
        raise ArtifactError(f"{self.path}: has no method {name!r}")

    def text(self, name: str) -> str:
        """What a constant method returns, as a string.

        Raises:
            ArtifactError: There is no such method, or it returns something else.
        """
        plan = self.method(name)
        value = plan.values[plan.outputs[0]].val if plan.outputs else None
        if not isinstance(value, schema.String):
            raise ArtifactError(f"{self.path}: method {name!r} does not return a string")
        return str(value.string_val)

    def constant(self, name: str) -> list[int]:
        """What a constant method returns, as integers."""
        values = []
        plan = self.method(name)
        for index in plan.outputs:
            value = plan.values[index].val
            if not isinstance(value, schema.Int | schema.Bool):
                raise ArtifactError(f"{self.path}: method {name!r} does not return integers")
            values.append(int(value.int_val if isinstance(value, schema.Int) else value.bool_val))
        return values
