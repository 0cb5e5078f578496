"""Graph parity operator by operator: each is fed the artifact's own input, so nothing adds up.

Where a block as a whole is wrong, this names the operator. It also sees what a block hides: one
code of a matrix shows in a single output channel, which the residual stream is thousands of times
larger than.

A value that the backend computes inside a fused operator is missing; the reference's own stands for
it, and the next one that can be seen is judged.

Shape legend: T tokens, D hidden, Q query_size, K key/value heads, H head_dim.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from llama_edge.core.cache_rows import quantize_rows
from llama_edge.core.hadamard import hadamard, rotate_product
from llama_edge.core.model import Llama, apply_rope, attention, rms_norm, rope_tables
from llama_edge.core.session import FloatArray
from llama_edge.core.types import ActivationQuantization, KVCacheDtype
from llama_edge.core.weight_names import FINAL_NORM, HEAD_ROTATION, LM_HEAD, block_weight
from llama_edge.verify.block_errors import BROKEN, Errors, explain_rows, relative_errors
from llama_edge.verify.rounding import Flips, RowRun, distance_to, with_flips

#: Relative error of a token's row, and of an output channel over all tokens, each token counting
#: the same. Right artifacts of SmolLM2 stay below a tenth of both; one scale that is one bfloat16
#: step off moves its channel by 1e-3.
ROW_LIMIT: Final = 1e-4
CHANNEL_LIMIT: Final = 1e-4
#: Of a norm, which has no long sums: an epsilon of 1e-6 for 1e-5 moves SmolLM2's first by 5e-4.
NORM_LIMIT: Final = 1e-5
#: An int8 cache rounds queries, keys and values once more; a code on a border may go either way.
INT8_CACHE_LIMIT: Final = 2e-2
#: Stands for "no difference": float32 holds 7 digits.
MAX_SNR_DB: Final = 160.0

_NORMS: Final = ("input_layernorm", "post_attention_layernorm", "norm")


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorResult:
    """One operator of the artifact against the reference's, on the artifact's own input."""

    #: as in `core.value_names`, or "embedding"; "rope" and "kv_cache" for what shows them
    name: str
    #: largest relative error of a token's row, rounding borders explained
    worst_row: float
    #: the same before anything is explained
    raw_worst_row: float
    #: largest relative error of an output channel; 0 where channels mean nothing
    worst_channel: float
    #: which one
    channel: int
    #: activation codes that fell the other way
    flips: int
    #: of the error behind `worst_row` and the others, token by token, each counting the same
    snr_db: float
    #: the largest of error / limit
    severity: float
    #: rows of the first call, later ones, or both: where it is wrong
    wrong_in: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether it is within its limits."""
        return not self.wrong_in


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One operator's output and what it must be: enough to judge it, and to reproduce it."""

    name: str
    found: Tensor
    expected: Tensor
    #: what goes in, by name
    inputs: Mapping[str, Tensor]
    #: the name of its weight, if it has one
    weight: str | None = None
    row_limit: float = ROW_LIMIT
    #: a linear's input before rounding, for rounding borders
    unrounded: Tensor | None = field(default=None)


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


def _linear(
    model: Llama, values: _Values, name: str, source: str, weight: str
) -> Iterator[Comparison]:
    x = values[source]
    expected = F.linear(model.quantize_activation(x), model.source.matrix(weight))
    values.make(name, expected)
    found = values.shown(name)
    if found is not None:
        yield Comparison(
            name=name,
            found=found,
            expected=expected,
            inputs={source: x},
            weight=weight,
            unrounded=x,
        )


def _plain(
    values: _Values,
    name: str,
    expected: Tensor,
    inputs: Sequence[str],
    *,
    weight: str | None = None,
) -> Iterator[Comparison]:
    given = {source: values[source] for source in inputs}
    values.make(name, expected)
    found = values.shown(name)
    if found is not None:
        limit = NORM_LIMIT if name in _NORMS else ROW_LIMIT
        yield Comparison(
            name=name,
            found=found,
            expected=expected,
            inputs=given,
            weight=weight,
            row_limit=limit,
        )


def _norm(
    model: Llama, values: _Values, name: str, source: str, weight: str
) -> Iterator[Comparison]:
    x = values[source]
    expected = rms_norm(x, model.source.vector(weight), model.config.rms_norm_eps)
    yield from _plain(values, name, expected, [source], weight=weight)


def compare_block(
    model: Llama, layer: int, found: Mapping[str, FloatArray]
) -> Iterator[Comparison]:
    """Every operator of one block that the artifact shows, in network order."""
    values = _Values(found)
    if values.shown("hidden") is None:
        return
    name = "input_layernorm"
    yield from _norm(model, values, name, "hidden", block_weight(layer, name))
    for part in ("q_proj", "k_proj", "v_proj"):
        weight = block_weight(layer, f"self_attn.{part}")
        yield from _linear(model, values, part, "input_layernorm", weight)
    yield from _rope_and_cache(model, values)
    yield from _attention(model, values)
    weight = block_weight(layer, "self_attn.o_proj")
    yield from _linear(model, values, "o_proj", "attention", weight)
    total = values["hidden"] + values["o_proj"]
    yield from _plain(values, "attention_residual", total, ["hidden", "o_proj"])
    yield from _mlp(model, values, layer)


def _mlp(model: Llama, values: _Values, layer: int) -> Iterator[Comparison]:
    name = "post_attention_layernorm"
    yield from _norm(model, values, name, "attention_residual", block_weight(layer, name))
    for part in ("gate_proj", "up_proj"):
        weight = block_weight(layer, f"mlp.{part}")
        yield from _linear(model, values, part, "post_attention_layernorm", weight)
    product = F.silu(values["gate_proj"]) * values["up_proj"]
    yield from _plain(values, "swiglu", product, ["gate_proj", "up_proj"])
    source = "swiglu"
    if model.config.down_proj_rotation is not None:
        turned = rotate_product(values["swiglu"], model.config.down_proj_rotation)
        yield from _plain(values, "down_rotation", turned, ["swiglu"])
        source = "down_rotation"
    weight = block_weight(layer, "mlp.down_proj")
    yield from _linear(model, values, "down_proj", source, weight)
    total = values["attention_residual"] + values["down_proj"]
    yield from _plain(values, "mlp_residual", total, ["attention_residual", "down_proj"])


def _split(x: Tensor, head_dim: int) -> Tensor:
    """(T, heads * H) to (heads, T, H)."""
    return x.view(len(x), -1, head_dim).transpose(0, 1)


def _join(x: Tensor) -> Tensor:
    return x.transpose(0, 1).flatten(1)


def _turned(model: Llama, x: Tensor) -> Tensor:
    """RoPE from position 0 on, and R3 where the cache is int8."""
    cos, sin = rope_tables(model.config, 0, len(x))
    heads = apply_rope(_split(x, model.config.head_dim), cos, sin)
    if model.kv_cache is KVCacheDtype.INT8:
        heads = heads @ hadamard(model.config.head_dim).T
    return _join(heads)


def _rope_and_cache(model: Llama, values: _Values) -> Iterator[Comparison]:
    """Keys behind RoPE are often seen in the cache alone; values tell whether to trust it."""
    for part, source in (("q_rope", "q_proj"), ("k_rope", "k_proj")):
        for found in _plain(values, part, _turned(model, values[source]), [source]):
            yield _renamed(found, "rope")
    value_rows, key_rows = values.shown("value_cache"), values.shown("key_cache")
    if value_rows is None or key_rows is None:
        return
    yield Comparison(
        name="kv_cache",
        found=value_rows,
        expected=values["v_proj"],
        inputs={"v_proj": values["v_proj"]},
    )
    misplaced = relative_errors(value_rows, values["v_proj"]).max() > ROW_LIMIT
    if values.shown("k_rope") is not None:
        expected = values["k_rope"]
        yield Comparison(
            name="kv_cache", found=key_rows, expected=expected, inputs={"k_rope": expected}
        )
    elif not misplaced:
        yield Comparison(
            name="rope",
            found=key_rows,
            expected=values["k_rope"],
            inputs={"k_proj": values["k_proj"]},
        )


def _renamed(found: Comparison, name: str) -> Comparison:
    return Comparison(
        name=name,
        found=found.found,
        expected=found.expected,
        inputs=found.inputs,
        row_limit=found.row_limit,
    )


def _attention(model: Llama, values: _Values) -> Iterator[Comparison]:
    rows = [values["q_rope"], values["k_rope"], values["v_proj"]]
    heads = [_split(part, model.config.head_dim) for part in rows]
    limit = ROW_LIMIT
    if model.kv_cache is KVCacheDtype.INT8:
        heads = [quantize_rows(part).dequantize() for part in heads]
        limit = INT8_CACHE_LIMIT
    expected = attention(*heads)
    values.make("attention", expected)
    found = values.shown("attention")
    if found is not None:
        names = ("q_rope", "k_rope", "v_proj")
        inputs = dict(zip(names, rows, strict=True))
        yield Comparison(
            name="attention", found=found, expected=expected, inputs=inputs, row_limit=limit
        )


def compare_head(model: Llama, found: Mapping[str, FloatArray]) -> Iterator[Comparison]:
    """The final norm, the head's rotation and lm_head, one row per call."""
    values = _Values(found)
    if values.shown("hidden") is None:
        return
    yield from _norm(model, values, "norm", "hidden", FINAL_NORM)
    source = "norm"
    if model.config.head_rotation:
        turned = F.linear(values["norm"], model.source.matrix(HEAD_ROTATION))
        yield from _plain(values, "head_rotation", turned, ["norm"], weight=HEAD_ROTATION)
        source = "head_rotation"
    yield from _linear(model, values, "lm_head", source, LM_HEAD)


def judge(model: Llama, compared: Comparison, prefill_rows: int) -> OperatorResult:
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
    # A channel that is silent by a cancellation is not held against its own silence.
    floor = signal.mean() * 0.1
    result: Errors = np.nan_to_num((error / signal.clamp(min=float(floor) or 1.0)).numpy())
    return result if len(result) else np.zeros(1)


def _explain(model: Llama, compared: Comparison, raw: Errors) -> "_Rows":
    """Of a linear: which rows are what they are because a code lay on a rounding border."""
    assert compared.unrounded is not None
    assert compared.weight is not None
    x, weight = compared.unrounded, model.source.matrix(compared.weight)
    if model.activation is ActivationQuantization.NONE:
        return _Rows(raw, 0)

    def row_run(row: int) -> RowRun:
        def run(trials: Sequence[Flips]) -> tuple[Tensor, list[Tensor]]:
            rows = x[row].repeat(len(trials), 1)
            rounded = with_flips(model.quantize_activation(rows), 0, trials)
            return F.linear(rounded, weight), [rows]

        return run

    distance: Callable[[int], Callable[[Tensor], list[float]]] = lambda row: distance_to(  # noqa: E731
        compared.found[row]
    )
    found = explain_rows(model, raw, row_run, distance, compared.row_limit)
    return _Rows(found.explained, found.flips)


@dataclass(frozen=True, slots=True)
class _Rows:
    explained: Errors
    flips: int
