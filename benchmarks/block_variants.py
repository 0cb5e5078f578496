"""Other ways to lay the `.pte`'s blocks down, timed against the one that is used.

    python benchmarks/block_variants.py [--model MODEL] [--variants NAME...] [--also FILE...]

Recipe w4a8-rtn. Processor time of one thread per token, in turns, a fresh process for each reading,
memory in large pages; the best of all is printed, with its ratio to that of the way in use.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from executorch.backends.xnnpack.serialization import xnnpack_graph_schema as schema
from stock_executorch import STEADY_MEMORY

from llama_edge.backends.base import LowerOptions
from llama_edge.backends.executorch import lower
from llama_edge.backends.executorch.blocks import BlockBuilder
from llama_edge.backends.executorch.xnnpack_graph import Value, XnnpackGraph
from llama_edge.core.progress import SilentProgress
from llama_edge.core.quantized import QuantizedCheckpoint
from llama_edge.formats.quantized_checkpoint import read_quantized_checkpoint
from llama_edge.models.blocks import SwiGLU
from llama_edge.models.network import Node
from llama_edge.pipeline.quantize import QuantizeRequest, quantize_model
from llama_edge.runtimes.executorch_native import load_program, reset_thread_pool

PROMPT_TOKENS = 128
#: prompts of that length after which decode is timed once more
LONG_PROMPTS = 8
DECODE_TOKENS = 16
REPEATS = 3
_CHANNELS = 16


class StackedGateUp(BlockBuilder):
    """Gate and up as one linear, cut afterwards."""

    def __init__(self, **given: Any) -> None:  # noqa: ANN401
        super().__init__(**given)
        for node in self.network.of_kind(SwiGLU):
            linears = self.network.linears_before(node)
            self.stacks |= {linear.name: linears for linear in linears}

    def _heads(self, stacked: Value) -> Value:
        is_mlp = stacked.shape[-1] == 2 * self.config.intermediate_size
        return stacked if is_mlp else super()._heads(stacked)

    def _swiglu(self, node: Node, gate: Value, up: Value) -> Value:
        both, width = up, self.config.intermediate_size
        gate, up = (self._graph.slice(both, {2: (start, width)}) for start in (0, width))
        return super()._swiglu(node, gate, up)


class PooledMean(BlockBuilder):
    """RMSNorm's mean by a pooling over rows of 16, then a linear of those."""

    def _rms_norm(self, graph: XnnpackGraph, x: Value, name: str) -> Value:
        width, key = self.config.hidden_size, "rms_norm.mean_of_channels"
        _, eps_key = self.store.mean_constants(width)
        shape = (0, width // _CHANNELS, 1, _CHANNELS)
        rows = graph.reshape(graph.square(x), shape)
        pooled = graph._float((rows.shape[0], 1, 1, _CHANNELS))
        graph._add_node(schema.XNNGlobalAvgPooling2d(rows.index, pooled.index, 0))
        self.store._put(key, 4 * _CHANNELS, lambda: torch.full((1, _CHANNELS), 1 / _CHANNELS))
        mean, eps = graph.constant(key, (1, _CHANNELS)), graph.constant(eps_key, (1,))
        flat = graph.reshape(pooled, (1, 0, _CHANNELS))
        inverse = graph.reciprocal_square_root(graph.linear(flat, mean, eps))
        weight = graph.constant(self.store.vector(name), (1, 1, width))
        return graph.multiply(graph.multiply(x, inverse), weight)


BASE = "as it is"
VARIANTS: Mapping[str, type[BlockBuilder]] = {
    BASE: BlockBuilder,
    "gate and up stacked": StackedGateUp,
    "mean by pooling": PooledMean,
}


def read_one(path: Path) -> tuple[float, float, float]:
    """(decode, decode after a long prompt, prefill): ms of processor time per token."""
    reset_thread_pool(1)
    torch.set_num_threads(1)  # of MKL, which attention's products go to
    program = load_program(path)
    method = program.load_method("forward")
    prompt = torch.tensor([list(range(100, 100 + PROMPT_TOKENS))])
    one = torch.tensor([[7]])

    def milliseconds(tokens: torch.Tensor, start: int, times: int) -> float:
        began = time.process_time()
        for index in range(times):
            position = torch.tensor([start + index * tokens.shape[1]])
            method((tokens, position))
        return 1e3 * (time.process_time() - began) / times / tokens.shape[1]

    milliseconds(prompt, 0, 1)
    prefill = min(milliseconds(prompt, 0, 1) for _ in range(REPEATS))
    decode = min(milliseconds(one, PROMPT_TOKENS, DECODE_TOKENS) for _ in range(REPEATS))
    milliseconds(prompt, PROMPT_TOKENS, LONG_PROMPTS - 1)
    long = PROMPT_TOKENS * LONG_PROMPTS
    return decode, min(milliseconds(one, long, DECODE_TOKENS) for _ in range(REPEATS)), prefill


def compare(
    checkpoint: QuantizedCheckpoint,
    names: Sequence[str],
    work: Path,
    rounds: int,
    also: Sequence[Path],
) -> None:
    """Lower the variants, read in turns with other files, print the best and their ratios."""
    paths = {path.stem: path for path in also}
    for name in (BASE, *names):
        paths[name] = work / f"{name.replace(' ', '_')}.pte"
        setattr(lower, "BlockBuilder", VARIANTS[name])  # noqa: B010 (not its to export)
        options = LowerOptions(max_context=2048)
        lower.lower_to_pte(checkpoint, paths[name], options, SilentProgress())
    readings: dict[str, list[list[float]]] = {name: [] for name in paths}
    for _ in range(rounds):
        for name, path in paths.items():
            command = [sys.executable, __file__, "--read", str(path)]
            output = subprocess.run(
                command, check=True, capture_output=True, text=True, env=os.environ | STEADY_MEMORY
            ).stdout
            readings[name].append(json.loads(output.splitlines()[-1]))
    base = [min(column) for column in zip(*readings[BASE], strict=True)]
    print("| | decode ms | at 1024 ms | prefill ms |\n|---|--:|--:|--:|")
    for name, found in readings.items():
        cells = (
            f"{best:.2f} ({best / used:.3f} x)"
            for best, used in zip(map(min, zip(*found, strict=True)), base, strict=True)
        )
        print(f"| {name} | {' | '.join(cells)} |")


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    others = [name for name in VARIANTS if name != BASE]
    parser.add_argument("--variants", nargs="+", choices=others, default=others)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--work", type=Path, help="keep the files in this folder")
    parser.add_argument(
        "--also", type=Path, nargs="*", default=[], help="further files of the same interface"
    )
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read:
        print(json.dumps(read_one(arguments.read)))
        return
    with tempfile.TemporaryDirectory() as folder:
        work = (arguments.work or Path(folder)).absolute()
        work.mkdir(parents=True, exist_ok=True)
        codes = work / "quantized"
        if not codes.exists():
            request = QuantizeRequest(model=arguments.model, recipe="w4a8-rtn", out=codes)
            quantize_model(request, SilentProgress())
        checkpoint = read_quantized_checkpoint(codes)
        compare(checkpoint, arguments.variants, work, arguments.rounds, arguments.also)


if __name__ == "__main__":
    main()
