"""How far the plan is off on every published row, and what the rows say of the fitted numbers.

    python benchmarks/plan_calibration.py [--pte FOLDER]

Prints the tables of docs/plan.md, in Markdown. Nothing is measured but, with `--pte`, the memory by
which a process of this machine (Linux) grows when it loads the folder's `model.pte` and answers a
prompt of 64 tokens with 32.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from llama_edge.backends import get_exporter
from llama_edge.plan.devices import DEVICES, get_device
from llama_edge.plan.estimate import DECODE_SHARE, MIB, RUNTIME_MIB, estimate
from llama_edge.plan.host_rows import HOST_ROWS
from llama_edge.plan.plan import planned_config
from llama_edge.plan.published import CONTEXT, HELD_OUT, PROMPT, PUBLISHED
from llama_edge.plan.workload import bundle_workload
from llama_edge.quantize import W4A8_RTN

_COLUMNS = (
    ("file_mib", "file MiB", "{:.0f}"),
    ("decode_tokens_per_s", "decode tok/s", "{:.1f}"),
    ("rss_mib", "RSS MiB", "{:.0f}"),
    ("prefill_tokens_per_s", "prefill tok/s", "{:.1f}"),
    ("time_to_first_token_s", "first token s", "{:.2f}"),
)


def _table(header: Sequence[str], rows: Iterator[Sequence[str]]) -> None:
    print("| " + " | ".join(header) + " |")
    print("|---" * len(header) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def _published() -> Iterator[Sequence[str]]:
    for row in PUBLISHED:
        found = estimate(row.workload(), get_device(row.device), CONTEXT, PROMPT)
        cells = [row.shape, row.layout]
        for name, _, form in _COLUMNS:
            planned, published = getattr(found, name), getattr(row, name)
            error = planned / published - 1
            cells.append(f"{form.format(planned)} / {published:g} ({error:+.1%})")
        yield cells


def _held_out() -> Iterator[Sequence[str]]:
    for row in HELD_OUT:
        device = get_device(row.device)
        planned = device.bandwidth_gb_s * 1e9 * DECODE_SHARE / row.streamed_bytes
        error = planned / row.decode_tokens_per_s - 1
        speeds = f"{planned:.2f} / {row.decode_tokens_per_s:g} ({error:+.1%})"
        yield row.model, str(row.group_size), device.label, speeds


def _hosts() -> Iterator[Sequence[str]]:
    for row in HOST_ROWS:
        planned = row.planned(planned_config(row.model), W4A8_RTN)
        cells = []
        for found, measured in (
            (60 * planned.cpu_minutes, row.cpu_s),
            (planned.memory_mib, row.memory_mib),
        ):
            cells.append(f"{found:.0f} / {measured:.0f} ({found / measured - 1:+.1%})")
        yield row.model, row.backend, str(row.gate_tokens), *cells


def _devices() -> Iterator[Sequence[str]]:
    for device in DEVICES.values():
        yield (
            f"`{device.name}`",
            f"[{device.chipset}]({device.source})",
            f"[{device.ram_gib}]({device.memory_source})",
            device.memory,
            f"{device.bandwidth_gb_s:.1f}",
            f"{device.int8_gmacs:.0f}",
            device.note or "",
        )


#: Run with the folder: the peak before anything is loaded and after the last token, KiB.
_GROW = """
import sys
from pathlib import Path
from llama_edge.backends import get_exporter
from llama_edge.runtimes.executorch import ExecuTorchSession

def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

artifact = get_exporter("executorch").open(Path(sys.argv[1])).artifact
before = peak()
with ExecuTorchSession(artifact) as session:
    session.prefill(list(range(5, 5 + int(sys.argv[2]))))
    for _ in range(int(sys.argv[3])):
        session.decode(7)
print(before, peak())
"""
_REPLY = 32


def _measured(folder: Path) -> None:
    """What the process grew by, next to what the plan says of the same tokens without an app."""
    command = [sys.executable, "-c", _GROW, str(folder), str(PROMPT), str(_REPLY)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    before, after = (int(number) / 1024 for number in done.stdout.split()[-2:])
    artifact = get_exporter("executorch").open(folder).artifact
    config, cache = artifact.config, artifact.kv_cache
    workload = bundle_workload(config, W4A8_RTN, "executorch", cache, artifact.max_context)
    planned = workload.rss_mib(PROMPT + _REPLY) - RUNTIME_MIB
    print(
        f"{folder}: file {artifact.size_bytes / MIB:.1f} MiB, planned "
        f"{workload.size.file_bytes / MIB:.1f} (as w4a8-rtn); the process grew by "
        f"{after - before:.0f} MiB, planned {planned:.0f} and up to {RUNTIME_MIB:.0f} for what "
        "runs it"
    )


def main() -> None:
    """Print the tables, or measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pte", type=Path, help="a bundle or folder with model.pte")
    folder = parser.parse_args().pte
    if folder is not None:
        _measured(folder)
        return
    _table(("model", "file", *(f"{title}" for _, title, _ in _COLUMNS)), _published())
    _table(("model", "group size", "device", "decode tok/s"), _held_out())
    _table(("model", "backend", "tokens in the gate", "CPU s", "memory MiB"), _hosts())
    header = ("device", "chipset", "GiB", "memory", "GB/s", "int8 GMAC/s", "remark")
    _table(header, _devices())


if __name__ == "__main__":
    main()
