"""Which block linears get 8-bit codes: those that buy most fidelity for their bytes.

Linears that backends lower as one product change together (`Network.stacked_linears`). The choice
is greedy, by expected KL saved for each byte, and depends on nothing but the checkpoint, the recipe
and the calibration text.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.progress import Progress
from llama_edge.core.quantized import MixedPrecision
from llama_edge.formats.quantized_checkpoint import Layout
from llama_edge.models.network import network_of
from llama_edge.models.weights import block_linear_names
from llama_edge.quantize.arithmetic import Arithmetic
from llama_edge.quantize.resume import KeptCosts
from llama_edge.quantize.sensitivity import measure_costs


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Linears that become 8-bit together."""

    names: tuple[str, ...]
    #: expected KL to full precision that this saves, nats a token
    gain: float
    #: that it adds
    size_bytes: int


def spend(candidates: Sequence[Candidate], budget_bytes: int) -> tuple[Candidate, ...]:
    """Greedily the candidates with most gain a byte that fit, in the order given.

    One that does not fit is passed over, and smaller ones after it may still fit. Of equals the
    earlier one comes first; one that gains nothing is never taken.
    """
    left = budget_bytes
    chosen = set()
    for index in sorted(
        range(len(candidates)),
        key=lambda index: -candidates[index].gain / candidates[index].size_bytes,
    ):
        candidate = candidates[index]
        if candidate.gain > 0 and candidate.size_bytes <= left:
            left -= candidate.size_bytes
            chosen.add(index)
    return tuple(candidates[index] for index in sorted(chosen))


def all_int8(layout: Layout) -> Layout:
    """The layout in which every block linear is 8-bit."""
    names = tuple(block_linear_names(layout.config))
    return replace(layout, mixed=MixedPrecision(int8_linears=names, spent_bytes=0, budget_bytes=0))


def choose_int8(
    checkpoint: Checkpoint,
    layout: Layout,
    tokens_NT: Tensor,
    folder: Path | None,
    arithmetic: Arithmetic,
    progress: Progress,
) -> MixedPrecision:
    """Spend the recipe's `extra_bytes`.

    Args:
        checkpoint: Full precision, rotated already where the recipe asks for it.
        layout: Every block linear at the recipe's `weight_bits`.
        tokens_NT: Calibration text, int64.
        folder: Keeps what is measured between runs, layer by layer; None keeps nothing.
        arithmetic: Of products, and where they are computed.
        progress: Told about the measurement.

    Raises:
        QuantizeError: As `measure_costs`.
        OutputError: What is measured cannot be kept.
    """
    names = list(block_linear_names(layout.config))
    wide = all_int8(layout)
    before, after = measure_costs(
        checkpoint, (layout, wide), tokens_NT, KeptCosts(folder), arithmetic, progress
    )
    candidates = []
    network = network_of(layout.config)
    for layer in range(layout.config.num_hidden_layers):
        for linears in network.stacked_linears(layer):
            fused = tuple(node.weight for node in linears)
            candidates.append(
                Candidate(
                    names=fused,
                    gain=sum(before[name] - after[name] for name in fused),
                    size_bytes=sum(wide.matrix_bytes(n) - layout.matrix_bytes(n) for n in fused),
                )
            )
    budget = int(layout.recipe.extra_bytes * sum(map(layout.matrix_bytes, names)))
    chosen = spend(candidates, budget)
    return MixedPrecision(
        int8_linears=tuple(name for candidate in chosen for name in candidate.names),
        spent_bytes=sum(candidate.size_bytes for candidate in chosen),
        budget_bytes=budget,
    )
