"""What an export itself takes on the machine that runs it, from what smaller ones took.

Times are of one processor: an export of SmolLM2 and of one layer of Llama 3.2 1B's shape was timed,
and grows linearly with the weights between and beyond them; a recipe that calibrates adds its
measured minutes in proportion to the linears' weights. Another machine is faster or slower.
"""

import math
from dataclasses import dataclass
from typing import Final

from llama_edge.core.model_config import ModelConfig
from llama_edge.core.types import Recipe, Rounding
from llama_edge.core.weight_names import block_linear_shapes, weight_shapes

#: Python, torch and a backend's SDK; and float32 copies of the table that are alive together, in
#: the quantizer or in the gate.
_BASE_MIB: Final = 600.0
_TABLE_COPIES: Final = 2.0
#: Layers in float32 that are alive together.
_LAYERS: Final = 2
#: CPU seconds of `export --recipe w4a8-rtn`: imports and prompts, then per billion weights.
_FIXED_CPU_S: Final = 30.0
_CPU_S_PER_BILLION: Final = 120.0
#: Linears of the model that recipes were timed on, SmolLM2-135M.
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
    linears = sum(rows * columns for rows, columns in block_linear_shapes(config).values())
    table = config.vocab_size * config.hidden_size
    weights = sum(math.prod(shape) for shape in weight_shapes(config).values())
    memory = _BASE_MIB + 4 * (_TABLE_COPIES * table + _LAYERS * linears) / 2**20
    minutes = (_FIXED_CPU_S + _CPU_S_PER_BILLION * weights / 1e9) / 60
    if recipe.rounding is Rounding.GPTQ:
        minutes += recipe_cpu_minutes * linears * config.num_hidden_layers / _TIMED_LINEARS
    return HostCost(memory_mib=memory, cpu_minutes=minutes)
