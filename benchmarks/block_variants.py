"""Other ways to lay the `.pte`'s blocks down, timed against the one that is used.

    python benchmarks/block_variants.py [--rounds N] [--work FOLDER] [--also FILE ...]

SmolLM2-135M, w4a8-rtn. Processor time of one thread, in turns, a fresh process for each reading:
where weights happen to lie in memory moves a process's decode by 20 %, for its whole life. Also
prints attention's time for query heads that ask one by one, and grouped as tokens of one call.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from executorch.backends.xnnpack.serialization import xnnpack_graph_schema as schema

from llama_edge.core.progress import SilentProgress
from llama_edge.core.quantized_checkpoint import read_quantized_checkpoint
from llama_edge.core.types import QuantizedCheckpoint
from llama_edge.core.weight_names import block_weight
from llama_edge.export.base import LowerOptions
from llama_edge.export.executorch import lower
from llama_edge.export.executorch.blocks import BlockBuilder, CosSin
from llama_edge.export.executorch.xnnpack_graph import Value, XnnpackGraph
from llama_edge.pipeline.quantize import QuantizeRequest, quantize_model

PROMPT_TOKENS = 128
DECODE_TOKENS = 48
_CHANNELS = 16


class StackedGateUp(BlockBuilder):
    """Gate and up as one linear, cut afterwards."""

    def _mlp(self, graph: XnnpackGraph, layer: int, x: Value, attention: Value, out: Value) -> None:
        o_proj = [block_weight(layer, "self_attn.o_proj")]
        x = graph.add(x, self._linear(graph, graph.quantize_per_token(attention), o_proj))
        normed = self._rms_norm(graph, x, block_weight(layer, "post_attention_layernorm"))
        names = [block_weight(layer, part) for part in ("mlp.gate_proj", "mlp.up_proj")]
        both = self._linear(graph, graph.quantize_per_token(normed), names)
        width = self.config.intermediate_size
        gate, up = (graph.slice(both, {2: (start, width)}) for start in (0, width))
        product = graph.multiply(graph.multiply(gate, graph.sigmoid(gate)), up)
        down_proj = [block_weight(layer, "mlp.down_proj")]
        graph.add(x, self._linear(graph, graph.quantize_per_token(product), down_proj), out=out)


class SeparateQkv(BlockBuilder):
    """Three linears over one quantized input; nothing is cut."""

    def _queries_keys_values(self, graph: XnnpackGraph, layer: int, x: Value, rope: CosSin) -> None:
        normed = self._rms_norm(graph, x, block_weight(layer, "input_layernorm"))
        quantized, width = graph.quantize_per_token(normed), self.config.head_dim
        counts = (self.config.num_attention_heads, *[self.config.num_key_value_heads] * 2)
        outputs = [graph.output((1, self.max_tokens, count, width)) for count in counts]
        heads = [
            graph.reshape(
                self._linear(graph, quantized, [block_weight(layer, f"self_attn.{part}_proj")]),
                (1, 0, count, width),
            )
            for part, count in zip("qkv", counts, strict=True)
        ]
        for index in range(2):
            turned = self._rope(graph, heads[index], counts[index], rope)
            graph.slice(turned, {2: (0, counts[index])}, out=outputs[index])
        graph.slice(heads[2], {2: (0, counts[2])}, out=outputs[2])


class PooledMean(BlockBuilder):
    """RMSNorm's mean by a pooling over rows of 16, then a linear of those."""

    def _rms_norm(self, graph: XnnpackGraph, x: Value, name: str) -> Value:
        _, eps_key = self.store.mean_constants()
        width, key = self.config.hidden_size, "rms_norm.mean_of_channels"
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


VARIANTS: Mapping[str, type[BlockBuilder]] = {
    "as it is": BlockBuilder,
    "gate and up stacked": StackedGateUp,
    "q, k, v separate": SeparateQkv,
    "mean by pooling": PooledMean,
}


def read_one(path: Path) -> tuple[float, float]:
    """(decode, prefill) milliseconds of processor time per token, one thread."""
    from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
    from executorch.kernels import quantized  # noqa: F401
    from executorch.runtime import Runtime

    _unsafe_reset_threadpool(1)
    program = Runtime.get().load_program(path)
    method = program.load_method("forward")
    assert method is not None, path
    prompt = torch.tensor([list(range(100, 100 + PROMPT_TOKENS))]), torch.tensor([0])
    method.execute(prompt)
    start = time.process_time()
    method.execute(prompt)
    prefilled = time.process_time()
    for index in range(DECODE_TOKENS):
        method.execute((torch.tensor([[7]]), torch.tensor([PROMPT_TOKENS + index])))
    decode = (time.process_time() - prefilled) / DECODE_TOKENS
    return 1e3 * decode, 1e3 * (prefilled - start) / PROMPT_TOKENS


def compare(checkpoint: QuantizedCheckpoint, work: Path, rounds: int, also: Sequence[Path]) -> None:
    """Lower each variant, read in turns with other files, print medians and ratios."""
    paths = {path.stem: path for path in also}
    for name, builder in VARIANTS.items():
        paths[name] = work / f"{name.replace(' ', '_')}.pte"
        lower.BlockBuilder = builder  # type: ignore[misc]
        options = LowerOptions(max_context=2048)
        lower.lower_to_pte(checkpoint, paths[name], options, SilentProgress())
    readings: dict[str, list[list[float]]] = {name: [] for name in paths}
    for _ in range(rounds):
        for name, path in paths.items():
            command = [sys.executable, __file__, "--read", str(path)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            readings[name].append(json.loads(output.splitlines()[-1]))
    base = [statistics.median(column) for column in zip(*readings["as it is"], strict=True)]
    for name, found in readings.items():
        decode, prefill = (statistics.median(column) for column in zip(*found, strict=True))
        print(
            f"{name:<22} decode {decode:6.2f} ms ({base[0] / decode:.3f} x)  "
            f"prefill {prefill:6.3f} ms ({base[1] / prefill:.3f} x)"
        )


def microseconds(call: Callable[[], object], calls: int = 200) -> float:
    """Of processor time, the best of five."""
    found = []
    for _ in range(5):
        start = time.process_time()
        for _ in range(calls):
            call()
        found.append((time.process_time() - start) / calls)
    return 1e6 * min(found)


def compare_attention() -> None:
    """One decode step's attention: N query heads, or their groups as that many tokens."""
    from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool

    _unsafe_reset_threadpool(1)
    torch.set_num_threads(1)
    attend = torch.ops.llama.custom_sdpa
    for heads, groups in ((9, 3), (32, 8)):
        keys, values = torch.randn(2, 1, 2048, groups, 64)
        query, group = torch.randn(1, 1, heads, 64), heads // groups
        grouped = query.view(1, groups, group, 64).transpose(1, 2).contiguous()
        for known in (160, 1024):
            one_by_one = partial(attend, query, keys, values, known - 1, None, 0.0, True, None)
            asked_together = partial(
                attend, grouped, keys, values, known - group, None, 0.0, False, None
            )
            plain, together = microseconds(one_by_one), microseconds(asked_together)
            print(
                f"attention, {heads} heads on {groups}, {known} tokens: one by one {plain:.0f} us, "
                f"grouped {together:.0f} us ({plain / together:.2f} x)"
            )


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
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
            request = QuantizeRequest(model="smollm2-135m", recipe="w4a8-rtn", out=codes)
            quantize_model(request, SilentProgress())
        compare(read_quantized_checkpoint(codes), work, arguments.rounds, arguments.also)
    compare_attention()


if __name__ == "__main__":
    main()
