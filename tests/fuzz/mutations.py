"""Ways to damage a file: its bytes, and the structure that they have where it is a known one."""

import io
import json
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Final

_INTEGERS: Final = (0, 1, 2, 7, 8, 127, 128, 255, 256, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**48)
_LARGE: Final = (*_INTEGERS, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
_TEXTS: Final = (
    *("", " ", "\x00", "\x1b[2J", "\u202e", "\ufeff", "\ufdd1", "\U0010ffff", "e\u0301"),
    *("/etc/passwd", "../../x", "a/../b", "C:\\x", "%s%n", "{{ 7 }}", "<|im_end|>", "\ud800"),
    *("x" * 300, "9" * 5000, "-", "1e400", "NaN", "None", "(" * 60 + "a+" * 30 + ")" * 60),
)
_JSON_VALUES: Final[Sequence[Any]] = (
    *(None, True, False, 0, 1, -1, 0.5, 1e-310, 1e308, -0.0, 2**31, 2**63, 2**64, 10**39, 10**50),
    *(float("nan"), float("inf"), [], {}, [[]], [None], {"": None}, [0] * 300, "x" * 70000),
)
#: Stands for lists in lists, deeper than Python writes them.
_DEEP: Final = "deep"
_DEPTH: Final = 5000
_TEMPLATE: Final = (
    *("{% for i in range(9999) %}", "{% endfor %}", "{{ messages }}", "{{ messages[9] }}"),
    *("{{ 'a' * 99999 }}", "{% set x = x ~ x %}", "{{ x.y.z }}", "{{ 1 / 0 }}", "{% if %}"),
    *("{{ ''.__class__ }}", "{{ lipsum(99) }}", "{{ cycler }}", "{% include 'x' %}", "{#"),
    *("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "| tojson", "| center(99999)", "}}"),
    *("raise_exception(1)", "strftime_now(9)", "namespace(a=1)", "[::-1]", "not ", "loop.index"),
)
_NUMBER: Final = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")
_STRING: Final = re.compile(rb'"[^"\n]{0,200}"')


def mutate(data: bytes, random: Random, others: Sequence[bytes] = ()) -> bytes:
    """One to five changes, each at random.

    Args:
        data: The file.
        random: The same state gives the same result.
        others: Files of the same kind, of which pieces may be taken.
    """
    for _ in range(min(5, 1 + int(random.expovariate(0.8)))):
        structures = [change for fits, change in _STRUCTURES if fits(data)]
        if structures and random.random() < 0.7:
            data = random.choice(structures)(data, random)
        else:
            data = random.choice(_CHANGES)(data, random, others)
    return data


def _place(data: bytes, random: Random) -> tuple[int, int]:
    """A range, short as a rule."""
    start = random.randrange(len(data) + 1)
    length = int(random.expovariate(1 / 8)) if random.random() < 0.8 else random.randrange(5000)
    return start, min(len(data), start + length)


_Others = Sequence[bytes]


def _flip(data: bytes, random: Random, _: _Others) -> bytes:
    changed = bytearray(data)
    for _i in range(random.choice((1, 1, 1, 4, 32))):
        if changed:
            changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _integer(data: bytes, random: Random, _: _Others) -> bytes:
    size = random.choice((1, 2, 4, 4, 8, 8))
    start = random.randrange(max(1, len(data) - size)) // size * size
    if random.random() < 0.5:
        start = random.randrange(max(1, len(data) - size))
    old = int.from_bytes(data[start : start + size], "little")
    value = random.choice((*_LARGE, old + 1, old - 1, old * 2, old << 8, len(data), -1, -old))
    order = random.choice(("little", "little", "little", "big"))
    new = (value % (1 << 8 * size)).to_bytes(size, "big" if order == "big" else "little")
    return data[:start] + new + data[start + size :]


def _delete(data: bytes, random: Random, _: _Others) -> bytes:
    start, end = _place(data, random)
    return data[:start] + data[end:]


def _repeat(data: bytes, random: Random, _: _Others) -> bytes:
    start, end = _place(data, random)
    return data[:end] + data[start:end] * random.choice((1, 1, 3, 100)) + data[end:]


def _insert(data: bytes, random: Random, _: _Others) -> bytes:
    start, _end = _place(data, random)
    new = random.choice((random.randbytes(random.randrange(1, 40)), bytes(random.randrange(9000))))
    return data[:start] + new + data[start:]


def _cut(data: bytes, random: Random, _: _Others) -> bytes:
    return data[: random.randrange(len(data) + 1)]


def _copy(data: bytes, random: Random, others: _Others) -> bytes:
    source = random.choice((data, *others))
    start, end = _place(source, random)
    at, until = _place(data, random)
    until = at + (end - start) if random.random() < 0.7 else until
    return data[:at] + source[start:end] + data[until:]


def _number(data: bytes, random: Random, _: _Others) -> bytes:
    found = list(_NUMBER.finditer(data[: 1 << 16]))
    if not found:
        return data
    place = random.choice(found)
    new = random.choice(
        (*_LARGE, -1, 10**50, 1e308, 1e-310, "1e999", "0x10", "00", "1_0", "Infinity")
    )
    return data[: place.start()] + str(new).encode() + data[place.end() :]


def _string(data: bytes, random: Random, _: _Others) -> bytes:
    found = list(_STRING.finditer(data[: 1 << 16]))
    if not found:
        return data
    place = random.choice(found)
    new = json.dumps(random.choice(_TEXTS), ensure_ascii=True).encode()
    if random.random() < 0.5:
        new = random.choice(found).group()
    return data[: place.start()] + new + data[place.end() :]


def _token(data: bytes, random: Random, _: _Others) -> bytes:
    start, end = _place(data, random)
    new = random.choice((*_TEMPLATE, *_TEXTS)).encode("utf-8", "surrogatepass")
    return data[:start] + new + data[random.choice((start, end)) :]


def _line(data: bytes, random: Random, _: _Others) -> bytes:
    lines = data.splitlines(keepends=True)
    if not lines:
        return data
    at = random.randrange(len(lines))
    lines[at : at + random.choice((0, 1))] = [random.choice(lines)] * random.choice((0, 1, 1, 50))
    return b"".join(lines)


_CHANGES: Final = (
    *(_flip, _flip, _integer, _integer, _delete, _repeat, _insert),
    *(_cut, _copy, _number, _string, _token, _line),
)


def _is_json(data: bytes) -> bool:
    return data[:1] in (b"{", b"[")


def _json(data: bytes, random: Random) -> bytes:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return data
    return json_text(change_json(value, random))


def json_text(value: object) -> bytes:
    """JSON that may hold what JSON has no word for, as Python writes it."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=True).encode()
    return text.replace(json.dumps(_DEEP).encode(), b"[" * _DEPTH + b"]" * _DEPTH)


def change_json(value: Any, random: Random) -> Any:  # noqa: ANN401
    """One change somewhere in a JSON value, which may be changed in place."""
    if not isinstance(value, (dict, list)) or not value:
        return random.choice(_JSON_VALUES)
    holder = value
    while True:
        key = (
            random.choice(list(holder))
            if isinstance(holder, dict)
            else random.randrange(len(holder))
        )
        inner = holder[key]
        if not isinstance(inner, (dict, list)) or not inner or random.random() < 0.15:
            break
        holder = inner
    _change_entry(value, holder, key, random)
    return value


def _change_entry(value: Any, holder: Any, key: Any, random: Random) -> None:  # noqa: ANN401
    inner = holder[key]
    match random.randrange(9):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[random.choice((*_TEXTS, f"{key}x", str(key)[1:]))] = inner
        case 1:
            holder.extend([inner] * random.choice((1, 2, 500)))
        case 2 if isinstance(holder, dict):
            holder[random.choice(_TEXTS)] = holder.pop(key)
        case 3:
            holder[key] = random.choice(_TEXTS)
        case 4:
            for _ in range(random.choice((1, 1, 2, 70))):
                inner = random.choice(([inner], {"a": inner}))
            holder[key] = random.choice((inner, inner, inner, _DEEP))
        case 5 if isinstance(inner, (int, float)) and not isinstance(inner, bool):
            holder[key] = random.choice((*_LARGE, -1, -inner, inner + 1, float(inner), str(inner)))
        case 6:
            holder[key] = json.loads(json.dumps(random.choice(_subtrees(value))))
        case _:
            holder[key] = random.choice(_JSON_VALUES)


def _subtrees(value: Any) -> list[Any]:  # noqa: ANN401
    found = [value]
    for outer in found[:50]:
        inner = (
            outer.values() if isinstance(outer, dict) else outer if isinstance(outer, list) else ()
        )
        found += list(inner)[:50]
    return found[1:] or found


def _has_header(data: bytes) -> bool:
    """As safetensors: the length of a JSON header, the header, and the rest."""
    return data[8:9] == b"{" and int.from_bytes(data[:8], "little") < len(data)


def _header(data: bytes, random: Random) -> bytes:
    end = 8 + int.from_bytes(data[:8], "little")
    header = _json(data[8:end], random)
    return struct.pack("<Q", len(header)) + header + data[end:]


def _is_zip(data: bytes) -> bool:
    return data[:4] == b"PK\x03\x04"


def _zip(data: bytes, random: Random) -> bytes:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError, EOFError, RuntimeError):
        return data
    at = random.randrange(len(members)) if members and random.random() < 0.3 else 0
    kept = io.BytesIO()
    packed = random.choice((zipfile.ZIP_STORED,) * 9 + (zipfile.ZIP_DEFLATED,))
    with zipfile.ZipFile(kept, "w", packed) as archive:
        for number, (name, content) in enumerate(members):
            match random.randrange(8) if number == at else -1:
                case 0:
                    archive.writestr(
                        random.choice((*_TEXTS[3:14], f"{name}x", "a/data.pkl")), content
                    )
                case 1:
                    pass
                case -1:
                    archive.writestr(name, content)
                case _:
                    change = random.choice(_CHANGES)
                    archive.writestr(name, change(content, random, ()))
    return kept.getvalue()


def _is_protobuf(data: bytes) -> bool:
    """A first field with a small number, which text and the other formats do not begin with."""
    return data[:1] in (b"\x08", b"\x0a", b"\x12") and not data.isascii()


_Field = list[Any]
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def _protobuf(data: bytes, random: Random) -> bytes:
    fields = parse_fields(data)
    if not fields:
        return data
    holder = fields
    while True:
        at = random.randrange(len(holder))
        inner = holder[at][2]
        is_message = isinstance(inner, bytes) and len(inner) > 1
        nested = parse_fields(inner) if is_message and random.random() < 0.85 else None
        if not nested:
            break
        holder[at][2] = nested
        holder = nested
    _change_field(holder, at, random)
    return written_fields(fields)


def _change_field(holder: list[_Field], at: int, random: Random) -> None:
    number, kind, content = holder[at]
    match random.randrange(8):
        case 0:
            del holder[at]
        case 1:
            holder.insert(random.randrange(len(holder) + 1), holder[at])
        case 2:
            holder[at] = [random.choice((0, 1, 2, 3, 5, 8, 20, 999, number + 1)), kind, content]
        case 3:
            other = random.choice(holder)
            holder[at] = [number, other[1], other[2]]
        case 4:
            holder[at] = [number, _VARINT, random.choice(_LARGE)]
        case 5:
            holder[at] = [number, _BYTES, random.choice(_TEXTS).encode("utf-8", "surrogatepass")]
        case _ if kind == _VARINT:
            holder[at] = [number, kind, random.choice((*_LARGE, content + 1, content ^ 1))]
        case _ if kind == _BYTES and isinstance(content, bytes):
            holder[at] = [number, kind, random.choice(_CHANGES)(content, random, ())]
        case _:
            holder[at] = [number, kind, content]


def parse_fields(data: bytes) -> list[_Field] | None:
    """Number, wire type and content of each field of a message; None: it is none."""
    fields: list[_Field] = []
    content: int | bytes
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        if number == 0 or at > len(data):
            return None
        match kind:
            case 0:
                content, at = _varint(data, at)
            case 1 | 5:
                size = 8 if kind == _FIXED64 else 4
                content = data[at : at + size]
                at += size
            case 2:
                size, at = _varint(data, at)
                content = data[at : at + size]
                at += size
            case _:
                return None
        if at > len(data):
            return None
        fields.append([number, kind, content])
    return fields


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at
    return value, len(data) + 1


def written_fields(fields: Sequence[_Field]) -> bytes:
    """The way back of `parse_fields`; a content may be a list of fields."""
    out = bytearray()
    for number, kind, content in fields:
        out += _varint_bytes(number << 3 | kind)
        if kind == _VARINT:
            out += _varint_bytes(content)
            continue
        inner = written_fields(content) if isinstance(content, list) else content
        if kind == _BYTES:
            out += _varint_bytes(len(inner))
        out += inner
    return bytes(out)


def _varint_bytes(value: int) -> bytes:
    value %= 1 << 64
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


_STRUCTURES: Final[Sequence[tuple[Callable[[bytes], bool], Callable[[bytes, Random], bytes]]]] = (
    (_is_json, _json),
    (_has_header, _header),
    (_is_zip, _zip),
    (_is_protobuf, _protobuf),
)
