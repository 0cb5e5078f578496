"""Graph parity block by block: each block of the reference gets the artifact's own real input.

End to end, int8 activations are chaotic; here nothing adds up, so that a right block is right to
1e-4 and a wrong one is named. Prefill and decode are judged apart: they take different paths
through a runtime's cache.

Shape legend: T tokens, D hidden, Q query_size, C calls, V vocab.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llama_edge.core.errors import CheckFailedError
from llama_edge.core.model import CachedSource, Llama
from llama_edge.core.model_config import ModelConfig
from llama_edge.core.progress import Progress
from llama_edge.core.session import BlockTrace, FloatArray
from llama_edge.core.types import ActivationQuantization
from llama_edge.verify.teacher import empty_cache, with_source
from llama_edge.verify.tolerances import Tolerances

#: Stands for the error of a row that holds NaN or infinity, so that reports stay plain JSON.
BROKEN = 1e9

Errors = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorStats:
    """Relative errors, L2(error) / L2(reference row), over tokens of all prompts."""

    rows: int
    median: float
    p90: float
    max: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockResult:
    """One block: `embedding`, `layers.N.attention`, `layers.N.mlp` or `head`."""

    name: str
    prefill: ErrorStats
    #: None when no prompt decoded
    decode: ErrorStats | None
    #: the largest of error / limit; above 1 the block is wrong
    severity: float
    #: which of "prefill" and "decode" are out of tolerance
    wrong_in: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether both phases hold."""
        return not self.wrong_in


@dataclass(frozen=True, slots=True, kw_only=True)
class BlocksReport:
    """All blocks in network order."""

    blocks: tuple[BlockResult, ...]

    @property
    def passed(self) -> bool:
        """Whether every block holds."""
        return all(block.passed for block in self.blocks)

    @property
    def worst(self) -> BlockResult:
        """The block that is nearest to its limit, or furthest beyond it."""
        return max(self.blocks, key=lambda block: block.severity)

    @property
    def wrong(self) -> tuple[BlockResult, ...]:
        """The blocks out of tolerance, in network order; the first is where to look."""
        return tuple(block for block in self.blocks if not block.passed)


def relative_errors(candidate: Tensor, reference: Tensor) -> Errors:
    """L2(candidate - reference) / L2(reference) per row, float64 (T,).

    A zero reference row is held against 1; a row that is not finite is `BROKEN`.
    """
    wanted, found = reference.double(), candidate.double()
    norm = wanted.norm(dim=-1)
    error = (found - wanted).norm(dim=-1) / torch.where(norm == 0, torch.ones_like(norm), norm)
    result: Errors = np.nan_to_num(error.numpy(), nan=BROKEN, posinf=BROKEN).clip(max=BROKEN)
    return result


@dataclass(frozen=True, slots=True)
class _Limits:
    median: float
    p90: float
    max: float

    def severity(self, stats: ErrorStats) -> float:
        return max(stats.median / self.median, stats.p90 / self.p90, stats.max / self.max)


def _limits(tolerances: Tolerances, activation: ActivationQuantization) -> _Limits:
    if activation is ActivationQuantization.NONE:
        return _Limits(tolerances.block_max, tolerances.block_max, tolerances.block_max)
    per_block = activation is ActivationQuantization.INT8_PER_BLOCK
    median = tolerances.int8_per_block_median if per_block else tolerances.int8_block_median
    return _Limits(median, tolerances.int8_block_p90, tolerances.int8_block_max)


def _stats(errors: Errors) -> ErrorStats:
    return ErrorStats(
        rows=len(errors),
        median=float(np.median(errors)),
        p90=float(np.percentile(errors, 90)),
        max=float(errors.max()),
    )


def _result(
    name: str, prefill: Sequence[Errors], decode: Sequence[Errors], limits: _Limits
) -> BlockResult:
    phases = {"prefill": np.concatenate(prefill), "decode": np.concatenate(decode)}
    stats = {phase: _stats(errors) for phase, errors in phases.items() if len(errors)}
    severities = {phase: limits.severity(found) for phase, found in stats.items()}
    return BlockResult(
        name=name,
        prefill=stats["prefill"],
        decode=stats.get("decode"),
        severity=max(severities.values()),
        wrong_in=tuple(phase for phase, severity in severities.items() if severity > 1),
    )


@torch.no_grad()
def check_blocks(
    reference: Llama, traces: Sequence[BlockTrace], tolerances: Tolerances, progress: Progress
) -> BlocksReport:
    """Hold every block of the traced artifact against the reference's, one layer in memory.

    Args:
        reference: The network with the artifact's codes and activation rounding.
        traces: Real sequences, each with a prefill and decode steps.
        tolerances: The limits.
        progress: Advances once per layer.

    Raises:
        CheckFailedError: A trace does not have the shape that the model's config gives it.
    """
    for trace in traces:
        _require_shapes(reference.config, trace)
    exact = _limits(tolerances, ActivationQuantization.NONE)
    limits = _limits(tolerances, reference.activation)
    blocks = [_pooled("embedding", traces, _embedding_errors(reference, traces), exact)]
    for layer in range(reference.config.num_hidden_layers):
        model = with_source(reference, CachedSource(reference.source))
        for part, errors in (
            ("attention", _attention_errors(model, traces, layer)),
            ("mlp", _mlp_errors(model, traces, layer)),
        ):
            blocks.append(_pooled(f"layers.{layer}.{part}", traces, errors, limits))
        progress.advance()
    blocks.append(_head(reference, traces, limits))
    return BlocksReport(blocks=tuple(blocks))


def _pooled(
    name: str, traces: Sequence[BlockTrace], errors: Iterator[Errors], limits: _Limits
) -> BlockResult:
    """Rows of all traces together, those of each first call as prefill, the others as decode."""
    prefill, decode = [], []
    for trace, found in zip(traces, errors, strict=True):
        prefill.append(found[: trace.calls[0]])
        decode.append(found[trace.calls[0] :])
    return _result(name, prefill, decode, limits)


def _tensor(array: FloatArray) -> Tensor:
    return torch.tensor(array)  # a copy: arrays from another process are read-only


def _embedding_errors(reference: Llama, traces: Sequence[BlockTrace]) -> Iterator[Errors]:
    lengths = [len(trace.tokens) for trace in traces]
    every_token = torch.tensor([token for trace in traces for token in trace.tokens])
    embedded = torch.split(reference.embed(every_token), lengths)
    for trace, rows in zip(traces, embedded, strict=True):
        yield relative_errors(_tensor(trace.hidden[0]), rows)


def _attention_errors(model: Llama, traces: Sequence[BlockTrace], layer: int) -> Iterator[Errors]:
    for trace in traces:
        cache = empty_cache(model.config, layer)
        wanted = model.attention_block(layer, _tensor(trace.hidden[layer]), cache)
        yield relative_errors(_tensor(trace.attention[layer]), wanted)


def _mlp_errors(model: Llama, traces: Sequence[BlockTrace], layer: int) -> Iterator[Errors]:
    for trace in traces:
        entering, attended = _tensor(trace.hidden[layer]), _tensor(trace.attention[layer])
        wanted = model.mlp_block(layer, entering, attended)
        yield relative_errors(_tensor(trace.hidden[layer + 1]), wanted)


def _head(reference: Llama, traces: Sequence[BlockTrace], limits: _Limits) -> BlockResult:
    """Logits are traced after the last token of each call only."""
    model = with_source(reference, CachedSource(reference.source))
    prefill, decode = [], []
    for trace in traces:
        last_rows = np.cumsum(trace.calls) - 1
        wanted = model.head(_tensor(trace.hidden[-1][last_rows]))
        errors = relative_errors(_tensor(trace.logits), wanted)
        prefill.append(errors[:1])
        decode.append(errors[1:])
    return _result("head", prefill, decode, limits)


def _require_shapes(config: ModelConfig, trace: BlockTrace) -> None:
    tokens, layers = len(trace.tokens), config.num_hidden_layers
    expected = {
        "hidden": ([array.shape for array in trace.hidden], (tokens, config.hidden_size)),
        "attention": ([array.shape for array in trace.attention], (tokens, config.query_size)),
        "logits": ([trace.logits.shape], (len(trace.calls), config.vocab_size)),
    }
    counts = {"hidden": layers + 1, "attention": layers, "logits": 1}
    for name, (found, shape) in expected.items():
        if found != [shape] * counts[name] or sum(trace.calls) != tokens:
            raise CheckFailedError(
                f"the artifact's trace of {name} has shapes {sorted(set(found))} in {len(found)} "
                f"arrays; {counts[name]} of {shape} are needed: its graph is not this model's"
            )
