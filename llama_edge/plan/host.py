"""What an export itself takes on the machine that runs it: rougher than what a device takes.

A sketch. Times are of one processor, by `w4a8-rtn`, in proportion to the weights in the table
(logits are checked over the whole vocabulary) and in linears; the time of SmolLM2's export and of
half an export of one layer of Llama 3.2 1B's shape gave the two rates. A recipe that calibrates
adds its measured minutes in proportion to the linears; none was timed at a real size.
"""

from dataclasses import dataclass
from typing import Final

from llama_edge.core.model_config import ModelConfig
from llama_edge.core.types import Recipe, Rounding
from llama_edge.core.weight_names import block_linear_shapes

#: Python, torch and a backend's SDK.
_BASE_MIB: Final = 500.0
#: Copies of the table, or of logits as large, in float32 that are alive together: in the gate.
_TABLE_COPIES: Final = 3.6
#: Layers in float32 that are alive together.
_LAYERS: Final = 2
#: CPU seconds: imports and start-up, then for each million weights in a table and in linears.
_FIXED_CPU_S: Final = 20.0
_TABLE_CPU_S: Final = 0.31
_LINEAR_CPU_S: Final = 0.24
#: Of a calibration set: 32 sequences of 256.
_CALIBRATION_TOKENS: Final = 8192
#: What recipes were timed on, SmolLM2-135M: weights in linears.
_TIMED_LINEARS: Final = 106_168_320


@dataclass(frozen=True, slots=True, kw_only=True)
class HostCost:
    """Of quantizing, lowering and checking once."""

    memory_mib: float
    cpu_minutes: float


def host_cost(config: ModelConfig, recipe: Recipe, recipe_cpu_minutes: float) -> HostCost:
    """What an export of this model by this recipe takes.

    Args:
        config: The model.
        recipe: How it is quantized.
        recipe_cpu_minutes: What `recipe` took on SmolLM2 (`quantize.measured`).
    """
    shapes = block_linear_shapes(config).values()
    layer = sum(rows * columns for rows, columns in shapes)
    linears = layer * config.num_hidden_layers
    table = config.vocab_size * config.hidden_size
    memory = _BASE_MIB + 4 * (_TABLE_COPIES * table + _LAYERS * layer) / 2**20
    seconds = _FIXED_CPU_S + (_TABLE_CPU_S * table + _LINEAR_CPU_S * linears) / 1e6
    if recipe.rounding is Rounding.GPTQ:
        widest = max(columns for _, columns in shapes)
        memory = max(memory, _calibration_mib(config.hidden_size, layer, widest))
        seconds += 60 * recipe_cpu_minutes * linears / _TIMED_LINEARS
    return HostCost(memory_mib=memory, cpu_minutes=seconds / 60)


def _calibration_mib(hidden: int, layer: int, widest: int) -> float:
    """GPTQ: the Hessian of the widest input and its inverse, and the text in two networks."""
    hessians = 2 * 8 * widest**2
    states = 4 * _CALIBRATION_TOKENS * (4 * hidden + 2 * widest)
    return _BASE_MIB + (hessians + states + 4 * _LAYERS * layer) / 2**20
