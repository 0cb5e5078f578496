"""The bytes of a `.pte`: flatbuffer, extended header, segments; written as a stream, read lazily.

Source: `exir/_serialize/_program.py` and `schema/extended_header.cpp` in ExecuTorch. The stock
writer builds the whole file in memory; here a segment's bytes are made when its turn comes.
"""

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Final, TypeVar, get_origin

from executorch.exir import schema
from executorch.exir._serialize._flatbuffer_program import (
    _flatbuffer_to_program,
    _program_to_flatbuffer,
)

from llama_edge.core.errors import ArtifactError
from llama_edge.core.files import open_new
from llama_edge.core.regular import map_regular

_Item = TypeVar("_Item")

SEGMENT_ALIGNMENT: Final = 128
_HEADER_MAGIC: Final = b"eh00"
_HEADER_LENGTH: Final = 32
_CONSTANT_ALIGNMENT: Final = 16
#: What ExecuTorch's parser raises on a damaged flatbuffer: it reads by whatever offset it finds.
_PARSE_ERRORS: Final = (
    struct.error,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
)


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


def _fill_absent(node: object) -> None:
    """A vector or text that a flatbuffer leaves out is an empty one."""
    waiting = [node]
    while waiting:
        part = waiting.pop()
        if isinstance(part, list):
            waiting += part
        elif is_dataclass(part) and not isinstance(part, type):
            for field in fields(part):
                value = getattr(part, field.name)
                if value is None and field.type is str:
                    setattr(part, field.name, "")
                elif value is None and get_origin(field.type) is list:
                    setattr(part, field.name, [])
                elif is_dataclass(value) or isinstance(value, list):
                    waiting.append(value)


class PteFile:
    """A `.pte` opened for reading: its program, and its segments as views of the mapped file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        view = map_regular(path)
        program_size, self._base = self._read_header(view)
        try:
            self.program: schema.Program = _flatbuffer_to_program(bytes(view[:program_size]))
        except _PARSE_ERRORS as error:
            raise ArtifactError(f"{path}: the program cannot be parsed: {error}") from error
        _fill_absent(self.program)
        for index, segment in enumerate(self.program.segments):
            end = self._base + segment.offset + segment.size
            if min(segment.offset, segment.size) < 0 or end > len(view):
                raise ArtifactError(
                    f"{path}: segment {index} ends at byte {end}; the file has {len(view)}: "
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
        placed = self.item(self.program.segments, index, "segment")
        start = self._base + placed.offset
        return self._view[start : start + placed.size]

    def named(self) -> dict[str, int]:
        """Segment index of each named piece of data."""
        return {entry.key: entry.segment_index for entry in self.program.named_data or []}

    def item(self, items: Sequence[_Item], index: int, what: str) -> _Item:
        """What the program names by its number.

        Raises:
            ArtifactError: There is none of that number.
        """
        if not 0 <= index < len(items):
            raise ArtifactError(
                f"{self.path}: the program names {what} {index}, and has {len(items)} of them: it "
                "is damaged; copy or export it again"
            )
        return items[index]

    def instructions(self, plan: schema.ExecutionPlan) -> Sequence[schema.Instruction]:
        """What a method does, in order.

        Raises:
            ArtifactError: It has no chain of instructions.
        """
        chain: schema.Chain = self.item(plan.chains, 0, f"{plan.name}: chain")
        instructions: Sequence[schema.Instruction] = chain.instructions
        return instructions

    def operator(self, plan: schema.ExecutionPlan, call: schema.KernelCall) -> str:
        """The name of the operator that an instruction calls.

        Raises:
            ArtifactError: The method has none of that number.
        """
        return str(self.item(plan.operators, call.op_index, f"{plan.name}: operator").name)

    def argument(self, plan: schema.ExecutionPlan, call: schema.KernelCall, place: int) -> object:
        """The value that an instruction passes to its operator at `place`.

        Raises:
            ArtifactError: It passes fewer, or the method has no such value.
        """
        return self.value(plan, self.item(call.args, place, f"{plan.name}: argument"))

    def value(self, plan: schema.ExecutionPlan, index: int) -> object:
        """A method's value: a `schema.Tensor`, `schema.Int` and so on.

        Raises:
            ArtifactError: The method has none of that number.
        """
        return self.item(plan.values, index, f"{plan.name}: value").val

    def delegate_payload(
        self, plan: schema.ExecutionPlan, delegate: schema.BackendDelegate
    ) -> bytes:
        """What a delegate's backend gets, out of its segment.

        Raises:
            ArtifactError: It names no segment.
        """
        place = delegate.processed
        if place is None or place.location is not schema.DataLocation.SEGMENT:
            raise ArtifactError(
                f"{self.path}: {plan.name}: the data of delegate {delegate.id!r} is in no segment; "
                "export the model again"
            )
        return bytes(self.segment(place.index))

    def constants(self) -> Iterator[memoryview]:
        """The constant segment, cut at its offsets; the first is a placeholder.

        Raises:
            ArtifactError: There is none, or its offsets do not follow one another within it.
        """
        stored = self.program.constant_segment
        if stored is None:
            raise ArtifactError(f"{self.path}: has no constant segment; export the model again")
        data = self.segment(stored.segment_index)
        starts = stored.offsets
        for place, start in enumerate(starts):
            end = starts[place + 1] if place + 1 < len(starts) else len(data)
            if not 0 <= start <= end <= len(data):
                raise ArtifactError(
                    f"{self.path}: a constant lies from byte {start} to {end} of the {len(data)} "
                    "of its segment: the file is damaged; copy or export it again"
                )
            yield data[start:end]

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
        value = self.value(plan, plan.outputs[0]) if plan.outputs else None
        if not isinstance(value, schema.String):
            raise ArtifactError(f"{self.path}: method {name!r} does not return a string")
        return str(value.string_val)

    def number(self, name: str) -> int:
        """What a constant method returns, as one integer.

        Raises:
            ArtifactError: There is no such method, or it returns something else.
        """
        numbers = self.constant(name)
        if len(numbers) != 1:
            raise ArtifactError(
                f"{self.path}: {name} returns {len(numbers)} numbers; one is needed"
            )
        return numbers[0]

    def constant(self, name: str) -> list[int]:
        """What a constant method returns, as integers.

        Raises:
            ArtifactError: There is no such method, or it returns something else.
        """
        values = []
        plan = self.method(name)
        for index in plan.outputs:
            value = self.value(plan, index)
            if not isinstance(value, schema.Int | schema.Bool):
                raise ArtifactError(f"{self.path}: method {name!r} does not return integers")
            values.append(int(value.int_val if isinstance(value, schema.Int) else value.bool_val))
        return values
