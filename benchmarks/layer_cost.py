"""CPU time and peak memory of quantizing one layer of Llama 3.2's shapes, and of a whole model.

    python benchmarks/layer_cost.py [--shapes 1b 3b] [--recipes R...] [--tokens N] [--json FILE]

The weights are random and the vocabulary small, so the figures are those of the layer: a network of
one layer is quantized in a process of its own, then one of two; the difference is a layer, the
rest is start-up. The extrapolation multiplies by the model's layers. It leaves out writing
calibration text, reading the checkpoint and rounding the two tables.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from llama_edge.checkpoints import load_checkpoint
from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.model_config import ModelConfig
from llama_edge.core.model_shapes import get_shape
from llama_edge.core.progress import SilentProgress
from llama_edge.core.recipe import Rounding
from llama_edge.models.weights import weight_shapes
from llama_edge.quantize import DEFAULT_RECIPE, W4A8_RTN
from llama_edge.quantize.calibration import SEQUENCES, CalibrationSet, sequence_length
from llama_edge.quantize.recipe_file import find_recipe
from llama_edge.quantize.resume import WorkPlace
from llama_edge.quantize.stage import quantize_checkpoint

VOCABULARY: Final = 512


SHAPES: Final = {name: get_shape(f"llama-3.2-{name}").config for name in ("1b", "3b")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One recipe on one shape."""

    shape: str
    recipe: str
    calibration_tokens: int
    layer_cpu_s: float
    #: of the process with two layers, interpreter and libraries included
    peak_mib: float
    #: layers times layer_cpu_s
    model_cpu_minutes: float


class RandomWeights:
    """`Weights` of a shape: normal, made when they are read, the same each time."""

    def __init__(self, config: ModelConfig) -> None:
        self._shapes = weight_shapes(config)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """See `Weights`."""
        return self._shapes[name]

    def read(self, name: str) -> Tensor:
        """See `Weights`."""
        shape = self._shapes[name]
        if len(shape) == 1:
            return torch.ones(shape)
        generator = torch.Generator().manual_seed(sum(name.encode()))
        return torch.randn(shape, generator=generator) * 0.02


def random_checkpoint(shape: ModelConfig, layers: int) -> Checkpoint:
    """A model of this shape with few layers; text assets of the embedded model, never used."""
    config = replace(
        shape, num_hidden_layers=layers, vocab_size=VOCABULARY, max_position_embeddings=2048
    )
    text = load_checkpoint("smollm2-135m").text
    return Checkpoint(source="random", config=config, weights=RandomWeights(config), text=text)


def peak_rss_mib() -> float:
    """Of this process since it began: `ru_maxrss` would also count its parent's before exec."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def measure(shape: str, layers: int, recipe_name: str, tokens: int) -> tuple[float, float]:
    """CPU seconds and peak MiB of this process, which quantizes once."""
    recipe = find_recipe(recipe_name)
    checkpoint = random_checkpoint(SHAPES[shape], layers)
    calibration = None
    if recipe.rounding is Rounding.GPTQ:
        generator = torch.Generator().manual_seed(0)
        length = sequence_length(SHAPES[shape])
        rows = torch.randint(0, VOCABULARY, (tokens // length, length), generator=generator)
        calibration = CalibrationSet(tokens=rows, origin="random")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "quantized")
        folder.mkdir()
        kept = Path(scratch, "kept")
        kept.mkdir()
        place = WorkPlace(folder=kept)
        began = time.process_time()
        progress = SilentProgress()
        quantize_checkpoint(checkpoint, recipe, folder, progress, calibration, place)
        cpu_s = time.process_time() - began
    return cpu_s, peak_rss_mib()


def measure_in_child(shape: str, layers: int, recipe: str, tokens: int) -> tuple[float, float]:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--child", shape, str(layers), recipe, str(tokens)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    cpu_s, peak_mib = json.loads(output.splitlines()[-1])
    return cpu_s, peak_mib


def benchmark(shape: str, recipe: str, tokens: int) -> Row:
    """One layer against two."""
    one_s, _ = measure_in_child(shape, 1, recipe, tokens)
    two_s, peak_mib = measure_in_child(shape, 2, recipe, tokens)
    return Row(
        shape=shape,
        recipe=recipe,
        calibration_tokens=tokens,
        layer_cpu_s=two_s - one_s,
        peak_mib=peak_mib,
        model_cpu_minutes=SHAPES[shape].num_hidden_layers * (two_s - one_s) / 60,
    )


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--recipes", nargs="+", default=[W4A8_RTN.name, DEFAULT_RECIPE])
    parser.add_argument("--tokens", type=int, help="by default as many as the model would write")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        shape, layers, recipe, tokens = arguments.child
        print(json.dumps(measure(shape, int(layers), recipe, int(tokens))))
        return
    rows = [
        benchmark(shape, recipe, arguments.tokens or SEQUENCES * sequence_length(SHAPES[shape]))
        for shape in arguments.shapes
        for recipe in arguments.recipes
    ]
    table = Table(title="one layer, random weights")
    for heading in asdict(rows[0]):
        table.add_column(heading.replace("_", " "), justify="right")
    for row in rows:
        cells = asdict(row).values()
        table.add_row(*(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells))
    Console(width=120).print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
