"""JSON that somebody else may have written, and our own, whose bytes depend on the value alone.

What JSON leaves open is closed here: a key that is there twice has no meaning, a number has one in
every language that reads the file, and text is text. The apps' readers are as strict.
"""

import json
import math
import re
from collections.abc import Iterator, ValuesView
from pathlib import Path
from typing import Any, Final

from llama_edge.core.errors import ArtifactError
from llama_edge.core.regular import ErrorClass, decode_text, read_regular

#: A model's config has some 1 KB, a tokenizer's with 256 reserved tokens 50 KB.
MAX_CONFIG_BYTES: Final = 1 << 20
#: The index of a sharded checkpoint has some 100 KB, the manifest of a 3B model under 1 MB.
MAX_INDEX_BYTES: Final = 16 << 20
#: `model_max_length` is often int(1e30), of 31 digits.
_MAX_DIGITS: Final = 40
_MAX_DEPTH: Final = 64
#: Of a number that is too long, or a key, in a message.
_SHOWN: Final = 40
#: As a shell's `echo '{...}'` leaves it on Windows, or Python's `print`.
_SINGLE_QUOTED: Final = re.compile(r"\s*(?:'|\{\s*')")
_SURROGATE_ESCAPE: Final = re.compile(r"\\u[dD][89a-fA-F]")


def canonical_json(value: Any) -> str:  # noqa: ANN401
    """JSON with sorted keys and two spaces: the same value gives the same bytes."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def read_json_object(
    path: Path,
    error_class: ErrorClass = ArtifactError,
    *,
    limit: int = MAX_CONFIG_BYTES,
    follow_links: bool = True,
) -> dict[str, Any]:
    """Read a JSON object from an untrusted file.

    Args:
        path: The file.
        error_class: Of what is raised.
        limit: Bytes that the file may have.
        follow_links: See `open_regular`.

    Raises:
        LlamaEdgeError: An `error_class`: as `read_regular`, or as `parse_json_object`.
    """
    data = read_regular(path, limit, error_class, follow_links=follow_links)
    return parse_json_object(data, str(path), error_class)


def parse_json_object(
    source: str | bytes, where: str, error_class: ErrorClass = ArtifactError
) -> dict[str, Any]:
    """Parse an untrusted JSON object.

    Args:
        source: UTF-8 bytes, with or without a byte order mark, or text.
        where: Names the source in messages.
        error_class: Of what is raised.

    Raises:
        LlamaEdgeError: An `error_class`: as `parse_json`; or it is not an object.
    """
    value = parse_json(source, where, error_class)
    if not isinstance(value, dict):
        raise error_class(f"{where}: holds a {type(value).__name__}; a JSON object is needed")
    return value


def parse_json(source: str | bytes, where: str, error_class: ErrorClass = ArtifactError) -> Any:  # noqa: ANN401
    """Parse an untrusted JSON value; the arguments are those of `parse_json_object`.

    Raises:
        LlamaEdgeError: An `error_class`: no JSON; a key that is there twice; a number without a
            finite value or with too many digits; half of a surrogate pair; or values nested too
            deeply.
    """
    text = source if isinstance(source, str) else decode_text(source, where, error_class)
    infinite: list[str] = []

    def number(digits: str) -> float:
        found = float(digits)
        if not math.isfinite(found):
            infinite.append(digits)
        return found

    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_int=_integer,
            parse_float=number,
            parse_constant=number,
        )
        _require_shallow(value)
        if infinite:
            _require_finite(value, infinite)
        if _SURROGATE_ESCAPE.search(text):
            _require_text(value)
    except RecursionError as error:
        raise error_class(f"{where}: not readable as JSON: {_too_deep()}") from error
    except ValueError as error:
        is_quoted = _SINGLE_QUOTED.match(text) is not None
        hint = "; JSON has double quotes, and no quotes around the whole" if is_quoted else ""
        raise error_class(f"{where}: not readable as JSON: {error}{hint}") from error
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key[:_SHOWN]!a} is there twice")
            seen.add(key)
    return value


def _integer(digits: str) -> int:
    count = len(digits.removeprefix("-"))
    if count > _MAX_DIGITS:
        raise ValueError(
            f"a number of {count} digits ({digits[:8]}...); at most {_MAX_DIGITS} are read"
        )
    return int(digits)


def _require_shallow(value: object) -> None:
    level = [value]
    for _ in range(_MAX_DEPTH):
        level = [inner for outer in level for inner in _containers(outer)]
        if not level:
            return
    raise ValueError(_too_deep())


def _containers(value: Any) -> list[Any]:  # noqa: ANN401
    inner = value.values() if isinstance(value, dict) else value
    is_one = isinstance(inner, (list, ValuesView))
    return [item for item in inner if isinstance(item, (dict, list))] if is_one else []


def _too_deep() -> str:
    return f"values are nested more than {_MAX_DEPTH} levels deep"


def _require_finite(value: object, written: list[str]) -> None:
    for path, leaf in _leaves(value):
        if isinstance(leaf, float) and not math.isfinite(leaf):
            raise ValueError(f"{path} is {written[0][:_SHOWN]}; a finite number is needed")


def _require_text(value: object) -> None:
    """Half of a surrogate pair is no character: it cannot be written, hashed or shown."""
    for path, leaf in _leaves(value):
        if isinstance(leaf, str):
            try:
                leaf.encode()
            except UnicodeEncodeError as error:
                half = f"\\u{ord(leaf[error.start]):04x}"
                raise ValueError(f"{path} has {half}, half of a surrogate pair") from error


def _leaves(value: Any) -> Iterator[tuple[str, object]]:  # noqa: ANN401
    """Keys, and values that hold no others, each with where it is; in the order of the file."""
    unseen: list[tuple[str, Any]] = [("", value)]
    while unseen:
        path, found = unseen.pop()
        if isinstance(found, dict):
            inner = [(f"{path}.{ascii(key)[1:-1]}".lstrip("."), key) for key in found]
            yield from inner
            unseen += [(name, found[key]) for name, key in reversed(inner)]
        elif isinstance(found, list):
            unseen += [(f"{path}[{i}]", found[i]) for i in reversed(range(len(found)))]
        else:
            yield path, found
