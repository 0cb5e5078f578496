"""ExecuTorch's stock `export_llm` from our checkpoint, for `peers.py`; also how it measures.

Int4 linears of group 32, int8 embedding and int8 dynamic activations, for XNNPACK. It takes about
16 CPU-minutes for SmolLM2-135M.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from llama_edge.checkpoints.names import META_BLOCK_PARTS, META_NAMES
from llama_edge.core.checkpoint import Checkpoint
from llama_edge.models.weight_names import EMBEDDING, LM_HEAD, block_weight

MAX_CONTEXT = 2048
MAX_PREFILL = 512
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


class ToolError(Exception):
    """A tool that cannot be installed, built or run; the message is for a cell of the table."""

    def __init__(self, what: str, output: str) -> None:
        lines = output.strip().splitlines() or ["it printed nothing"]
        super().__init__(f"{what} failed: {lines[-1][:160]}")


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


def measure(command: Sequence[str | Path], log: Path, what: str) -> tuple[float, float]:
    """CPU seconds and peak MiB of a command with all its children.

    Linux counts the memory of whoever starts a process as that process's: a small one does.

    Raises:
        ToolError: It failed; with the last line of its log.
    """
    starter = [sys.executable, "-c", _STARTER, str(log), *map(str, command)]
    done = subprocess.run(starter, capture_output=True, text=True, check=False, cwd=log.parent)
    if done.returncode:
        raise ToolError(what, done.stderr)
    status, cpu_s, peak_mib = json.loads(done.stdout)
    if status:
        raise ToolError(what, log.read_text(errors="replace"))
    return cpu_s, peak_mib


def export_stock(checkpoint: Checkpoint, work: Path) -> Exported:
    """The stock exporter as its documentation says, for XNNPACK.

    Raises:
        ToolError: It failed.
    """
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
    return Exported(work / "stock.pte", *measure(command, work / "stock.log", "export_llm"))
