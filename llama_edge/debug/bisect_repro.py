"""The folder that `bisect` leaves: what it found, a chart, and the first wrong operator alone."""

import importlib.util
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from llama_edge.backends import get_exporter
from llama_edge.core.files import open_new, write_bytes, write_json
from llama_edge.core.hadamard import hadamard
from llama_edge.core.packing import QuantizedTensor
from llama_edge.core.quantized import QuantizedWeights
from llama_edge.core.visible import visible
from llama_edge.debug.bisect import (
    Bisection,
    ConstantFinding,
    Finding,
    GraphFinding,
    Place,
    first_place,
)
from llama_edge.debug.bisect_weights import WeightFinding
from llama_edge.debug.operators import ROW_LIMIT, Comparison
from llama_edge.models.rope import rope_tables
from llama_edge.models.sources import DequantizedSource
from llama_edge.models.weight_names import EMBEDDING, HEAD_ROTATION
from llama_edge.report.charts import draw_layers

CHART_FILE: Final = "layers.png"
REPRO_FOLDER: Final = "repro"
_SCRIPT: Final = "llama_edge.debug.repro_script"


def layer_name(layer: int, layers: int) -> int | str:
    """A block's number, or what is before and after the blocks."""
    return "embedding" if layer < 0 else "head" if layer >= layers else layer


def message_of(finding: Finding) -> str:
    """What is wrong, in one line."""
    if isinstance(finding, ConstantFinding):
        return finding.message
    if isinstance(finding, WeightFinding):
        return f"{finding.name}: {finding.message}"
    result = finding.result
    line = (
        f"the same input gives another output in {' and '.join(result.wrong_in)}, "
        f"{result.severity:.3g} times the limit; relative error {result.worst_row:.2e} in the "
        "worst row"
    )
    if result.worst_channel:
        line += f", {result.worst_channel:.2e} in output channel {result.channel}"
    return line


def _finding_kind(finding: Finding) -> str:
    if isinstance(finding, WeightFinding):
        return "weights"
    return "constant" if isinstance(finding, ConstantFinding) else "graph"


def bisection_json(found: Bisection) -> dict[str, Any]:
    """Plain values, for `--json` and `bisect.json`."""
    layers = found.artifact.config.num_hidden_layers
    place, first = first_place(found), found.first
    return {
        "passed": found.passed,
        "first": None
        if place is None or first is None
        else {
            "layer": layer_name(place.layer, layers),
            "operator": place.operator,
            "kind": _finding_kind(first),
            "message": message_of(first),
        },
        "weights": [{"name": item.name, "message": item.message} for item in found.weights],
        "constants": [
            {
                "layer": layer_name(item.place.layer, layers),
                "operator": item.place.operator,
                "message": item.message,
            }
            for item in found.constants
        ],
        "graph": [
            {
                "layer": layer_name(item.place.layer, layers),
                "operator": item.place.operator,
                "wrong_in": list(item.result.wrong_in),
                "severity": float(f"{item.result.severity:.4g}"),
                "message": message_of(item),
            }
            for item in found.graph
        ],
        "against": found.against,
        "streams_aligned_by_a_rotation": found.aligned,
        "layers": [
            {
                "layer": layer_name(row.layer, layers),
                "lowest_operator": row.operator,
                "operator_snr_db": round(row.operator_db, 2),
                "rounding_flips": row.flips,
                "stream_snr_db": None if row.stream_db is None else round(row.stream_db, 2),
            }
            for row in found.rows
        ],
    }


def write_bisection(found: Bisection, folder: Path) -> None:
    """Write `bisect.json`, the chart and, where something is wrong, `repro/` into `folder`."""
    write_json(folder / "bisect.json", bisection_json(found))
    draw_layers(
        [
            (
                str(layer_name(row.layer, found.artifact.config.num_hidden_layers)),
                row.operator_db,
                row.stream_db,
            )
            for row in found.rows
        ],
        found.against,
        folder / CHART_FILE,
    )
    first, place = found.first, first_place(found)
    if first is None or place is None:
        return
    compared = first.compared if isinstance(first, GraphFinding) else found.weight_input
    unknown = isinstance(first, WeightFinding) and first.wanted is None and first.found is None
    if compared is not None and not unknown:
        (folder / REPRO_FOLDER).mkdir()
        _write_repro(found, place, compared, folder / REPRO_FOLDER)


def _write_repro(found: Bisection, place: Place, compared: Comparison, folder: Path) -> None:
    first = found.first
    assert first is not None
    arrays = {
        **compared.inputs,
        **_extras(found, place, compared),
        "got": compared.found,
        "expected": compared.expected,
    }
    if isinstance(first, WeightFinding):
        if first.wanted is not None:
            arrays |= _matrix_arrays(first.wanted)
        if first.found is not None:
            arrays |= {f"found_{name}": part for name, part in _matrix_arrays(first.found).items()}
    for name, tensor in arrays.items():
        with open_new(folder / f"{name}.npy") as stream:
            np.save(stream, tensor.numpy(), allow_pickle=False)
    config = found.artifact.config
    about = {
        "layer": layer_name(place.layer, config.num_hidden_layers),
        "operator": place.operator,
        "kind": compared.kind,
        "inputs": list(compared.inputs),
        "activation": _activation(found, place),
        "epsilon": config.rms_norm_eps,
        "head_dim": config.head_dim,
        "limit": min(ROW_LIMIT, compared.row_limit),
        "message": visible(message_of(first)),
    }
    write_json(folder / "operator.json", about)
    script = importlib.util.find_spec(_SCRIPT)
    assert script is not None
    assert script.origin is not None
    write_bytes(folder / "repro.py", Path(script.origin).read_bytes())


def _activation(found: Bisection, place: Place) -> str:
    return "none" if place.operator == "head_rotation" else found.artifact.activation.value


def _matrix_arrays(matrix: QuantizedTensor) -> dict[str, Tensor]:
    return {"codes": matrix.codes, "scales": matrix.scales.float()}


def _extras(found: Bisection, place: Place, compared: Comparison) -> dict[str, Tensor]:
    """What the operator needs apart from its inputs."""
    config = found.artifact.config
    if place.operator == "rope":
        cos, sin = rope_tables(config, 0, len(compared.expected))
        tables = {"cos": cos, "sin": sin}
        if found.artifact.kv_cache.rotates_heads:
            tables["rotation"] = hadamard(config.head_dim).T.contiguous()
        return tables
    if place.operator == "down_rotation" and config.down_proj_rotation is not None:
        names = ("second", "first")
        orders = reversed(config.down_proj_rotation)
        return {name: hadamard(order) for name, order in zip(names, orders, strict=False)}
    if place.operator == "output_rows" and config.output_rows is not None:
        return {"rows": torch.tensor(config.output_rows)}
    if compared.weight is None:
        return {}
    bias = {} if compared.bias is None else {"bias": compared.bias}
    if isinstance(found.first, WeightFinding) and found.first.wanted is not None:
        return bias  # the right codes are known
    exporter = get_exporter(found.artifact.backend)
    return bias | _weight(exporter.open(found.artifact.path).weights(), compared, place)


def _weight(own: QuantizedWeights, compared: Comparison, place: Place) -> dict[str, Tensor]:
    assert compared.weight is not None
    if compared.weight == HEAD_ROTATION:
        return {"weight": DequantizedSource(own).matrix(HEAD_ROTATION)}
    if compared.weight not in own.quantized_names():
        return {"weight": own.vector(compared.weight)}
    matrix = own.quantized(compared.weight)
    if compared.weight == EMBEDDING and place.operator == "embedding":
        matrix = matrix.rows(compared.inputs["tokens"])
    return _matrix_arrays(matrix)
