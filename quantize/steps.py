"""What the steps of quantizing are called, and how long each takes next to the others.

Work is in multiply-adds of float32 matrices; what is no product of matrices counts as so many as
take its time, measured on layers of SmolLM2-135M (`benchmarks/step_times.py`).
Only the steps of one stage are compared with each other. How long a stage takes says `plan`.

I is a linear's in_features, O its out_features.
"""

from collections.abc import Mapping
from typing import Final

from llama_edge.core.model_config import ModelConfig
from llama_edge.core.progress import Step, layer_name
from llama_edge.formats.quantized_checkpoint import Layout, matrix_shape, stored_names
from llama_edge.models.network import Node, network_of
from llama_edge.models.weights import float_shapes
from llama_edge.quantize.sequential import makes_up_for_drift

#: For each weight: a search of its group's scale, and rounding to nearest.
_SEARCH: Final = 800.0
_NEAREST: Final = 400.0
#: For each weight of a linear that GPTQ rounds: the update of the next columns.
_UPDATE: Final = 1600.0
#: For each logit: a label that is drawn from all of them, and its gradient.
_LOGIT: Final = 400.0
#: For each I^3: a Cholesky factor, and the solution for drift with a factor of its own.
_FACTOR: Final = 0.35
_SOLVE: Final = 1.35
#: For each O I^2: GPTQ and two sweeps after it, in bfloat16.
_ROUND: Final = 0.6
#: Calibration text runs in full precision and rounded. It gives half a Hessian, and a drift.
_PASSES: Final = 2
_HESSIAN: Final = 0.5
_DRIFT: Final = 1.0
#: A multiply-add in bfloat16, as calibration text runs.
_HALF: Final = 0.25


def rounding_steps(layout: Layout, text: tuple[int, int] | None) -> Mapping[str, Step]:
    """A step for each matrix that is stored, in order, by name.

    Args:
        layout: The recipe and the model.
        text: Sequences of calibration text, and tokens of each; None where there is none.
    """
    config = layout.config
    network, floats = network_of(config), float_shapes(config)
    layers = range(config.num_hidden_layers)
    nodes = {node.weight: node for layer in layers for node in network.linears(layer)}
    gptq = {} if text is None else _gptq_work(config, *text)
    steps = {}
    for name in stored_names(config):
        if name in floats:
            continue
        rows, columns = matrix_shape(config, name)
        node = nodes.get(name)
        if node is None:
            steps[name] = Step(name.split(".")[-2], _NEAREST * rows * columns)
        else:
            work = gptq.get(node.part, _NEAREST * rows * columns)
            steps[name] = Step(layer_name(node.layer or 0, len(layers), node.part), work)
    return steps


def _gptq_work(config: ModelConfig, sequences: int, length: int) -> dict[str, float]:
    """Of each linear of a block, by its part's name.

    The first linear of those that share an input waits for it and for its Hessian.
    """
    tokens = sequences * length
    attention = 2 * length * config.query_size
    groups = network_of(config).linears_by_input(0)
    work = {}
    for before, linears in zip((groups[-1], *groups[:-1]), groups, strict=True):
        for node in linears:
            rows, columns = _shape(node)
            work[node.part] = (_SEARCH + _UPDATE + _ROUND * columns) * rows * columns
        columns = _shape(linears[0])[1]
        drifts = makes_up_for_drift(linears)
        run = sum(rows * width for rows, width in map(_shape, before))
        if before is groups[0]:  # queries, keys and values: attention is between
            run += attention
        products = _PASSES * run + (_HESSIAN + _DRIFT * drifts) * columns**2
        work[linears[0].part] += _HALF * tokens * products
        work[linears[0].part] += (_FACTOR + _SOLVE * drifts) * columns**3
    return work


def back_steps(config: ModelConfig, tokens: int, layouts: int) -> list[Step]:
    """Of the pass back that measures sensitivity: the head, then the layers from the last one on.

    Args:
        config: The model.
        tokens: That run.
        layouts: Under which each linear's rounding is measured.
    """
    layers = config.num_hidden_layers
    work = 0.0
    for linears in network_of(config).linears_by_input(0):
        for node in linears:
            rows, columns = _shape(node)
            work += (2 * _HALF * tokens + layouts * _SEARCH) * rows * columns
        columns = _shape(linears[0])[1]
        work += _HALF * _HESSIAN * tokens * columns**2 + _FACTOR * columns**3
    head = tokens * config.head_rows * (2 * _HALF * config.hidden_size + _LOGIT)
    names = (layer_name(layer, layers) for layer in reversed(range(layers)))
    return [Step("head", head), *(Step(name, work) for name in names)]


def _shape(node: Node) -> tuple[int, int]:
    """(O, I)."""
    rows, columns = node.shapes[node.weight]
    return rows, columns
