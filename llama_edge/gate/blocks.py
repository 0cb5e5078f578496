"""Graph parity block by block: each block of the reference gets the artifact's own real input.

End to end, int8 activations are chaotic; here nothing adds up, so that a right block is right to
1e-4 and a wrong one is named. Prefill and decode are judged apart: they take different paths
through a runtime's cache.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llama_edge.core.artifact import ActivationQuantization
from llama_edge.core.errors import CheckFailedError
from llama_edge.core.progress import Progress
from llama_edge.core.session import BlockTrace, FloatArray
from llama_edge.gate.block_errors import (
    Errors,
    RowErrors,
    attention_errors,
    exact_errors,
    head_errors,
    mlp_errors,
)
from llama_edge.gate.cache_errors import int8_attention_errors, unpack_rows
from llama_edge.gate.teacher import with_source
from llama_edge.gate.tolerances import Tolerances
from llama_edge.models.reference import Reference
from llama_edge.models.sources import CachedSource


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorStats:
    """Relative errors, L2(error) / L2(reference row), over tokens of all prompts.

    Activation codes that fell the other way on a rounding boundary are undone, but in `raw_max`.
    """

    rows: int
    median: float
    p99: float
    max: float
    raw_max: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockResult:
    """One block: `embedding`, `layers.N.attention`, `layers.N.mlp` or `head`."""

    name: str
    prefill: ErrorStats
    #: None when no prompt decoded
    decode: ErrorStats | None
    #: activation codes on a rounding boundary that fell the other way
    flips: int
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


@torch.no_grad()
def check_blocks(
    reference: Reference, traces: Sequence[BlockTrace], tolerances: Tolerances, progress: Progress
) -> BlocksReport:
    """Hold every block of the traced artifact against the reference's, one layer in memory.

    Args:
        reference: The network with the artifact's codes and activation rounding.
        traces: Real sequences, each with a prefill and decode steps.
        tolerances: The limits.
        progress: Advances once per layer, and once for the head.

    Raises:
        CheckFailedError: A trace does not have the shape that the model's config gives it.
    """
    for trace in traces:
        _require_shapes(reference, trace)
    check = _Check(traces, tolerances, reference.activation)
    blocks = [check.block("embedding", _embedding(reference, traces))]
    for layer in range(reference.config.num_hidden_layers):
        model = with_source(reference, CachedSource(reference.source))
        attention = _attention(model, traces, layer, tolerances.block)
        blocks.append(check.block(f"layers.{layer}.attention", attention))
        mlp = _mlp(model, traces, layer, tolerances.block)
        blocks.append(check.block(f"layers.{layer}.mlp", mlp))
        progress.advance()
    blocks.append(check.head(_head(reference, traces, tolerances.block)))
    progress.advance()
    return BlocksReport(blocks=tuple(blocks))


class _Check:
    """Pools the rows of all traces by phase and compares them with the limits."""

    def __init__(
        self,
        traces: Sequence[BlockTrace],
        tolerances: Tolerances,
        activation: ActivationQuantization,
    ) -> None:
        self._prefill_rows = [trace.calls[0] for trace in traces]
        self._limit = tolerances.block
        rounds = activation is not ActivationQuantization.NONE
        self._max = tolerances.int8_block_max if rounds else tolerances.block

    def block(self, name: str, rows: Iterable[RowErrors]) -> BlockResult:
        """One row per token: those of each first call are prefill, the others decode."""
        return self._result(name, list(rows), self._prefill_rows)

    def head(self, rows: Iterable[RowErrors]) -> BlockResult:
        """One row per call: the first is prefill."""
        return self._result("head", list(rows), [1] * len(self._prefill_rows))

    def _result(self, name: str, rows: list[RowErrors], borders: list[int]) -> BlockResult:
        pairs = list(zip(rows, borders, strict=True))
        phases = {
            "prefill": [(errors.raw[:at], errors.explained[:at]) for errors, at in pairs],
            "decode": [(errors.raw[at:], errors.explained[at:]) for errors, at in pairs],
        }
        stats = {phase: _stats(parts) for phase, parts in phases.items()}
        severities = {
            phase: max(found.p99 / self._limit, found.max / self._max)
            for phase, found in stats.items()
            if found is not None
        }
        assert stats["prefill"] is not None, "a trace begins with a prefill"
        return BlockResult(
            name=name,
            prefill=stats["prefill"],
            decode=stats["decode"],
            flips=sum(errors.flips for errors in rows),
            severity=max(severities.values()),
            wrong_in=tuple(phase for phase, severity in severities.items() if severity > 1),
        )


def _stats(parts: Sequence[tuple[Errors, Errors]]) -> ErrorStats | None:
    raw = np.concatenate([part[0] for part in parts])
    explained = np.concatenate([part[1] for part in parts])
    if not len(raw):
        return None
    return ErrorStats(
        rows=len(raw),
        median=float(np.median(explained)),
        p99=float(np.percentile(explained, 99)),
        max=float(explained.max()),
        raw_max=float(raw.max()),
    )


def _tensor(array: FloatArray) -> Tensor:
    return torch.tensor(array)  # a copy: arrays from another process are read-only


def _embedding(reference: Reference, traces: Sequence[BlockTrace]) -> Iterator[RowErrors]:
    lengths = [len(trace.tokens) for trace in traces]
    every_token = torch.tensor([token for trace in traces for token in trace.tokens])
    embedded = torch.split(reference.embed(every_token), lengths)
    for trace, rows in zip(traces, embedded, strict=True):
        yield exact_errors(_tensor(trace.hidden[0]), rows)


def _attention(
    model: Reference, traces: Sequence[BlockTrace], layer: int, limit: float
) -> Iterator[RowErrors]:
    for trace in traces:
        entering, found = _tensor(trace.hidden[layer]), _tensor(trace.attention[layer])
        if model.kv_cache.rotates_heads:
            rows = unpack_rows(_tensor(trace.cache_rows[layer]))
            yield int8_attention_errors(model, layer, entering, rows, found, limit)
        else:
            yield attention_errors(model, layer, entering, found, limit)


def _mlp(
    model: Reference, traces: Sequence[BlockTrace], layer: int, limit: float
) -> Iterator[RowErrors]:
    for trace in traces:
        entering, attended = _tensor(trace.hidden[layer]), _tensor(trace.attention[layer])
        found = _tensor(trace.hidden[layer + 1])
        yield mlp_errors(model, layer, entering, attended, found, limit)


def _head(reference: Reference, traces: Sequence[BlockTrace], limit: float) -> Iterator[RowErrors]:
    """Logits are traced after the last token of each call only."""
    model = with_source(reference, CachedSource(reference.source))
    for trace in traces:
        last_rows = np.cumsum(trace.calls) - 1
        yield head_errors(model, _tensor(trace.hidden[-1][last_rows]), _tensor(trace.logits), limit)


def _require_shapes(reference: Reference, trace: BlockTrace) -> None:
    config = reference.config
    tokens, layers = len(trace.tokens), config.num_hidden_layers
    rows = config.num_attention_heads + 2 * config.num_key_value_heads
    expected = {
        "hidden": ([array.shape for array in trace.hidden], (tokens, config.hidden_size)),
        "attention": ([array.shape for array in trace.attention], (tokens, config.query_size)),
        "cache": ([array.shape for array in trace.cache_rows], (tokens, rows, config.head_dim + 2)),
        "logits": ([trace.logits.shape], (len(trace.calls), config.vocab_size)),
    }
    cached = layers if reference.kv_cache.rotates_heads else 0
    counts = {"hidden": layers + 1, "attention": layers, "cache": cached, "logits": 1}
    for name, (found, shape) in expected.items():
        if found != [shape] * counts[name] or sum(trace.calls) != tokens:
            raise CheckFailedError(
                f"the artifact's trace of {name} has shapes {sorted(set(found))} in {len(found)} "
                f"arrays; {counts[name]} of {shape} are needed: its graph is not this model's"
            )
