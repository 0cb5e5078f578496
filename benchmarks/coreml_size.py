"""What ways to a smaller Core ML package save and cost, on SmolLM2-135M.

    python benchmarks/coreml_size.py [WAY...] [--plain] [--json FILE]

Each way stores some matrices in another form. Its package is really written, with coremltools'
operators for that form, and its bytes are counted. What it costs is measured with the eager
reference, activations in floating point, on the gate's four prompts: mean KL to full precision,
over every position. So that the cost is the way's own, block linears that it leaves alone keep
their full precision there; tables are int8, as in the recipes. Weights are those after the
rotations R1, R2 and R4, as in w4-hadamard; `--plain` leaves them out. Linears round to nearest
with searched scales, without GPTQ, which takes minutes and loses less.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from coremltools.converters.mil import Builder as mb  # noqa: N813
from coremltools.converters.mil.mil.types.type_int import np_int4_dtype, np_uint6_dtype
from rich.console import Console
from rich.table import Table
from torch import Tensor

from llama_edge.backends.coreml import graph
from llama_edge.backends.coreml.lower import write_package
from llama_edge.backends.coreml.metadata import Lowering
from llama_edge.checkpoints import load_checkpoint
from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.packing import QuantizedTensor
from llama_edge.core.progress import SilentProgress
from llama_edge.core.quantized import QuantizedCheckpoint, QuantizedWeights
from llama_edge.core.recipe import Recipe, Rotation, Scales
from llama_edge.formats.quantized_checkpoint import TABLES
from llama_edge.gate.metrics import compare, concatenate, summarize
from llama_edge.gate.prompts import Prompt, gate_prompts
from llama_edge.gate.teacher import Variant, final_hidden
from llama_edge.models.reference import Reference
from llama_edge.models.sources import DequantizedSource, FullPrecisionSource
from llama_edge.models.weight_names import EMBEDDING, LM_HEAD
from llama_edge.quantize import W4A8_RTN
from llama_edge.quantize.groupwise import round_to_nearest
from llama_edge.quantize.rotate import apply_rotations, choose_rotations
from llama_edge.quantize.scale_search import search_scales
from llama_edge.quantize.stage import quantize_checkpoint
from llama_edge.text.tokenizer import Tokenizer

MODEL: Final = "smollm2-135m"
ROTATED: Final = replace(
    W4A8_RTN,
    name="rotated, searched scales, rounded to nearest",
    scales=Scales.MSE,
    rotations=(Rotation.R1, Rotation.R2, Rotation.R4),
)
#: coremltools' values are untyped.
Var = Any


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix in any stored form: its float32 values, and the operator that Core ML is given."""

    dense: Tensor
    store: Callable[[str], Var]

    def dequantize(self) -> Tensor:
        """As `QuantizedTensor.dequantize`."""
        return self.dense

    def rows(self, index: Tensor) -> "Matrix":
        """As `QuantizedTensor.rows`."""
        return Matrix(self.dense[index], self.store)


#: From a name, the full-precision weight and the recipe's codes to another form, or None to keep.
Way = Callable[[str, Tensor, QuantizedTensor], Matrix | None]
_store_codes = graph.quantized_matrix


def as_codes(tensor: QuantizedTensor) -> Matrix:
    """Codes and one scale per group, as everywhere."""
    return Matrix(tensor.dequantize(), lambda name: _store_codes(name, tensor, lambda: tensor))


def keep(name: str, weight: Tensor, given: QuantizedTensor) -> Matrix | None:
    """What the recipe gives."""
    del name, weight, given
    return None


def linears_of_32(name: str, weight: Tensor, given: QuantizedTensor) -> Matrix | None:
    """Block linears as the recipe has them."""
    del weight
    return None if name in TABLES else as_codes(given)


def int4_tables(name: str, weight: Tensor, given: QuantizedTensor) -> Matrix | None:
    """Embedding and head in int4, groups of 32, each group's scale searched."""
    del given
    if name not in TABLES:
        return None
    scales = search_scales(weight, 4, 32)
    return as_codes(round_to_nearest(name, weight, scales, 4))


def int4_tables_of_16(name: str, weight: Tensor, given: QuantizedTensor) -> Matrix | None:
    """The same in groups of 16."""
    del given
    if name not in TABLES:
        return None
    return as_codes(round_to_nearest(name, weight, search_scales(weight, 4, 16), 4))


def groups_of_64(name: str, weight: Tensor, given: QuantizedTensor) -> Matrix | None:
    """Block linears in groups of 64: half as many scales."""
    del given
    if name in TABLES:
        return None
    return as_codes(round_to_nearest(name, weight, search_scales(weight, 4, 64), 4))


def int8_scales(name: str, weight: Tensor, given: QuantizedTensor) -> Matrix | None:
    """Scales of block linears as 8-bit multiples of each row's power of two.

    Their products are bfloat16 numbers still, so every other target could hold the same ones. In
    the package, a scale is itself the result of an operator on constants.
    """
    if name in TABLES:
        return None
    scales = given.scales.float()
    unit = torch.exp2(torch.ceil(torch.log2(scales.amax(1, keepdim=True) / 255)))
    multiples = torch.ceil(scales / unit).clamp(1, 255)
    rounded = round_to_nearest(name, weight, (multiples * unit).to(torch.bfloat16), 4)
    marked = rounded.codes.numpy().view(np_int4_dtype)
    bytes_, half = multiples.to(torch.uint8).numpy(), unit.to(torch.float16).numpy()

    def store(stored: str) -> Var:
        scale = mb.constexpr_blockwise_shift_scale(data=bytes_, scale=half, name=f"{stored}_scale")
        return mb.constexpr_blockwise_shift_scale(data=marked, scale=scale, name=stored)

    return Matrix(rounded.dequantize(), store)


#: Rows that share a palette: more rows cost KL, fewer cost bytes.
_ROWS: Final = 16
_COLOURS: Final = 64
_ROUNDS: Final = 4


def palettes_of_64(name: str, weight: Tensor, given: QuantizedTensor) -> Matrix | None:
    """Tables as 6-bit indices into 64 float16 values per 16 rows (k-means)."""
    del given
    if name not in TABLES:
        return None
    groups = weight.reshape(weight.shape[0] // _ROWS, -1)
    places = (torch.arange(_COLOURS) + 0.5) / _COLOURS
    ordered = groups.sort(1).values
    centres = ordered[:, (places * groups.shape[1]).long()].contiguous()
    for _ in range(_ROUNDS):
        nearest = _nearest(groups, centres)
        sums = torch.zeros_like(centres).scatter_add_(1, nearest, groups)
        counts = torch.zeros_like(centres).scatter_add_(1, nearest, torch.ones_like(groups))
        centres = torch.where(counts > 0, sums / counts.clamp(min=1), centres).sort(1).values
    centres = centres.half().float()
    nearest = _nearest(groups, centres)
    dense = centres.gather(1, nearest).reshape(weight.shape)
    indices = nearest.reshape(weight.shape).to(torch.uint8).numpy().view(np_uint6_dtype)
    palette = centres.half().numpy().reshape(-1, 1, _COLOURS, 1)
    return Matrix(
        dense, lambda stored: mb.constexpr_lut_to_dense(indices=indices, lut=palette, name=stored)
    )


def _nearest(values: Tensor, centres: Tensor) -> Tensor:
    middles = (centres[:, 1:] + centres[:, :-1]) / 2
    return torch.searchsorted(middles.contiguous(), values)


def palettes_and_int8_scales(name: str, weight: Tensor, given: QuantizedTensor) -> Matrix | None:
    """Both."""
    return palettes_of_64(name, weight, given) or int8_scales(name, weight, given)


WAYS: Final[Mapping[str, Way]] = {
    "as-it-is": keep,
    "int4-tables": int4_tables,
    "int4-tables-of-16": int4_tables_of_16,
    "linears-of-32": linears_of_32,
    "groups-of-64": groups_of_64,
    "int8-scales": int8_scales,
    "palettes-of-64": palettes_of_64,
    "palettes-and-int8-scales": palettes_and_int8_scales,
}


class ChangedWeights:
    """`QuantizedWeights` of which some matrices have another form.

    Args:
        checkpoint: Full precision, rotated as the codes are.
        weights: The recipe's codes.
        way: What to change.
        precise: Whether block linears that are not changed keep their full precision.
    """

    def __init__(
        self, checkpoint: Checkpoint, weights: QuantizedWeights, way: Way, *, precise: bool
    ) -> None:
        self._checkpoint = checkpoint
        self._weights = weights
        self._way = way
        self._precise = precise
        self._made: dict[str, Matrix] = {}

    def quantized_names(self) -> tuple[str, ...]:
        """See `QuantizedWeights`."""
        return self._weights.quantized_names()

    def quantized(self, name: str) -> Matrix:
        """See `QuantizedWeights`."""
        if self._checkpoint.config.tie_word_embeddings and name == LM_HEAD:
            name = EMBEDDING
        if name not in self._made:
            given, weight = self._weights.quantized(name), self._checkpoint.weights.read(name)
            changed = self._way(name, weight, given)
            if changed is None and self._precise and name not in TABLES:
                changed = Matrix(weight, lambda stored: _store_codes(stored, given, lambda: given))
            self._made[name] = changed or as_codes(given)
        return self._made[name]

    def vector(self, name: str) -> Tensor:
        """See `QuantizedWeights`."""
        return self._weights.vector(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One way."""

    way: str
    package_bytes: int
    mean_kl: float
    p99_kl: float
    top1_agreement: float


def package_bytes(checkpoint: QuantizedCheckpoint) -> int:
    """Of the whole package, written for 2048 tokens."""
    lowering = Lowering(max_context=2048, max_prefill=512)
    with tempfile.TemporaryDirectory() as folder:
        write_package(checkpoint, Path(folder), lowering, SilentProgress())
        return sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())


def measure(names: list[str], recipe: Recipe) -> list[Row]:
    """All ways, next to one run of full precision."""
    model = load_checkpoint(MODEL)
    # Its weights are `Matrix`, which say themselves how they are stored.
    setattr(graph, "quantized_matrix", lambda name, weight, _: weight.store(name))  # noqa: B010
    prompts = gate_prompts(Tokenizer(model.text), model.config.max_position_embeddings)
    precise = Reference(model.config, FullPrecisionSource(model.config, model.weights))
    expected = _logits(precise, prompts)
    given = model
    if recipe.rotations:
        given = apply_rotations(model, choose_rotations(model.config, recipe))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        quantized = quantize_checkpoint(model, recipe, Path(folder), SilentProgress())
        for name in names:
            weights: Any = ChangedWeights(given, quantized.weights, WAYS[name], precise=True)
            found = _logits(Reference(quantized.config, DequantizedSource(weights)), prompts)
            parts = zip(expected, found, prompts, strict=True)
            summary = summarize(
                concatenate([compare(want, have, one.sequence) for want, have, one in parts])
            )
            changed: Any = _Replaced(quantized, weights)
            rows.append(
                Row(
                    way=name,
                    package_bytes=package_bytes(changed),
                    mean_kl=summary.mean_kl,
                    p99_kl=summary.p99_kl,
                    top1_agreement=summary.top1_agreement,
                )
            )
            print(json.dumps(asdict(rows[-1])), file=sys.stderr, flush=True)
    return rows


class _Replaced:
    """A quantized checkpoint with other weights; `replace` would ask for their protocol."""

    def __init__(self, checkpoint: QuantizedCheckpoint, weights: ChangedWeights) -> None:
        self.config, self.text, self.weights = checkpoint.config, checkpoint.text, weights


@torch.no_grad()
def _logits(model: Reference, prompts: tuple[Prompt, ...]) -> list[np.ndarray[Any, Any]]:
    sequences = [prompt.sequence for prompt in prompts]
    [hidden] = final_hidden([Variant(model=model)], sequences, SilentProgress())
    return [model.head(one).numpy() for one in hidden]


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("ways", nargs="*", metavar="WAY", help=f"of: {', '.join(WAYS)}")
    parser.add_argument("--plain", action="store_true", help="w4a8-rtn as the base")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    arguments = parser.parse_args()
    names = arguments.ways or [*WAYS]
    unknown = sorted(set(names) - set(WAYS))
    if unknown:
        parser.error(f"{unknown[0]!r} is unknown; ways: {', '.join(WAYS)}")
    recipe = W4A8_RTN if arguments.plain else ROTATED
    rows = measure(names, recipe)
    table = Table(title=f"{MODEL}, {recipe.name}, activations in floating point")
    for heading in ("way", "package, MB", "mean KL", "99th percentile", "top-1"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row.way,
            f"{row.package_bytes / 1e6:.1f}",
            f"{row.mean_kl:.4f}",
            f"{row.p99_kl:.3f}",
            f"{row.top1_agreement:.1%}",
        )
    Console(width=120).print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
