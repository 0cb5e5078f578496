"""Graph parity operator by operator: each is fed the artifact's own input, so nothing adds up.

Where a block as a whole is wrong, this names the operator. It also sees what a block hides: one
code of a matrix shows in a single output channel, which the residual stream is thousands of times
larger than.

A value that the backend computes inside a fused operator is missing; the reference's own stands for
it, and the next one that can be seen is judged.

Shape legend: T tokens, D hidden, Q query_size, K key/value heads, H head_dim.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from llama_edge.core.artifact import ActivationQuantization
from llama_edge.core.cache_rows import quantize_rows
from llama_edge.core.hadamard import hadamard
from llama_edge.core.session import FloatArray
from llama_edge.gate.block_errors import BROKEN, Errors, explain_rows, relative_errors
from llama_edge.gate.rounding import Flips, RowRun, target_of, with_flips
from llama_edge.models.blocks import (
    Add,
    Attention,
    Block,
    Hadamard,
    HeadNorm,
    Linear,
    OutputRows,
    RMSNorm,
    Rope,
    Rotation,
    SwiGLU,
    attention,
    head_norm,
    rms_norm,
    split_heads,
)
from llama_edge.models.network import COS, SIN, Node
from llama_edge.models.reference import Reference
from llama_edge.models.rope import rope_tables

#: Relative error of a token's row, and of an output channel over all tokens, each token counting
#: the same. Right artifacts of SmolLM2 stay below a tenth of both; one scale that is one bfloat16
#: step off moves its channel by 1e-3.
ROW_LIMIT: Final = 1e-4
CHANNEL_LIMIT: Final = 1e-4
#: Of a norm, which has no long sums: an epsilon of 1e-6 for 1e-5 moves SmolLM2's first by 5e-4.
NORM_LIMIT: Final = 1e-5
#: An int8 cache rounds queries, keys and values once more; a code on a boundary may go either way.
INT8_CACHE_LIMIT: Final = 2e-2
#: Stands for "no difference": float32 holds 7 digits.
MAX_SNR_DB: Final = 160.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorResult:
    """One operator of the artifact against the reference's, on the artifact's own input."""

    #: as in `models.value_names`, or "embedding"; "rope" and "kv_cache" for what shows them
    name: str
    #: largest relative error of a token's row, rounding boundaries explained
    worst_row: float
    #: the same before anything is explained
    raw_worst_row: float
    #: largest relative error of an output channel; 0 where channels mean nothing
    worst_channel: float
    #: which one
    channel: int
    #: activation codes that fell the other way
    flips: int
    #: of the error after `worst_row` and the others, token by token, each counting the same
    snr_db: float
    #: the largest of error / limit
    severity: float
    #: rows of the first call, later ones, or both: where it is wrong
    wrong_in: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether it is within its limits."""
        return not self.wrong_in


#: The function of `repro_script` by building block.
_KINDS: Final[Mapping[type[Block], str]] = {
    Add: "total",
    Attention: "attention",
    Hadamard: "hadamards",
    HeadNorm: "head_norm",
    Linear: "linear",
    OutputRows: "output_rows",
    RMSNorm: "norm",
    Rope: "rope",
    Rotation: "linear",
    SwiGLU: "swiglu",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One operator's output and what it must be: enough to judge it, and to reproduce it."""

    name: str
    #: what `repro_script` computes it by
    kind: str
    found: Tensor
    expected: Tensor
    #: what goes in, by name
    inputs: Mapping[str, Tensor]
    #: the name of its weight, if it has one
    weight: str | None = None
    row_limit: float = ROW_LIMIT
    #: a linear's input before rounding, for rounding boundaries
    unrounded: Tensor | None = field(default=None)
    #: a linear's, if it has one
    bias: Tensor | None = field(default=None)


class _Values:
    """The artifact's values where it shows them, the reference's where it does not."""

    def __init__(self, found: Mapping[str, FloatArray]) -> None:
        self._found = {name: torch.tensor(array) for name, array in found.items()}
        self._made: dict[str, Tensor] = {}

    def shown(self, name: str) -> Tensor | None:
        return self._found.get(name)

    def make(self, name: str, value: Tensor) -> None:
        self._made[name] = value

    def __getitem__(self, name: str) -> Tensor:
        found = self._found.get(name)
        return self._made[name] if found is None else found


@dataclass(frozen=True, slots=True)
class _Piece:
    """Nodes of one layer, or after the last, with the artifact's values of them."""

    model: Reference
    nodes: Mapping[str, Node]
    values: _Values

    def compare(self) -> Iterator[Comparison]:
        """Every operator that the artifact shows, in the graph's order."""
        for node in self.nodes.values():
            inputs = [self._local(name) for name in node.inputs if name not in (COS, SIN)]
            match node.block:
                case Linear():
                    yield from self._linear(node, inputs[0])
                case Rope():
                    yield from self._rope(node, inputs[0])
                case Attention():
                    yield from self._cache(inputs)
                    yield from self._attention(node, inputs)
                case _:
                    yield from self._plain(node, inputs)

    def _local(self, name: str) -> str:
        """A value's name in the artifact; what comes from elsewhere is the residual stream."""
        part = name.rpartition(".")[2]
        inside = part in self.nodes and self.nodes[part].name == name
        return _shown_as(part) if inside else "hidden"

    def _made(self, node: Node, made: Comparison) -> Iterator[Comparison]:
        """Keep what the reference makes of the inputs; compare where the artifact shows it."""
        name = _shown_as(node.part)
        self.values.make(name, made.expected)
        found = self.values.shown(name)
        if found is not None:
            yield replace(made, found=found)

    def _comparison(self, node: Node, expected: Tensor, inputs: Sequence[str]) -> Comparison:
        """Of a value with itself, until it is known whether the artifact shows one."""
        given = {name: self.values[name] for name in inputs}
        return Comparison(
            name=_shown_as(node.part),
            kind=_KINDS[type(node.block)],
            found=expected,
            expected=expected,
            inputs=given,
            weight=node.weight if node.has_weight else None,
        )

    def _linear(self, node: Node, source: str) -> Iterator[Comparison]:
        model, x = self.model, self.values[source]
        bias = model.bias(node)
        expected = F.linear(model.quantize_activation(x), model.source.matrix(node.weight), bias)
        made = self._comparison(node, expected, [source])
        yield from self._made(node, replace(made, unrounded=x, bias=bias))

    def _plain(self, node: Node, inputs: Sequence[str]) -> Iterator[Comparison]:
        """What has no rounding: the block's own arithmetic."""
        given = [self.values[name] for name in inputs]
        limit = ROW_LIMIT
        if isinstance(node.block, RMSNorm):
            expected = rms_norm(given[0], self.model.source.vector(node.weight), node.block.eps)
            limit = NORM_LIMIT
        elif isinstance(node.block, HeadNorm):
            weight = self.model.source.vector(node.weight)
            expected = head_norm(given[0], weight, node.block.eps)
            limit = NORM_LIMIT
        elif isinstance(node.block, Rotation):
            expected = F.linear(given[0], self.model.source.matrix(node.weight))
        else:
            expected = node.block(*given)
        made = self._comparison(node, expected, inputs)
        yield from self._made(node, replace(made, row_limit=limit))

    def _rope(self, node: Node, source: str) -> Iterator[Comparison]:
        """From position 0 on, and R3 where the cache is int8."""
        x = self.values[source]
        cos, sin = rope_tables(self.model.config, 0, len(x))
        heads = node.block(x, cos, sin)
        if self.model.kv_cache.rotates_heads:
            heads = heads @ hadamard(self.model.config.head_dim).T
        made = self._comparison(node, _join(heads), [source])
        yield from self._made(node, replace(made, name="rope"))

    def _cache(self, inputs: Sequence[str]) -> Iterator[Comparison]:
        """Keys after RoPE are often seen in the cache alone; values tell whether to trust it."""
        _, key, value = inputs
        value_rows, key_rows = self.values.shown("value_cache"), self.values.shown("key_cache")
        if value_rows is None or key_rows is None:
            return
        values, keys = self.values[value], self.values[key]
        yield Comparison(
            name="kv_cache", kind="same", found=value_rows, expected=values, inputs={value: values}
        )
        if self.values.shown(key) is not None:
            yield Comparison(
                name="kv_cache", kind="same", found=key_rows, expected=keys, inputs={key: keys}
            )
        elif relative_errors(value_rows, values).max() <= ROW_LIMIT:
            source = self._local(self.nodes[key].inputs[0])
            given = {source: self.values[source]}
            yield Comparison(name="rope", kind="rope", found=key_rows, expected=keys, inputs=given)

    def _attention(self, node: Node, inputs: Sequence[str]) -> Iterator[Comparison]:
        head_dim = self.model.config.head_dim
        heads = [split_heads(self.values[name], head_dim) for name in inputs]
        limit = ROW_LIMIT
        if self.model.kv_cache.rotates_heads:
            heads = [quantize_rows(part).dequantize() for part in heads]
            limit = INT8_CACHE_LIMIT
        made = self._comparison(node, attention(*heads), inputs)
        yield from self._made(node, replace(made, row_limit=limit))


def _same(rows: Tensor, name: str, values: Tensor) -> Comparison:
    """A cache's rows, which are what was put there."""
    return Comparison(
        name="kv_cache", kind="same", found=rows, expected=values, inputs={name: values}
    )


def _shown_as(part: str) -> str:
    """What a written graph calls the value (`models.value_names`)."""
    return "head_rotation" if part == "lm_head_rotation" else part


def _join(x: Tensor) -> Tensor:
    """(heads, T, H) to (T, heads * H)."""
    return x.transpose(0, 1).flatten(1)


def compare_block(
    model: Reference, layer: int, found: Mapping[str, FloatArray]
) -> Iterator[Comparison]:
    """Every operator of one block that the artifact shows, in network order."""
    values = _Values(found)
    if values.shown("hidden") is not None:
        yield from _Piece(model, model.network.in_layer(layer), values).compare()


def compare_head(model: Reference, found: Mapping[str, FloatArray]) -> Iterator[Comparison]:
    """The final norm, the head's rotation and lm_head, one row per call."""
    if "lm_head" in found and model.config.output_rows is not None:
        computed = model.computed_logits(torch.tensor(found["lm_head"])).numpy()
        found = {**found, "output_rows": found["lm_head"], "lm_head": computed}
    values = _Values(found)
    if values.shown("hidden") is not None:
        yield from _Piece(model, model.network.head, values).compare()


def judge(model: Reference, compared: Comparison, prefill_rows: int) -> OperatorResult:
    """Hold one operator against its limits; `prefill_rows` rows belong to the first call."""
    shape = compared.expected.shape
    if compared.found.shape != shape:
        return _refused(compared.name)
    raw = relative_errors(compared.found, compared.expected)
    explained, flips = raw, 0
    if compared.unrounded is not None:
        rows = _explain(model, compared, raw)
        explained, flips = rows.explained, rows.flips
    kept = np.flatnonzero(explained == raw)  # a flip moves every channel of its row
    channels = _channel_errors(compared, kept) if compared.weight else np.zeros(1)
    row_severity = explained / compared.row_limit
    wrong = {"prefill": row_severity[:prefill_rows], "decode": row_severity[prefill_rows:]}
    wrong_in = [phase for phase, rows in wrong.items() if len(rows) and rows.max() > 1]
    worst_channel = float(channels.max())
    channel_severity = worst_channel / CHANNEL_LIMIT if _is_matrix(compared) else 0.0
    if channel_severity > 1 and not wrong_in:
        wrong_in = ["prefill", "decode"] if prefill_rows < shape[0] else ["prefill"]
    return OperatorResult(
        name=compared.name,
        worst_row=float(explained.max()),
        raw_worst_row=float(raw.max()),
        worst_channel=worst_channel,
        channel=int(channels.argmax()),
        flips=flips,
        snr_db=snr_db(explained),
        severity=max(float(row_severity.max()), channel_severity),
        wrong_in=tuple(wrong_in),
    )


def _is_matrix(compared: Comparison) -> bool:
    return compared.unrounded is not None


def _refused(name: str) -> OperatorResult:
    """Of another shape altogether."""
    return OperatorResult(
        name=name,
        worst_row=BROKEN,
        raw_worst_row=BROKEN,
        worst_channel=0.0,
        channel=0,
        flips=0,
        snr_db=snr_db(np.array([BROKEN])),
        severity=BROKEN,
        wrong_in=("prefill", "decode"),
    )


def snr_db(row_errors: Errors) -> float:
    """Signal to noise of rows with these relative errors, each row counting the same, dB."""
    noise = float(np.sqrt(np.mean(np.square(row_errors))))
    return min(MAX_SNR_DB, -20.0 * float(np.log10(max(noise, 10 ** (-MAX_SNR_DB / 20)))))


def _channel_errors(compared: Comparison, rows: NDArray[np.intp]) -> Errors:
    """Relative error per output channel over `rows`, each divided by its length first."""
    wanted, found = compared.expected[rows].double(), compared.found[rows].double()
    length = wanted.norm(dim=1, keepdim=True).clamp(min=1e-30)
    error = ((found - wanted) / length).norm(dim=0)
    signal = (wanted / length).norm(dim=0)
    # A channel that is silent by a cancellation is not compared with its own silence.
    floor = signal.mean() * 0.1
    result: Errors = np.nan_to_num((error / signal.clamp(min=float(floor) or 1.0)).numpy())
    return result if len(result) else np.zeros(1)


def _explain(model: Reference, compared: Comparison, raw: Errors) -> "_Rows":
    """Of a linear: which rows are what they are because a code lay on a rounding boundary."""
    assert compared.unrounded is not None
    assert compared.weight is not None
    x, weight = compared.unrounded, model.source.matrix(compared.weight)
    if model.activation is ActivationQuantization.NONE:
        return _Rows(raw, 0)

    def row_run(row: int) -> RowRun:
        def run(trials: Sequence[Flips]) -> tuple[Tensor, list[Tensor]]:
            rows = x[row].repeat(len(trials), 1)
            rounded = with_flips(model.quantize_activation(rows), 0, trials)
            return F.linear(rounded, weight, compared.bias), [rows]

        return run

    found = explain_rows(
        model, raw, row_run, lambda row: target_of(compared.found[row]), compared.row_limit
    )
    return _Rows(found.explained, found.flips)


@dataclass(frozen=True, slots=True)
class _Rows:
    explained: Errors
    flips: int
