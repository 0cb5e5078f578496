"""CPU time and peak memory: Core ML packages of Llama 3.2's shapes, written, and run here.

    python benchmarks/coreml_memory.py [--shapes 1b 3b] [--steps N] [--folder DIR] [--json FILE]

The codes are random, as many as the published models have, vocabulary included; nothing is
quantized. Each measurement is a process of its own: one builds and saves the package, one opens it
in the interpreter and decodes token by token. Seconds are of CPU time, which other processes change
less than wall time; peak memory is the process's own, mapped pages of the package included. The
interpreter's time is this machine's, and says nothing of a phone's.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from llama_edge.backends.coreml.exporter import CoreMLExporter
from llama_edge.backends.coreml.metadata import Lowering
from llama_edge.checkpoints import load_checkpoint
from llama_edge.core.model_config import ModelConfig
from llama_edge.core.model_shapes import get_shape
from llama_edge.core.packing import QuantizedTensor
from llama_edge.core.progress import SilentProgress
from llama_edge.formats.quantized_checkpoint import TABLES, matrix_shape, quantized_names
from llama_edge.models.weights import float_shapes
from llama_edge.runtimes.coreml.session import CoreMLInterpreterRuntime

GROUP: Final = 32
CONTEXT: Final = 2048
SHAPES: Final = {name: get_shape(f"llama-3.2-{name}").config for name in ("1b", "3b")}


class RandomCodes:
    """`QuantizedWeights` of a shape, made when they are read: a matrix keeps its input's size."""

    def __init__(self, config: ModelConfig) -> None:
        self._config = config

    def quantized_names(self) -> tuple[str, ...]:
        """See `QuantizedWeights`."""
        return quantized_names(self._config)

    def quantized(self, name: str) -> QuantizedTensor:
        """See `QuantizedWeights`."""
        rows, columns = matrix_shape(self._config, name)
        bits = 8 if name in TABLES else 4
        group = columns if bits == 8 else GROUP
        generator = torch.Generator().manual_seed(sum(name.encode()))
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1)
        codes = torch.randint(low, high, (rows, columns), generator=generator, dtype=torch.int8)
        # A code's root mean square is about a quarter of its range.
        scale = torch.full((rows, columns // group), 4 / 2**bits / columns**0.5)
        return QuantizedTensor(
            codes=codes, scales=scale.to(torch.bfloat16), bits=bits, group_size=group
        )

    def vector(self, name: str) -> Tensor:
        """See `QuantizedWeights`."""
        return torch.ones(float_shapes(self._config)[name])


class RandomCheckpoint:
    """What `write_package` reads of a `QuantizedCheckpoint`; the text is the embedded model's."""

    def __init__(self, config: ModelConfig) -> None:
        self.config, self.weights = config, RandomCodes(config)
        self.text = load_checkpoint("smollm2-135m").text


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One shape."""

    shape: str
    package_mb: float
    #: seconds are of CPU time
    write_s: float
    write_peak_mib: float
    open_s: float
    first_step_s: float
    #: of each later step, on average
    step_s: float
    run_peak_mib: float


def peak_rss_mib() -> float:
    """Of this process since it began: `ru_maxrss` would also count its parent's before exec."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def write(shape: str, folder: Path) -> dict[str, float]:
    """Build and save; imports of coremltools are not counted as time, but as memory."""
    from llama_edge.backends.coreml.lower import write_package

    checkpoint: Any = RandomCheckpoint(SHAPES[shape])
    began = time.process_time()
    lowering = Lowering(max_context=CONTEXT, max_prefill=512)
    write_package(checkpoint, folder, lowering, SilentProgress())
    return {"write_s": time.process_time() - began, "write_peak_mib": peak_rss_mib()}


def run(steps: int, folder: Path) -> dict[str, float]:
    """Open, and decode from an empty cache."""
    artifact = CoreMLExporter().open(folder).artifact
    began = time.process_time()
    with CoreMLInterpreterRuntime().open(artifact) as session:
        opened = time.process_time()
        times = []
        for token in range(steps):
            start = time.process_time()
            logits = session.decode(100 + token)
            times.append(time.process_time() - start)
            assert torch.from_numpy(logits).isfinite().all(), "logits are not finite"
    return {
        "package_mb": artifact.size_bytes / 1e6,
        "open_s": opened - began,
        "first_step_s": times[0],
        "step_s": sum(times[1:]) / max(1, len(times) - 1),
        "run_peak_mib": peak_rss_mib(),
    }


def in_child(*arguments: str) -> dict[str, float]:
    """One measurement in a process of its own."""
    command = [sys.executable, __file__, "--child", *arguments]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, float] = json.loads(output.splitlines()[-1])
    return found


def benchmark(shape: str, steps: int, place: Path | None) -> Row:
    """Write, then run."""
    with tempfile.TemporaryDirectory(dir=place) as folder:
        written = in_child("write", shape, folder)
        return Row(shape=shape, **written, **in_child("run", str(steps), folder))


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="for the packages, which take up to 2 GB")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        what, which, folder = arguments.child
        found = write(which, Path(folder)) if what == "write" else run(int(which), Path(folder))
        print(json.dumps(found))
        return
    rows = [benchmark(shape, arguments.steps, arguments.folder) for shape in arguments.shapes]
    threads = torch.get_num_threads()
    table = Table(title=f"random codes, context {CONTEXT}, {threads} threads, CPU time")
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
