"""SmolLM2-135M to Android, with ExecuTorch's stock `export_llm` and with llama-edge, in one run.

    python benchmarks/stock_executorch.py [--json FILE] [--work FOLDER]

Both start from the same float32 weights and make int4 linears of group 32, int8 tables and int8
dynamic activations for the same context. The stock export takes about 16 CPU-minutes. CPU seconds
and peak memory are the operating system's own figures of each finished process. Speed is measured
in turns, a fresh process each, medians; compare within this run only, never across machines.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from llama_edge.checkpoints import load_checkpoint
from llama_edge.core.model import CachedSource, FullPrecisionSource, Llama
from llama_edge.core.tokenizer import Tokenizer
from llama_edge.core.types import Checkpoint
from llama_edge.core.weight_names import (
    EMBEDDING,
    LM_HEAD,
    META_BLOCK_PARTS,
    META_NAMES,
    block_weight,
)

MODEL = "smollm2-135m"
MAX_CONTEXT = 2048
MAX_PREFILL = 512
PROMPT_TOKENS = 128
DECODE_TOKENS = 64
ROUNDS = 9
#: Plain English that neither side has seen as calibration; there is none in this recipe.
TEXT = (
    "The ferry left at seven, as it had every morning since the bridge was closed. Mara counted "
    "eleven passengers, two bicycles and a crate of lettuce that nobody claimed. On the far side "
    "the market was already open, and the baker waved at her without looking up. She had come for "
    "a part: a bearing, forty millimetres wide, for a pump that watered three terraces of beans. "
    "The shop kept bearings in tobacco tins, sorted by the width of somebody's thumb. When the old "
    "man found one that fitted he wrote the price on her palm, because paper was short, and told "
    "her how to press it in: warm the housing, cool the steel, and never use a hammer where a vice "
    "will do. On the way back the river had risen by a hand. The engine coughed twice, caught, and "
    "pushed them out past the willows, and by noon the pump was running again, slower than before "
    "but without the noise that had kept the whole street awake. In the evening she added one line "
    "to the book that hung by the door: bearing replaced, grease in spring, check the seal before "
    "the dry months, and do not lend the big spanner to the neighbours."
)
#: For every process whose speed is measured: memory in pages of 2 MiB. With small pages, where
#: 90 MB of weights happen to lie moves a process's decode by up to 60 %, for its whole life.
STEADY_MEMORY: Final = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
#: log, command... -> [exit status, CPU seconds, peak MiB]
_STARTER: Final = """
import json, os, resource, subprocess, sys
with open(sys.argv[1], "wb") as log:
    process = subprocess.Popen(sys.argv[2:], stdout=log, stderr=subprocess.STDOUT)
    _, status, usage = os.wait4(process.pid, 0)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([status, used.ru_utime + used.ru_stime, usage.ru_maxrss / 1024]))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One exporter's column of the table."""

    name: str
    cpu_s: float
    peak_mib: float
    file_mib: float
    decode_tokens_per_s: float
    prefill_tokens_per_s: float
    mean_kl_nats: float


@dataclass(frozen=True, slots=True)
class Exported:
    """A finished export."""

    path: Path
    cpu_s: float
    peak_mib: float


def write_meta_checkpoint(checkpoint: Checkpoint, folder: Path) -> tuple[Path, Path]:
    """Meta's layout, which `export_llm` reads: interleaved Q and K rows, float32."""
    config, weights = checkpoint.config, checkpoint.weights

    def interleave(weight: torch.Tensor) -> torch.Tensor:
        halves = weight.view(-1, 2, config.head_dim // 2, weight.shape[1])
        return halves.transpose(1, 2).reshape(weight.shape)

    state = {
        theirs: weights.read(EMBEDDING if ours == LM_HEAD else ours)
        for theirs, ours in META_NAMES.items()
    }
    for layer in range(config.num_hidden_layers):
        for theirs, ours in META_BLOCK_PARTS.items():
            weight = weights.read(block_weight(layer, ours))
            turned = interleave(weight) if theirs in ("attention.wq", "attention.wk") else weight
            state[f"layers.{layer}.{theirs}.weight"] = turned.clone()
    torch.save(state, folder / "consolidated.00.pth")
    params = {
        "dim": config.hidden_size,
        "ffn_dim_multiplier": 1,
        "multiple_of": config.intermediate_size,
        "hidden_dim": config.intermediate_size,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "n_layers": config.num_hidden_layers,
        "norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "use_scaled_rope": False,
        "vocab_size": config.vocab_size,
    }
    (folder / "params.json").write_text(json.dumps(params))
    return folder / "consolidated.00.pth", folder / "params.json"


def measure(command: Sequence[str], log: Path) -> tuple[float, float]:
    """CPU seconds and peak MiB of a command with all its children; fails loudly.

    Linux counts the memory of whoever starts a process as that process's: a small one does.
    """
    starter = [sys.executable, "-c", _STARTER, str(log), *command]
    done = subprocess.run(starter, capture_output=True, text=True, check=True, cwd=log.parent)
    status, cpu_s, peak_mib = json.loads(done.stdout)
    if status:
        raise SystemExit(f"{command[0]} failed; see {log}")
    return cpu_s, peak_mib


def export_stock(checkpoint: Checkpoint, work: Path) -> Exported:
    """The stock exporter as its documentation says, for XNNPACK."""
    weights, params = write_meta_checkpoint(checkpoint, work)
    eos = list(checkpoint.text.eos_token_ids)
    metadata = json.dumps({"get_bos_id": checkpoint.text.bos_token_id, "get_eos_ids": eos})
    config = {
        "base": {
            "model_class": "llama3_2",
            "checkpoint": str(weights),
            "params": str(params),
            "metadata": metadata,
        },
        "model": {
            "use_kv_cache": True,
            "use_sdpa_with_kv_cache": True,
            "dtype_override": "fp32",
        },
        "export": {
            "max_seq_length": MAX_PREFILL,
            "max_context_length": MAX_CONTEXT,
            "output_dir": str(work),
            "output_name": "stock.pte",
        },
        "quantization": {"qmode": "8da4w", "group_size": 32, "embedding_quantize": "8,0"},
        "backend": {"xnnpack": {"enabled": True, "extended_ops": True}},
    }
    path = work / "export_llm.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    module = "executorch.extension.llm.export.export_llm"
    command = [sys.executable, "-m", module, "--config", str(path)]
    return Exported(work / "stock.pte", *measure(command, work / "stock.log"))


def export_ours(work: Path) -> Exported:
    """The whole command, verification and bundle included."""
    out = work / "bundle"
    program = str(Path(sys.executable).with_name("llama-edge"))
    command = [program, "export", MODEL, "--target", "android"]
    command += ["--recipe", "w4a8-rtn", "--max-context", str(MAX_CONTEXT), "--out", str(out)]
    return Exported(out / "model.pte", *measure([*command, "--force"], work / "ours.log"))


def run_file(path: Path, calls: Sequence[Sequence[int]]) -> tuple[list[np.ndarray], list[float]]:
    """Last-token logits and seconds of each call."""
    from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401
    from executorch.kernels import quantized  # noqa: F401
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(path)
    method = program.load_method("forward")
    position, logits, seconds = 0, [], []
    for call in calls:
        inputs = torch.tensor([list(call)]), torch.tensor([position])
        start = time.perf_counter()
        result = method.execute(inputs)[0]
        seconds.append(time.perf_counter() - start)
        size = result.shape[-1]
        logits.append(result.numpy().reshape(-1, size)[-1].copy())
        position += len(call)
    return logits, seconds


def time_in_child(path: Path) -> tuple[float, float]:
    """(decode, prefill) tokens per second in a fresh process, after one warm-up prefill."""
    command = [sys.executable, __file__, "--time", str(path)]
    output = subprocess.run(
        command, check=True, capture_output=True, text=True, env=os.environ | STEADY_MEMORY
    ).stdout
    decode, prefill = json.loads(output.splitlines()[-1])
    return decode, prefill


def time_file(path: Path) -> None:
    """Print [decode, prefill] tokens per second; the body of `time_in_child`."""
    prompt = list(range(100, 100 + PROMPT_TOKENS))
    _, seconds = run_file(path, [prompt, prompt, *[[7]] * DECODE_TOKENS])
    decode = DECODE_TOKENS / sum(seconds[2:])
    print(json.dumps([decode, PROMPT_TOKENS / seconds[1]]))


def mean_kl(path: Path, tokens: Sequence[int], full: np.ndarray) -> float:
    """KL(full precision || file), nats, after each token but the first."""
    logits, _ = run_file(path, [[token] for token in tokens])
    found = torch.log_softmax(torch.from_numpy(np.stack(logits)).double(), -1)
    wanted = torch.log_softmax(torch.from_numpy(full).double(), -1)
    return float((wanted.exp() * (wanted - found)).sum(-1)[1:].mean())


def benchmark(work: Path) -> list[Row]:
    """Export both, then time them in turns."""
    checkpoint = load_checkpoint(MODEL)
    exported = {"llama-edge": export_ours(work), "export_llm": export_stock(checkpoint, work)}
    speeds: dict[str, list[tuple[float, float]]] = {name: [] for name in exported}
    for _ in range(ROUNDS):
        for name, export in exported.items():
            speeds[name].append(time_in_child(export.path))
    tokens = Tokenizer(checkpoint.text).encode(TEXT, add_bos=False)
    source = CachedSource(FullPrecisionSource(checkpoint.config, checkpoint.weights))
    full = Llama(checkpoint.config, source).logits(torch.tensor(tokens)).numpy()
    return [
        Row(
            name=name,
            cpu_s=export.cpu_s,
            peak_mib=export.peak_mib,
            file_mib=export.path.stat().st_size / 2**20,
            decode_tokens_per_s=statistics.median(decode for decode, _ in speeds[name]),
            prefill_tokens_per_s=statistics.median(prefill for _, prefill in speeds[name]),
            mean_kl_nats=mean_kl(export.path, tokens, full),
        )
        for name, export in exported.items()
    ]


def show(rows: Sequence[Row]) -> None:
    """A table, one column an exporter, and the ratio of the first to the second."""
    table = Table(title=f"{MODEL}, context {MAX_CONTEXT}, {os.cpu_count()} cores")
    for heading in ("", *(row.name for row in rows), "ratio"):
        table.add_column(heading, justify="right")
    for field in list(asdict(rows[0]))[1:]:
        ours, stock = (getattr(row, field) for row in rows)
        table.add_row(field, f"{ours:.4g}", f"{stock:.4g}", f"{ours / stock:.3g}")
    Console(width=100).print(table)


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the rows here")
    parser.add_argument("--work", type=Path, help="keep the exports in this folder")
    parser.add_argument("--time", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.time:
        time_file(arguments.time)
        return
    with tempfile.TemporaryDirectory() as folder:
        work = (arguments.work or Path(folder)).absolute()
        work.mkdir(parents=True, exist_ok=True)
        rows = benchmark(work)
    show(rows)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
