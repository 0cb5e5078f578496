"""SmolLM2-135M through llama-edge and through other projects' tools: one run, one machine.

    python benchmarks/peers.py [--only NAME ...] [--work FOLDER] [--out docs]

Each peer lives in a virtual environment of its own that sees this one's torch; what cannot be
installed or built is a row that says why. All start from the same weights. CPU seconds and peak
memory are the operating system's figures of the finished builds; speeds are medians of readings
in turns, a fresh process each. With `--work`, what is built is not built again. Writes
`peers.md` and `peers.svg`. The stock export takes 16 CPU-minutes, llama.cpp is compiled.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import gguf
import numpy as np
import torch
from stock_executorch import STEADY_MEMORY, TEXT, export_stock, measure

from llama_edge.checkpoints import load_checkpoint
from llama_edge.core.checkpoint import Checkpoint
from llama_edge.models.reference import Reference
from llama_edge.models.sources import CachedSource, FullPrecisionSource
from llama_edge.quantize import DEFAULT_RECIPE
from llama_edge.text.tokenizer import Tokenizer

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.checkpoint_writers import write_gguf, write_huggingface

MODEL: Final = "smollm2-135m"
ROUNDS: Final = 5
CONTEXT: Final = 2048
DRIVERS: Final = Path(__file__).with_name("peer_drivers.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A tool: what to install for it, or none of it where our own environment has it."""

    name: str
    title: str
    packages: tuple[str, ...] = ()
    #: what `llama-edge export` is asked for; None for others' tools
    ours: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table; `missing` says why there is no more."""

    name: str
    title: str
    missing: str = ""
    cpu_s: float = 0.0
    peak_mib: float = 0.0
    file_mib: float = 0.0
    mean_kl_nats: float = 0.0
    decode_tokens_per_s: float = 0.0
    long_decode_tokens_per_s: float = 0.0
    prefill_tokens_per_s: float = 0.0


#: The runtime and its builder; both our ONNX folder and its own model run in it.
GENAI: Final = (
    "onnxruntime-genai==0.18.0",
    "onnx==1.23.2",
    "onnx-ir==1.1.0",
    "transformers==5.23.0",
)
PEERS: Final = (
    Peer(name="rtn", title="llama-edge .pte, w4a8-rtn", ours=("android", "w4a8-rtn")),
    Peer(
        name="hadamard", title="llama-edge .pte, w4a8-hadamard", ours=("android", "w4a8-hadamard")
    ),
    Peer(name="default", title="llama-edge .pte, default recipe", ours=("android", DEFAULT_RECIPE)),
    Peer(name="stock", title="ExecuTorch export_llm .pte, 8da4w"),
    Peer(
        name="optimum",
        title="optimum-executorch .pte, 8da4w",
        packages=("optimum-executorch==1.1.0",),
    ),
    Peer(
        name="onnx",
        title="llama-edge ONNX, w4a8-rtn, run by onnxruntime-genai",
        packages=GENAI,
        ours=("onnx", "w4a8-rtn"),
    ),
    Peer(name="genai", title="onnxruntime-genai builder, int4", packages=GENAI),
    Peer(name="llama.cpp", title="llama.cpp, Q4_0", packages=("llama-cpp-python==0.3.36",)),
)


#: What the columns do not say of themselves.
REMARKS: Final = (
    "- Our head is int8, and one table with the embedding: a token reads 27 MiB of it, and of an "
    "int4 head 15. Where memory is the limit of decode, that is: in the same runtime, "
    "onnxruntime-genai, ours reads about a sixth more a token than its own builder's model.",
    "- The builders of onnxruntime-genai and llama.cpp round and write. Our seconds also hold the "
    "written file against the checkpoint, block by block and token by token, and, but for "
    "w4a8-rtn, write and use the calibration text.",
    "- Nothing here is a phone's speed: ExecuTorch's attention goes to MKL on this machine.",
)


class PeerMissingError(Exception):
    """A peer that cannot be installed or does not build; the message is for the table."""


def run(command: Sequence[str | Path], log: Path, what: str) -> tuple[float, float]:
    """CPU seconds and peak MiB of a command.

    Raises:
        PeerMissingError: It failed; with the last line of its log.
    """
    try:
        seconds, mib = measure([str(part) for part in command], log)
    except SystemExit as error:
        lines = log.read_text(errors="replace").strip().splitlines() or ["it printed nothing"]
        raise PeerMissingError(f"{what} failed: {lines[-1][:160]}") from error
    return seconds, mib


def environment(peer: Peer, work: Path) -> Path:
    """The python of the peer's environment, made and filled where it is not yet."""
    if not peer.packages:
        return Path(sys.executable)
    folder = work / "environments" / peer.name
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        folder.parent.mkdir(exist_ok=True)
        log = work / f"{peer.name}.install.log"
        run([sys.executable, "-m", "venv", "--clear", folder], log, "venv")
        # After its own packages it sees ours, so that torch is not stored once more.
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        reuse = folder / "lib" / version / "site-packages" / "reuse.pth"
        reuse.write_text(sysconfig.get_path("purelib") + "\n")
        run([python, "-m", "pip", "install", *peer.packages], log, "pip install")
        (folder / "complete").touch()
    return python


def build(peer: Peer, checkpoint: Checkpoint, python: Path, work: Path) -> tuple[float, float]:
    """Write the peer's artifact; CPU seconds and peak MiB."""
    log, folder = work / f"{peer.name}.log", work / peer.name
    if peer.ours:
        target, recipe = peer.ours
        # A cache of its own: what a recipe calibrates is part of what it costs.
        own = f"LLAMA_EDGE_CACHE={work / 'cache' / peer.name}"
        program = Path(sys.executable).with_name("llama-edge")
        command: list[str | Path] = [
            "env",
            own,
            program,
            "export",
            MODEL,
            "--target",
            target,
            "--recipe",
            recipe,
        ]
        return run(
            [*command, "--max-context", str(CONTEXT), "--out", folder, "--force"], log, "export"
        )
    if peer.name == "stock":
        folder.mkdir(exist_ok=True)
        exported = export_stock(checkpoint, folder)
        exported.path.rename(folder / "model.pte")
        return exported.cpu_s, exported.peak_mib
    return run([python, DRIVERS, peer.name, "build", work], log, "build")


def artifact_mib(peer: Peer, work: Path) -> float:
    """The model's files, without checkpoints, tokenizers and logs."""
    suffixes = {".pte", ".onnx", ".data", ".gguf"}
    files = [path for path in (work / peer.name).rglob("*") if path.suffix in suffixes]
    return sum(path.stat().st_size for path in files) / 2**20


def ask(peer: Peer, python: Path, request: str, work: Path) -> str:
    """A driver's answer.

    Raises:
        PeerMissingError: It failed.
    """
    command = [str(python), str(DRIVERS), peer.name, request, str(work)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | STEADY_MEMORY
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise PeerMissingError(f"{request} failed: {lines[-1][:160]}")
    return done.stdout


def mean_kl(found: np.ndarray, full: torch.Tensor) -> float:
    """KL(full precision || peer), nats, after each token but the first."""
    size = full.shape[1]  # some pad the vocabulary
    theirs = torch.log_softmax(torch.from_numpy(found[:, :size]).double(), -1)
    wanted = torch.log_softmax(full.double(), -1)
    return float((wanted.exp() * (wanted - theirs)).sum(-1)[1:].mean())


def prepare(checkpoint: Checkpoint, work: Path) -> torch.Tensor:
    """The checkpoint in the peers' formats and the held-out tokens; full-precision logits."""
    weights = {name: checkpoint.weights.read(name) for name in checkpoint.weights}
    if not (work / "hf").exists():
        write_huggingface(work / "hf", checkpoint.config, weights, checkpoint.text)
    if not (work / "gguf").exists():
        (work / "gguf").mkdir()
        kind = gguf.GGMLQuantizationType.F32
        path = work / "gguf" / "model.gguf"
        write_gguf(path, checkpoint.config, weights, checkpoint.text, kind, pre="smollm")
    tokens = Tokenizer(checkpoint.text).encode(TEXT, add_bos=False)
    (work / "tokens.json").write_text(json.dumps(tokens))
    source = CachedSource(FullPrecisionSource(checkpoint.config, checkpoint.weights))
    return Reference(checkpoint.config, source).logits(torch.tensor(tokens))


def make(
    peer: Peer, checkpoint: Checkpoint, full: torch.Tensor, work: Path, pythons: dict[str, Path]
) -> Row:
    """Everything but speed; kept in `work`, so that a second run goes on."""
    kept = work / f"{peer.name}.json"
    try:
        pythons[peer.name] = environment(peer, work)
        if kept.exists():
            return Row(**json.loads(kept.read_text()))
        cpu_s, peak_mib = build(peer, checkpoint, pythons[peer.name], work)
        ask(peer, pythons[peer.name], "logits", work)
    except PeerMissingError as error:
        return Row(name=peer.name, title=peer.title, missing=str(error))
    row = Row(
        name=peer.name,
        title=peer.title,
        cpu_s=cpu_s,
        peak_mib=peak_mib,
        file_mib=artifact_mib(peer, work),
        mean_kl_nats=mean_kl(np.load(work / peer.name / "logits.npy"), full),
    )
    kept.write_text(json.dumps(asdict(row)))
    return row


def with_speed(
    rows: Sequence[Row], pythons: Mapping[str, Path], reading: Callable[[Row], str]
) -> list[Row]:
    """Readings in turns, whatever the machine does meanwhile."""
    speeds: dict[str, list[tuple[float, float, float]]] = {row.name: [] for row in rows}
    for _ in range(ROUNDS):
        for row in rows:
            if not row.missing:
                speeds[row.name].append(json.loads(reading(row).splitlines()[-1]))
    timed = []
    for row in rows:
        if row.missing:
            timed.append(row)
            continue
        names = ("decode_tokens_per_s", "long_decode_tokens_per_s", "prefill_tokens_per_s")
        columns = zip(*speeds[row.name], strict=True)
        medians = map(statistics.median, columns)
        timed.append(replace(row, **dict(zip(names, medians, strict=True))))
    return timed


def table(rows: Sequence[Row]) -> str:
    """The page, written by the run."""
    lines = [
        "# Peers",
        "",
        f"Written by `python benchmarks/peers.py` on {platform.machine()}, {os.cpu_count()} "
        f"processors: {MODEL}, context {CONTEXT}. CPU seconds and peak memory are those of the "
        f"whole export, ours with calibration and verification. Speeds are medians of {ROUNDS} "
        "readings in turns on this machine, no device's; decode after a prompt of 128 tokens, and "
        "of 1024. All have memory in large pages, without which no two readings agree. KL is to "
        "full precision on plain English, token by token.",
        "",
        "| | CPU s | peak MiB | file MiB | decode tok/s | at 1024 | prefill tok/s | mean KL nats |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row.missing:
            lines.append(f"| {row.title} | {row.missing.replace('|', ' ')} | | | | | | |")
            continue
        lines.append(
            f"| {row.title} | {row.cpu_s:.0f} | {row.peak_mib:.0f} | {row.file_mib:.1f} | "
            f"{row.decode_tokens_per_s:.1f} | {row.long_decode_tokens_per_s:.1f} | "
            f"{row.prefill_tokens_per_s:.0f} | {row.mean_kl_nats:.3f} |"
        )
    lines += ["", *REMARKS]
    return "\n".join([*lines, "", "![Speed and closeness of the artifacts](peers.svg)", ""])


def plot(rows: Sequence[Row], path: Path) -> None:
    """Decode speed over KL, and CPU seconds of the export."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    found = [row for row in rows if not row.missing]
    figure, (speed, cost) = plt.subplots(1, 2, figsize=(10, 4.5), layout="constrained")
    for place, row in enumerate(found):
        color = f"C{place}"
        speed.plot(row.mean_kl_nats, row.decode_tokens_per_s, "o", color=color, label=row.title)
        cost.barh(-place, row.cpu_s, color=color)
    speed.set(xlabel="mean KL to full precision, nats", ylabel="decode, tokens per second")
    cost.set(xlabel="CPU seconds of the export", xscale="log", yticks=[])
    figure.legend(loc="outside lower center", ncols=3, fontsize="x-small")
    figure.savefig(path)


def main() -> None:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [peer.name for peer in PEERS]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--work", type=Path, help="keep environments and artifacts here")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of the page")
    arguments = parser.parse_args()
    out = arguments.out.absolute()
    with tempfile.TemporaryDirectory() as folder:
        work = (arguments.work or Path(folder)).absolute()
        work.mkdir(parents=True, exist_ok=True)
        checkpoint = load_checkpoint(MODEL)
        full = prepare(checkpoint, work)
        peers = [peer for peer in PEERS if peer.name in arguments.only]
        pythons: dict[str, Path] = {}
        rows = [make(peer, checkpoint, full, work, pythons) for peer in peers]
        by_name = {peer.name: peer for peer in peers}
        rows = with_speed(
            rows, pythons, lambda row: ask(by_name[row.name], pythons[row.name], "time", work)
        )
    (out / "peers.md").write_text(table(rows))
    plot(rows, out / "peers.svg")
    print(table(rows))


if __name__ == "__main__":
    main()
