"""Matrices that a `.pte` of ours stores as one: what the stack is called, and whose its rows are.

The exporter writes by it; its reader and the runtime's traces take the stacks apart by it.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from llama_edge.core.model_config import ModelConfig
from llama_edge.formats.quantized_checkpoint import matrix_shape

#: Between the names of a stack whose rows lie as `stacked_rows` says. Earlier files had `+` and
#: whole matrices one after the other; their stacks must not be found.
STACK_JOINT: Final = "|"


def stacked_rows(config: ModelConfig, names: Sequence[str]) -> Mapping[str, Tensor]:
    """Which rows of a stack are whose: row numbers (int64) by name, in each one's own order.

    Names are of matrices or of their biases.

    Queries, keys and values are stacked by key/value head: the queries that ask a key head, that
    key head, its value head, then the next. So one transposition of their product puts each
    group's tokens side by side, as attention reads them.
    """
    matrices = [f"{name.rpartition('.')[0]}.weight" for name in names]
    heights = [matrix_shape(config, name)[0] for name in matrices]
    groups = config.num_key_value_heads if len(names) > 1 else 1
    parts = [height // groups for height in heights]
    starts = torch.arange(groups)[:, None] * sum(parts)
    return {
        name: (starts + sum(parts[:place]) + torch.arange(parts[place])).flatten()
        for place, name in enumerate(names)
    }
