"""What differs between two artifacts, bundles or checkpoints, of one format or two.

`compare` sets what was measured of bundles side by side; this opens the files and holds contents
against contents.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import torch

from llama_edge.bundle.folder import is_bundle
from llama_edge.bundle.signing import NO_KEY, Trust
from llama_edge.core.packing import QuantizedTensor
from llama_edge.core.progress import Progress
from llama_edge.core.text_assets import TextAssets
from llama_edge.debug.diff_sides import Side, open_side
from llama_edge.debug.matrix_difference import MatrixDifference
from llama_edge.text.native import open_tokenizer
from llama_edge.text.text_assets import TOKENIZER_FILE

#: Entries of one kind that are listed; the count is always whole.
_MOST: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One thing that is not the same; None where a side has it not."""

    what: str
    first: str | None
    second: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One kind of content."""

    name: str
    #: whether a difference here changes what is computed or said
    matters: bool
    differences: tuple[Difference, ...]
    #: what was compared
    note: str
    #: False where one of the two has nothing of the kind
    compared: bool = True

    @property
    def equal(self) -> bool:
        """No difference."""
        return not self.differences


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffReport:
    """All sections."""

    first: str
    second: str
    sections: tuple[Section, ...]

    @property
    def equal(self) -> bool:
        """Nothing that is computed or said differs."""
        return all(section.equal for section in self.sections if section.matters)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        sections = [
            {**asdict(section), "equal": section.equal, "count": len(section.differences)}
            for section in self.sections
        ]
        return {"equal": self.equal, "a": self.first, "b": self.second, "sections": sections}


def diff(first: str, second: str, progress: Progress, trust: Trust = NO_KEY) -> DiffReport:
    """Hold two things against each other.

    Args:
        first: A bundle, an artifact's file or folder, a quantized checkpoint, or a MODEL.
        second: Likewise.
        progress: One step per tensor.
        trust: Whose signature each of them that is a bundle must have.

    Raises:
        LlamaEdgeError: What a reader says of a thing that cannot be opened.
        UsageError: `trust` has a key, and neither is a bundle.
    """
    if not any(is_bundle(Path(name)) for name in (first, second)):
        trust.require_bundle(f"{first} and {second}")
    one, other = open_side(first, trust), open_side(second, trust)
    same_backend = one.backend == other.backend
    sections = [
        _mapping("config", one.config, other.config, matters=True),
        _mapping("recipe", one.recipe, other.recipe, matters=False),
        Section(
            name="tensors",
            matters=True,
            differences=tuple(_tensors(one, other, progress)),
            note=_tensor_note(one, other),
        ),
        Section(
            name="floats",
            matters=True,
            differences=tuple(_floats(one, other)),
            note="norms, and a head's rotation",
        ),
        _graph(one, other),
        _mapping("arithmetic", one.arithmetic, other.arithmetic, matters=same_backend),
        *_text(one.text, other.text),
        _mapping("metadata", one.metadata, other.metadata, matters=False),
        _sizes(one, other),
    ]
    return DiffReport(first=one.kind, second=other.kind, sections=tuple(sections))


def _values(value: Mapping[str, Any] | None, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Flat names with values as text."""
    for key, item in (value or {}).items():
        if isinstance(item, Mapping):
            yield from _values(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(item)


def _unequal(first: Mapping[str, str], second: Mapping[str, str]) -> Iterator[Difference]:
    for name in dict.fromkeys((*first, *second)):
        one, other = first.get(name), second.get(name)
        if one != other:
            yield Difference(what=name, first=one, second=other)


def _mapping(
    name: str, first: Mapping[str, Any] | None, second: Mapping[str, Any] | None, *, matters: bool
) -> Section:
    if first is None or second is None:
        return Section(name=name, matters=False, differences=(), note="", compared=False)
    found = tuple(_unequal(dict(_values(first)), dict(_values(second))))
    return Section(name=name, matters=matters, differences=found, note="")


def _tensor_note(first: Side, second: Side) -> str:
    kinds = [
        "quantized values and scales" if side.codes is not None else "full precision"
        for side in (first, second)
    ]
    if kinds[0] != kinds[1]:
        return f"{kinds[0]} against {kinds[1]}: the distance is what quantization costs"
    return kinds[0]


def _tensors(first: Side, second: Side, progress: Progress) -> Iterator[Difference]:
    names = dict.fromkeys((*first.matrix_names(), *second.matrix_names()))
    progress.start("compare tensors", len(names))
    for name in names:
        yield from _tensor(name, first, second)
        progress.advance()


def _tensor(name: str, first: Side, second: Side) -> Iterator[Difference]:
    one, other = first.matrix(name), second.matrix(name)
    if one is None or other is None or isinstance(one, str) or isinstance(other, str):
        if one is not other:
            yield Difference(what=name, first=_presence(one), second=_presence(other))
        return
    if isinstance(one, QuantizedTensor) and isinstance(other, QuantizedTensor):
        difference = MatrixDifference.between(one, other)
        if difference is None:
            yield Difference(what=name, first=_form(one), second=_form(other))
        elif not difference.equal:
            yield Difference(what=name, first=None, second=difference.describe())
        return
    yield from _float_matrix(name, one, other)


def _float_matrix(
    name: str, one: QuantizedTensor | torch.Tensor, other: QuantizedTensor | torch.Tensor
) -> Iterator[Difference]:
    left, right = (
        part.dequantize() if isinstance(part, QuantizedTensor) else part for part in (one, other)
    )
    if left.shape != right.shape:
        yield Difference(what=name, first=str(tuple(left.shape)), second=str(tuple(right.shape)))
    elif not torch.equal(left, right):
        error = float((left - right).norm() / left.norm())
        count = int((left != right).sum())
        text = f"{count} of {left.numel()} values differ; relative error {error:.3g}"
        yield Difference(what=name, first=None, second=text)


def _presence(value: object) -> str | None:
    return None if value is None else value if isinstance(value, str) else "there"


def _form(matrix: QuantizedTensor) -> str:
    rows, columns = matrix.shape
    return f"{rows} x {columns}, int{matrix.bits} in groups of {matrix.group_size}"


def _floats(first: Side, second: Side) -> Iterator[Difference]:
    for name in dict.fromkeys((*first.float_names(), *second.float_names())):
        one, other = first.vector(name), second.vector(name)
        if one is None or other is None:
            if one is not other:
                yield Difference(what=name, first=_presence(one), second=_presence(other))
        else:
            yield from _float_matrix(name, one, other)


def _graph(first: Side, second: Side) -> Section:
    if first.operators is None or second.operators is None:
        return Section(name="graph", matters=False, differences=(), note="", compared=False)
    counts = [Counter(found.kind for found in side.operators or ()) for side in (first, second)]
    texts = [{kind: str(count) for kind, count in sorted(found.items())} for found in counts]
    found = [*_unequal(*texts)]
    same = first.backend == second.backend
    if same:
        found += _operators(first, second)
    note = "operators by kind" + (", attributes and constants" if same else "; of two formats")
    return Section(name="graph", matters=same, differences=tuple(found), note=note)


def _operators(first: Side, second: Side) -> Iterator[Difference]:
    flat = [
        {
            f"{found.name} ({found.kind}) {key}": value
            for found in side.operators or ()
            for key, value in found.attributes.items()
        }
        for side in (first, second)
    ]
    yield from islice(_unequal(flat[0], flat[1]), _MOST)


def _text(first: TextAssets | None, second: TextAssets | None) -> Iterator[Section]:
    if first is None or second is None:
        yield Section(name="tokenizer", matters=False, differences=(), note="", compared=False)
        return
    same = first.tokenizer_json == second.tokenizer_json
    found = () if same else tuple(_tokenizers(first.tokenizer_json, second.tokenizer_json))
    yield Section(name="tokenizer", matters=True, differences=found, note="tokenizer.json")
    pairs = {
        "bos_token_id": (first.bos_token_id, second.bos_token_id),
        "add_bos": (first.add_bos, second.add_bos),
        "eos_token_ids": (list(first.eos_token_ids), list(second.eos_token_ids)),
    }
    special = [{name: str(pair[side]) for name, pair in pairs.items()} for side in (0, 1)]
    yield Section(
        name="special tokens", matters=True, differences=tuple(_unequal(*special)), note=""
    )
    yield Section(
        name="chat template",
        matters=True,
        differences=tuple(_templates(first.chat_template, second.chat_template)),
        note="",
    )
    yield _mapping(
        "generation defaults", first.generation_defaults, second.generation_defaults, matters=True
    )


def _tokenizers(first: str, second: str) -> Iterator[Difference]:
    """Which tokens have another id; without any, the rest of the file differs."""
    left, right = (open_tokenizer(TOKENIZER_FILE, text).vocabulary() for text in (first, second))
    names = sorted(dict.fromkeys((*left, *right)))
    unequal = [name for name in names if left.get(name) != right.get(name)]
    for name in unequal[:_MOST]:
        ids = [None if side.get(name) is None else str(side[name]) for side in (left, right)]
        yield Difference(what=f"token {name!r}", first=ids[0], second=ids[1])
    if not unequal:
        yield Difference(
            what="tokenizer.json",
            first=f"{len(first)} characters",
            second=f"{len(second)} characters, the same vocabulary: merges or rules differ",
        )


def _templates(first: str | None, second: str | None) -> Iterator[Difference]:
    if first == second:
        return
    lines = [(text or "").splitlines() for text in (first, second)]
    for number in range(max(map(len, lines))):
        left, right = (side[number] if number < len(side) else None for side in lines)
        if left != right:
            yield Difference(what=f"line {number + 1}", first=left, second=right)
            return
    yield Difference(what="line ends", first=_presence(first), second=_presence(second))


def _sizes(first: Side, second: Side) -> Section:
    totals = [sum(side.files.values()) for side in (first, second)]
    names: Sequence[Mapping[str, str]] = [
        {"all files": str(total), **{name: str(size) for name, size in side.files.items()}}
        for total, side in zip(totals, (first, second), strict=True)
    ]
    found = tuple(_unequal(names[0], names[1]))
    return Section(name="size", matters=False, differences=found, note="bytes")
