"""Exports that were measured: what the plan's host cost is fitted on.

Rows of `benchmarks/scale.py`, recipe `w4a8-rtn`, 2 shared x86-64 cores and 24 GB, one thread: of
random weights with one short prompt in the gate, and of SmolLM2 with all that an export runs.
"""

from dataclasses import dataclass
from typing import Final

from llama_edge.core.model_config import ModelConfig
from llama_edge.core.recipe import Recipe
from llama_edge.plan.host import GATE_TOKENS, HostCost, host_cost
from llama_edge.plan.sizes import artifact_size


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRow:
    """One export."""

    #: as `llama-edge plan` takes it
    model: str
    backend: str
    #: that the gate ran, prompts and what was decoded
    gate_tokens: int
    #: the process that runs the artifact included, in both
    cpu_s: float
    memory_mib: float

    def planned(self, config: ModelConfig, recipe: Recipe) -> HostCost:
        """What the plan says of it; `recipe` is what was measured."""
        size = artifact_size(config, recipe, self.backend, _CONTEXT)
        return host_cost(
            config, recipe, self.backend, size.file_bytes, gate_tokens=self.gate_tokens
        )


#: One prompt of 16 tokens and 8 decoded ones.
_SHORT: Final = 24
#: Tokens that the caches held: the default.
_CONTEXT: Final = 2048

HOST_ROWS: Final = (
    HostRow(
        model="smollm2-135m",
        backend="executorch",
        gate_tokens=GATE_TOKENS,
        cpu_s=69.2,
        memory_mib=1905,
    ),
    HostRow(
        model="llama-3.2-1b", backend="executorch", gate_tokens=_SHORT, cpu_s=73.7, memory_mib=5039
    ),
    HostRow(
        model="llama-3.2-1b", backend="executorch", gate_tokens=1488, cpu_s=266.0, memory_mib=6548
    ),
    HostRow(
        model="llama-3.2-3b", backend="executorch", gate_tokens=_SHORT, cpu_s=162.5, memory_mib=8213
    ),
    HostRow(
        model="smollm2-135m",
        backend="coreml",
        gate_tokens=GATE_TOKENS,
        cpu_s=168.4,
        memory_mib=2469,
    ),
    HostRow(
        model="llama-3.2-1b", backend="coreml", gate_tokens=_SHORT, cpu_s=112.5, memory_mib=5344
    ),
    HostRow(
        model="llama-3.2-3b", backend="coreml", gate_tokens=_SHORT, cpu_s=242.0, memory_mib=8570
    ),
    HostRow(
        model="smollm2-135m", backend="onnx", gate_tokens=GATE_TOKENS, cpu_s=61.1, memory_mib=1531
    ),
    HostRow(model="llama-3.2-1b", backend="onnx", gate_tokens=_SHORT, cpu_s=61.9, memory_mib=4687),
    HostRow(model="llama-3.2-3b", backend="onnx", gate_tokens=_SHORT, cpu_s=160.4, memory_mib=8029),
)
