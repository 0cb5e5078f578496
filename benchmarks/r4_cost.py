"""What R4 costs: prefill and decode with no R4, with R4 of the whole width, and in blocks.

    python benchmarks/r4_cost.py [--models 1b smollm2] [--backends executorch onnx]
        [--threads 1 2] [--layers N] [--processes N] [--turns N] [--work FOLDER]

The weights are random in the shapes of Llama 3.2 1B and SmolLM2-135M, with few layers and a small
vocabulary, so that the ratios are those of the layers: a head takes the same time whatever R4 is.
Weights are rounded to nearest after R1 and R2; what differs is R4 alone. The kinds take turns in
one process, its memory in large pages, and several processes follow each other. One thread is timed
by processor time, more by the clock. A ratio is the median, over all turns of all processes, of a
kind's time to that of no R4 in the same turn.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Final

from layer_cost import random_checkpoint
from rich.console import Console
from rich.table import Table
from stock_executorch import STEADY_MEMORY

from llama_edge.backends import get_exporter
from llama_edge.backends.base import LowerOptions
from llama_edge.checkpoints import load_checkpoint
from llama_edge.core.model_config import ModelConfig
from llama_edge.core.model_shapes import get_shape
from llama_edge.core.progress import SilentProgress
from llama_edge.core.quantized import QuantizedCheckpoint
from llama_edge.core.recipe import Recipe, Rotation
from llama_edge.core.session import Session
from llama_edge.formats.quantized_checkpoint import read_quantized_checkpoint
from llama_edge.quantize import W4A8_RTN
from llama_edge.quantize.stage import quantize_checkpoint
from llama_edge.runtimes.speed import TIMED_RUNTIMES

PROMPT_TOKENS: Final = 128
DECODE_TOKENS: Final = 8
NONE: Final = "none"
_PLAIN: Final = replace(W4A8_RTN, name=NONE, rotations=(Rotation.R1, Rotation.R2))
_FULL: Final = replace(_PLAIN, name="full", rotations=tuple(Rotation))
#: By kind of R4, the one that the others are compared with first.
KINDS: Final[Mapping[str, Recipe]] = {
    recipe.name: recipe
    for recipe in (
        _PLAIN,
        _FULL,
        *(replace(_FULL, name=f"block {size}", r4_block=size) for size in (16, 32, 64)),
    )
}
MODELS: Final = ("1b", "smollm2")
#: Seconds of a prefill and of a decoded token, turn after turn.
Readings = dict[str, list[tuple[float, float]]]


def shape_of(model: str) -> ModelConfig:
    """The config whose widths are measured."""
    if model == "1b":
        return get_shape("llama-3.2-1b").config
    return load_checkpoint("smollm2-135m").config


def quantized(model: str, layers: int, kind: str, work: Path) -> QuantizedCheckpoint:
    """Random weights of that shape, rotated and rounded; kept in `work`."""
    folder = work / f"{model}-{layers}-{kind.replace(' ', '-')}"
    if not folder.exists():
        folder.mkdir()
        checkpoint = random_checkpoint(shape_of(model), layers)
        quantize_checkpoint(checkpoint, KINDS[kind], folder, SilentProgress())
    return read_quantized_checkpoint(folder)


def lowered(checkpoint: QuantizedCheckpoint, backend: str) -> Path:
    """The artifact's folder, next to the checkpoint's."""
    folder = checkpoint.root.with_name(f"{checkpoint.root.name}-{backend}")
    if not folder.exists():
        folder.mkdir()
        options = LowerOptions(max_context=2048)
        get_exporter(backend).lower(checkpoint, folder, options, SilentProgress())
    return folder


def read_turns(backend: str, threads: int, turns: int, folders: Mapping[str, str]) -> Readings:
    """All kinds in turns, in this process."""
    clock = time.process_time if threads == 1 else time.perf_counter
    exporter, runtime = get_exporter(backend), TIMED_RUNTIMES[backend](threads)
    prompt = list(range(3, 3 + PROMPT_TOKENS))

    def read(session: Session) -> tuple[float, float]:
        session.reset()
        begin = clock()
        session.prefill(prompt)
        prefilled = clock()
        session.decode(prompt[0])  # the first one finds other pages than the prompt's
        first = clock()
        for token in prompt[:DECODE_TOKENS]:
            session.decode(token)
        return prefilled - begin, (clock() - first) / DECODE_TOKENS

    with ExitStack() as stack:
        sessions = {
            kind: stack.enter_context(runtime.open(exporter.open(Path(folder)).artifact))
            for kind, folder in folders.items()
        }
        for session in sessions.values():
            read(session)
        readings: Readings = {kind: [] for kind in sessions}
        for _ in range(turns):
            for kind, session in sessions.items():
                readings[kind].append(read(session))
    return readings


def read_in_children(
    backend: str, threads: int, folders: Mapping[str, str], processes: int, turns: int
) -> Readings:
    """`read_turns` of several processes, one after the other."""
    together: Readings = {kind: [] for kind in folders}
    asked = json.dumps([backend, threads, turns, folders])
    for _ in range(processes):
        command = [sys.executable, __file__, "--child", asked]
        environment = os.environ | STEADY_MEMORY | {"OMP_NUM_THREADS": str(threads)}
        output = subprocess.run(
            command, check=True, capture_output=True, text=True, env=environment
        ).stdout
        for kind, readings in json.loads(output.splitlines()[-1]).items():
            together[kind] += [(prefill, decode) for prefill, decode in readings]
    return together


def cells(readings: Readings, kind: str) -> list[str]:
    """Least milliseconds and median ratio, of the prefill and of a decoded token."""
    found = []
    for column in (0, 1):
        own = [reading[column] for reading in readings[kind]]
        base = [reading[column] for reading in readings[NONE]]
        ratio = statistics.median(taken / without for taken, without in zip(own, base, strict=True))
        found += [f"{1e3 * min(own):.2f}", f"{ratio:.3f}"]
    return found


def measure(arguments: argparse.Namespace, work: Path, table: Table) -> None:
    """One row for each kind, in every way of running it."""
    console = Console(width=100)
    for model in arguments.models:
        checkpoints = {kind: quantized(model, arguments.layers, kind, work) for kind in KINDS}
        for backend in arguments.backends:
            folders = {kind: str(lowered(each, backend)) for kind, each in checkpoints.items()}
            for threads in arguments.threads:
                readings = read_in_children(
                    backend, threads, folders, arguments.processes, arguments.turns
                )
                for kind in KINDS:
                    row = (model, backend, str(threads), kind, *cells(readings, kind))
                    console.print(*row)
                    table.add_row(*row)


def main(given: Sequence[str] | None = None) -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument(
        "--backends", nargs="+", choices=list(TIMED_RUNTIMES), default=list(TIMED_RUNTIMES)
    )
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--work", type=Path, help="keep what is written in this folder")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args(given)
    if arguments.child:
        print(json.dumps(read_turns(*json.loads(arguments.child))))
        return
    table = Table(
        *("model", "backend", "threads", "R4", "prefill ms", "ratio", "decode ms", "ratio")
    )
    with tempfile.TemporaryDirectory() as folder:
        work = (arguments.work or Path(folder)).absolute()
        work.mkdir(parents=True, exist_ok=True)
        measure(arguments, work, table)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
