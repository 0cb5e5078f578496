"""SmolLM2-135M through llama-edge and through other projects' tools: one run, one machine.

    python benchmarks/peers.py [--only NAME ...] [--work FOLDER] [--out docs]

Each project's tools live in a virtual environment of their own that sees this one's torch; what
cannot be installed or built is a row that says why. All start from the same weights. CPU seconds
and peak memory are the operating system's figures of the finished builds; speeds are medians of
readings in turns, a fresh process each. With `--work`, what is built is not built again. Writes
`peers.md` and `peers.svg` into `--out`, which is made where there is none. The stock export takes
16 CPU-minutes, compiling llama.cpp 7; each part says on stderr how long it took.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import gguf
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.arguments import writable_folder
from benchmarks.peer_page import Row, Run, page, plot
from benchmarks.stock_executorch import STEADY_MEMORY, TEXT, ToolError, export_stock, measure
from llama_edge.checkpoints import load_checkpoint
from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.progress import SilentProgress
from llama_edge.core.recipe import Device
from llama_edge.models.reference import Reference
from llama_edge.models.sources import CachedSource, FullPrecisionSource
from llama_edge.quantize import DEFAULT_RECIPE, W4A8_RTN, get_recipe
from llama_edge.quantize.arithmetic import arithmetic_on
from llama_edge.quantize.calibration import generate_calibration
from llama_edge.text.tokenizer import Tokenizer
from tests.checkpoint_writers import write_gguf, write_huggingface

MODEL: Final = "smollm2-135m"
ROUNDS: Final = 5
CONTEXT: Final = 2048
PAGE, PLOT = "peers.md", "peers.svg"
DRIVERS: Final = Path(__file__).with_name("peer_drivers.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What is installed together."""

    name: str
    packages: tuple[str, ...]
    #: a source distribution with llama.cpp in it, which is compiled
    llama_cpp: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A way to an artifact."""

    name: str
    title: str
    #: None where our own environment has them
    tools: Tools | None = None
    #: what `llama-edge export` is asked for; None for others' tools
    ours: tuple[str, str] | None = None
    #: needs the text that our recipes calibrate on
    calibrated: bool = False


#: The runtime and its builder; both our ONNX folder and its own model run in it.
GENAI: Final = Tools(
    name="genai",
    packages=(
        "onnxruntime-genai==0.18.0",
        "onnx==1.23.2",
        "onnx-ir==1.1.0",
        "transformers==5.23.0",
    ),
)
OPTIMUM: Final = Tools(name="optimum", packages=("optimum-executorch==1.1.0",))
#: The bindings' source distribution has all of llama.cpp, of which they build the library alone.
LLAMA_CPP: Final = Tools(
    name="llama.cpp",
    packages=("cmake==4.4.4", "ninja==1.13.2"),
    llama_cpp="llama-cpp-python==0.3.36",
)
PEERS: Final = (
    Peer(name="rtn", title="llama-edge .pte, w4a8-rtn", ours=("android", W4A8_RTN.name)),
    Peer(
        name="hadamard", title="llama-edge .pte, w4a8-hadamard", ours=("android", "w4a8-hadamard")
    ),
    Peer(name="default", title="llama-edge .pte, default recipe", ours=("android", DEFAULT_RECIPE)),
    Peer(name="stock", title="ExecuTorch export_llm .pte, 8da4w"),
    Peer(name="optimum", title="optimum-executorch .pte, 8da4w", tools=OPTIMUM),
    Peer(
        name="onnx",
        title="llama-edge ONNX, w4a8-rtn, run by onnxruntime-genai",
        tools=GENAI,
        ours=("onnx", W4A8_RTN.name),
    ),
    Peer(name="genai", title="onnxruntime-genai builder, int4", tools=GENAI),
    Peer(name="llama.cpp-q4_0", title="llama.cpp, Q4_0", tools=LLAMA_CPP),
    Peer(name="llama.cpp-q4_k_m", title="llama.cpp, Q4_K_M", tools=LLAMA_CPP),
    Peer(
        name="llama.cpp-q4_0-imatrix",
        title="llama.cpp, Q4_0 with an importance matrix",
        tools=LLAMA_CPP,
        calibrated=True,
    ),
)


@contextmanager
def said(what: str) -> Iterator[None]:
    """Print the wall seconds of a part of the run."""
    began = time.monotonic()
    yield
    print(f"{what}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


def environment(tools: Tools | None, work: Path) -> Path:
    """The python of the tools' environment, made and filled where it is not yet.

    Raises:
        ToolError: Something cannot be installed or compiled.
    """
    if not tools:
        return Path(sys.executable)
    folder = work / "environments" / tools.name
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        folder.parent.mkdir(exist_ok=True)
        log = work / f"{tools.name}.install.log"
        measure([sys.executable, "-m", "venv", "--clear", folder], log, "venv")
        # After its own packages it sees ours, so that torch is not stored once more.
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        reuse = folder / "lib" / version / "site-packages" / "reuse.pth"
        reuse.write_text(sysconfig.get_path("purelib") + "\n")
        measure([python, "-m", "pip", "install", *tools.packages], log, "pip install")
        if tools.llama_cpp:
            compile_llama_cpp(tools.llama_cpp, folder, log)
        (folder / "complete").touch()
    return python


def compile_llama_cpp(distribution: str, folder: Path, log: Path) -> None:
    """Into `folder`/build: llama.cpp's library and programs; the bindings use that library."""
    pip = (folder / "bin" / "python", "-m", "pip")
    name = distribution.partition("==")[0]
    sdist = folder / "sdist"
    download = ("download", "--no-deps", "--no-binary", name, "--dest", sdist, distribution)
    measure([*pip, *download], log, "pip download")
    (archive,) = sdist.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(sdist, filter="data")
    source, cmake = archive.with_suffix("").with_suffix(""), folder / "bin" / "cmake"
    # The environment's ninja, wherever the session's PATH leads.
    options = ["CMAKE_BUILD_TYPE=Release", f"CMAKE_MAKE_PROGRAM={folder / 'bin' / 'ninja'}"]
    options += ["BUILD_SHARED_LIBS=ON", "LLAMA_BUILD_TESTS=OFF", "LLAMA_BUILD_EXAMPLES=OFF"]
    options += ["LLAMA_BUILD_SERVER=OFF", "LLAMA_OPENSSL=OFF"]
    configure: list[str | Path] = [
        "-S",
        source / "vendor" / "llama.cpp",
        "-B",
        folder / "build",
        "-G",
        "Ninja",
    ]
    measure([cmake, *configure, *(f"-D{option}" for option in options)], log, "cmake")
    targets = ("--target", "llama-quantize", "llama-imatrix")
    measure([cmake, "--build", folder / "build", *targets], log, "compiling llama.cpp")
    bindings = ("-C", "cmake.args=-DLLAMA_BUILD=OFF", source)
    measure([*pip, "install", *bindings], log, "pip install")


def build(peer: Peer, checkpoint: Checkpoint, python: Path, work: Path) -> tuple[float, float]:
    """Write the peer's artifact; CPU seconds and peak MiB.

    Raises:
        ToolError: It cannot be built.
    """
    log, folder = work / f"{peer.name}.log", work / peer.name
    if peer.ours:
        target, recipe = peer.ours
        # A cache of its own: what a recipe calibrates is part of what it costs.
        own = f"LLAMA_EDGE_CACHE={work / 'cache' / peer.name}"
        program = Path(sys.executable).with_name("llama-edge")
        command: list[str | Path] = ["env", own, program, "export", MODEL]
        command += [
            "--target",
            target,
            "--recipe",
            recipe,
            "--max-context",
            str(CONTEXT),
            "--out",
            folder,
            "--force",
        ]
        return measure(command, log, "export")
    if peer.name == "stock":
        folder.mkdir(exist_ok=True)
        exported = export_stock(checkpoint, folder)
        exported.path.rename(folder / "model.pte")
        return exported.cpu_s, exported.peak_mib
    return measure([python, DRIVERS, peer.name, "build", work], log, "build")


def artifact_mib(peer: Peer, work: Path) -> float:
    """The model's files, without checkpoints, tokenizers and logs."""
    suffixes = {".pte", ".onnx", ".data", ".gguf"}
    files = [path for path in (work / peer.name).rglob("*") if path.suffix in suffixes]
    return sum(path.stat().st_size for path in files) / 2**20


def ask(peer: Peer, python: Path, request: str, work: Path) -> str:
    """A driver's answer.

    Raises:
        ToolError: It failed.
    """
    command = [str(python), str(DRIVERS), peer.name, request, str(work)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | STEADY_MEMORY
    )
    if done.returncode:
        raise ToolError(request, done.stderr or f"exit code {done.returncode}")
    return done.stdout


def page_folder(text: str) -> Path:
    """A folder that takes the page and its plot."""
    return writable_folder(text, PAGE, PLOT)


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


def write_calibration(checkpoint: Checkpoint, work: Path) -> float:
    """Into `work`, the text that our recipes calibrate on; the CPU seconds that writing it took."""
    kept = work / "calibration.json"
    if not kept.exists():
        began = time.process_time()
        tokens = (
            generate_calibration(checkpoint, 0, SilentProgress(), arithmetic_on(Device.CPU))
            .tokens.flatten()
            .tolist()
        )
        seconds = time.process_time() - began
        text = Tokenizer(checkpoint.text).decode(tokens, skip_special_tokens=False)
        (work / "calibration.txt").write_text(text)
        kept.write_text(json.dumps(seconds))
    return float(json.loads(kept.read_text()))


def make(
    peer: Peer, checkpoint: Checkpoint, full: torch.Tensor, work: Path, pythons: dict[str, Path]
) -> Row:
    """Everything but speed; kept in `work`, so that a second run goes on."""
    kept, asked = work / f"{peer.name}.json", json.dumps(asdict(peer))
    try:
        pythons[peer.name] = environment(peer.tools, work)
        if kept.exists():
            found = json.loads(kept.read_text())
            if found.get("asked") == asked:
                return Row(**found["row"])
        cpu_s, peak_mib = build(peer, checkpoint, pythons[peer.name], work)
        ask(peer, pythons[peer.name], "logits", work)
    except ToolError as error:
        return Row(name=peer.name, title=peer.title, missing=str(error))
    row = Row(
        name=peer.name,
        title=peer.title,
        cpu_s=cpu_s,
        peak_mib=peak_mib,
        file_mib=artifact_mib(peer, work),
        mean_kl_nats=mean_kl(np.load(work / peer.name / "logits.npy"), full),
    )
    kept.write_text(json.dumps({"asked": asked, "row": asdict(row)}))
    return row


def with_speed(
    rows: Sequence[Row], reading: Callable[[Row], str], rounds: int = ROUNDS
) -> list[Row]:
    """Readings in turns, whatever the machine does meanwhile; a row that fails says so."""
    speeds: dict[str, list[list[float]]] = {row.name: [] for row in rows}
    timed = list(rows)
    for _ in range(rounds):
        for place, row in enumerate(timed):
            if row.missing:
                continue
            try:
                speeds[row.name].append(json.loads(reading(row).splitlines()[-1]))
            except ToolError as error:
                timed[place] = replace(row, missing=str(error))
    return [row if row.missing else _with_medians(row, speeds[row.name]) for row in timed]


def _with_medians(row: Row, readings: Sequence[Sequence[float]]) -> Row:
    decode, long_decode, prefill = map(statistics.median, zip(*readings, strict=True))
    return replace(
        row,
        decode_tokens_per_s=decode,
        long_decode_tokens_per_s=long_decode,
        prefill_tokens_per_s=prefill,
    )


def measure_all(peers: Sequence[Peer], work: Path) -> Run:
    """Build, compare and time them."""
    checkpoint = load_checkpoint(MODEL)
    with said("preparing the checkpoint"):
        full = prepare(checkpoint, work)
    text_cpu_s = None
    if any(peer.calibrated for peer in peers):
        with said("writing calibration text"):
            text_cpu_s = write_calibration(checkpoint, work)
    pythons: dict[str, Path] = {}
    rows = []
    for peer in peers:
        with said(peer.name):
            rows.append(make(peer, checkpoint, full, work, pythons))
    by_name = {peer.name: peer for peer in peers}
    with said("timing"):
        rows = with_speed(rows, lambda row: ask(by_name[row.name], pythons[row.name], "time", work))
    return Run(
        rows=rows,
        ours=frozenset(peer.name for peer in peers if peer.ours),
        default="default",
        plain="rtn",
        recipe=get_recipe(DEFAULT_RECIPE),
        model=MODEL,
        config=checkpoint.config,
        context=CONTEXT,
        rounds=ROUNDS,
        text_cpu_s=text_cpu_s,
    )


def main() -> None:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [peer.name for peer in PEERS]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--work", type=writable_folder, help="keep environments and artifacts here")
    parser.add_argument(
        "--out", type=page_folder, default="docs", help="folder of the page (default: docs)"
    )
    arguments = parser.parse_args()
    peers = [peer for peer in PEERS if peer.name in arguments.only]
    with tempfile.TemporaryDirectory() as folder:
        measured = measure_all(peers, arguments.work or Path(folder))
    text = page(measured)
    (arguments.out / PAGE).write_text(text)
    plot(measured.rows, arguments.out / PLOT)
    print(text)


if __name__ == "__main__":
    main()
