"""What each step of the recipes buys and costs on SmolLM2-135M.

    python benchmarks/recipes.py [STEP...] [--json FILE] [--write]
        [--seeds N | --calibration FILE... | --in-domain] [--device cuda]

Every step quantizes the same checkpoint with the same calibration text in a process of its own, so
that CPU seconds and peak memory are its own. The quantized network then runs in the eager reference
with the activations that the recipe is for (int8 per token, or none), over text that calibration
never saw: docstrings of Python's standard library, manual pages, and the gate's prompts in eight
languages. `--seeds` repeats calibrated steps with other text of the model's own, and shows means
with standard errors. `--device` calibrates, and distils, where `export --device` does; the
distilled step, which takes hours on a CPU, runs only when it is named.
`--in-domain` calibrates on docstrings of other modules instead of what the model writes itself. The
noise floor is the network's distance from itself when its embedding is disturbed by 1e-6. `--write`
puts the rows of named recipes where `llama-edge recipes` reads them.
"""

import argparse
import importlib
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import Final

import torch
from manual_pages import manual_pages
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file

from llama_edge.checkpoints import load_checkpoint
from llama_edge.core.artifact import ActivationQuantization
from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.progress import SilentProgress
from llama_edge.core.quantized import QuantizedCheckpoint
from llama_edge.core.recipe import Device, Recipe, Rotation, Rounding, Scales
from llama_edge.evaluate.windows import cut_windows
from llama_edge.gate.metrics import Comparison, Divergence, compare, concatenate, summarize
from llama_edge.gate.prompts import fidelity_prompts
from llama_edge.gate.teacher import Variant, final_hidden
from llama_edge.gate.tolerances import Tolerances
from llama_edge.models.reference import Reference
from llama_edge.models.sources import CachedSource, DequantizedSource, FullPrecisionSource
from llama_edge.quantize import RECIPES, W4A8_GPTQ, W4A8_HADAMARD, W4A8_RTN
from llama_edge.quantize.arithmetic import arithmetic_on
from llama_edge.quantize.calibration import (
    SEQUENCES,
    CalibrationSet,
    generate_calibration,
    read_calibration,
)
from llama_edge.quantize.resume import WorkPlace
from llama_edge.quantize.stage import quantize_checkpoint
from llama_edge.text.tokenizer import Tokenizer

MODEL: Final = "smollm2-135m"
WINDOW: Final = 512
WINDOWS: Final = 8
#: Modules whose docstrings are the English text; the standard library is on every machine.
DOCUMENTED: Final = [
    "argparse",
    "asyncio",
    "collections",
    "csv",
    "decimal",
    "functools",
    "heapq",
    "json",
    "logging",
    "pathlib",
    "subprocess",
    "tarfile",
    "threading",
    "zipfile",
]
#: Modules whose docstrings `--in-domain` calibrates on; none of them is documented above.
CALIBRATED: Final = [
    "ast",
    "configparser",
    "datetime",
    "difflib",
    "email.message",
    "fractions",
    "http.client",
    "inspect",
    "ipaddress",
    "locale",
    "mailbox",
    "multiprocessing.pool",
    "optparse",
    "os",
    "random",
    "shutil",
    "smtplib",
    "socket",
    "sqlite3",
    "statistics",
    "tempfile",
    "textwrap",
    "turtle",
    "unittest",
    "urllib.request",
    "uuid",
]
MEASURED: Final = Path(__file__).parents[1] / "quantize" / "measured.json"

#: Each adds one thing to the one before it; then the named recipes that stand next to them.
STEPS: Final[Mapping[str, Recipe]] = {
    "round to nearest": W4A8_RTN,
    "+ scale search": replace(W4A8_RTN, scales=Scales.MSE),
    "+ GPTQ": W4A8_GPTQ,
    "+ R1 R2": replace(W4A8_GPTQ, rotations=(Rotation.R1, Rotation.R2)),
    "+ R4": W4A8_HADAMARD,
    "+ learned R1 R2": RECIPES["w4a8-spinquant"],
    "weight-only": RECIPES["w4-hadamard"],
    "mixed precision": RECIPES["w4a8-mixed"],
    "+ distilled": RECIPES["w4a8-distilled"],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One step. KL in nats, full precision first; sizes of the quantized checkpoint."""

    step: str
    #: the named recipe that this is, or None
    recipe: str | None
    #: of the calibration text
    seed: int
    kl_docstrings: float
    kl_manual_pages: float
    kl_languages: float
    top1_languages: float
    perplexity_ratio_docstrings: float
    noise_floor: float
    bits_per_weight: float
    cpu_s: float
    peak_mib: float


def documentation(modules: Sequence[str]) -> list[str]:
    """Long docstrings of these modules of the standard library, in the order of their names."""
    texts = []
    for name in modules:
        module = importlib.import_module(name)
        texts.append(module.__doc__ or "")
        for _, value in sorted(vars(module).items()):
            text = getattr(value, "__doc__", None)
            if callable(value) and isinstance(text, str) and len(text) > 300:
                texts.append(text)
    return texts


def in_domain() -> str:
    """Docstrings like the held-out ones, and none of them: modules show each other's classes."""
    seen = set(documentation(DOCUMENTED))
    return "\n\n".join(text for text in documentation(CALIBRATED) if text not in seen)


def held_out(checkpoint: Checkpoint, text: str) -> list[tuple[int, ...]]:
    """Windows of a text, evenly spread."""
    tokens = Tokenizer(checkpoint.text).encode(text, add_bos=False)
    windows = cut_windows("held-out", tokens, WINDOW, None, None)
    return list(islice(windows[:: len(windows) // WINDOWS], WINDOWS))


def peak_rss_mib() -> float:
    """Of this process since it began: `ru_maxrss` would also count its parent's before exec."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def measure_step(step: str, tokens: Path, seed: int, device: Device) -> Row:
    """Quantize and measure in this process."""
    recipe = STEPS[step]
    checkpoint = load_checkpoint(MODEL)
    calibration = None
    if recipe.rounding is Rounding.GPTQ:
        rows = load_file(tokens)["tokens"][: recipe.texts * SEQUENCES]
        calibration = CalibrationSet(tokens=rows, origin="benchmark")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "quantized")
        folder.mkdir()
        kept = Path(scratch, "kept")
        kept.mkdir()
        began = time.process_time()
        place = WorkPlace(folder=kept, device=device)
        quantized = quantize_checkpoint(
            checkpoint, recipe, folder, SilentProgress(), calibration, place
        )
        cpu_s = time.process_time() - began
        peak_mib = peak_rss_mib()
        stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        row = _evaluated(step, checkpoint, quantized, stored, cpu_s, peak_mib)
        return replace(row, seed=seed)


@torch.no_grad()
def _evaluated(
    step: str,
    checkpoint: Checkpoint,
    quantized: QuantizedCheckpoint,
    stored_bytes: int,
    cpu_s: float,
    peak_mib: float,
) -> Row:
    recipe, config, weights = quantized.recipe, checkpoint.config, checkpoint.weights
    rounding = (
        ActivationQuantization.NONE
        if recipe.activation_bits is None
        else ActivationQuantization.INT8_PER_TOKEN
    )
    full = Reference(config, CachedSource(FullPrecisionSource(config, weights)))
    source = CachedSource(DequantizedSource(quantized.weights))
    reference = Reference(quantized.config, source, rounding)
    documents = held_out(checkpoint, "\n\n".join(documentation(DOCUMENTED)))
    pages = held_out(checkpoint, manual_pages())
    prompts = fidelity_prompts(Tokenizer(checkpoint.text), WINDOW)
    sequences = [*documents, *pages, *(prompt.sequence for prompt in prompts)]
    tolerances = Tolerances()
    disturbed = Variant(
        model=reference, disturbance=tolerances.disturbance, seed=tolerances.disturbance_seed
    )
    variants = [Variant(model=full), Variant(model=reference), disturbed]
    found = final_hidden(variants, sequences, SilentProgress())
    to_full, to_itself = [], []
    for tokens, *states in zip(sequences, *found, strict=True):
        models = (full, reference, reference)
        wanted, got, shaken = (
            model.head(x_TD).numpy() for model, x_TD in zip(models, states, strict=True)
        )
        to_full.append(compare(wanted, got, tokens))
        to_itself.append(compare(got, shaken, tokens))
    ends = len(documents), len(documents) + len(pages)
    english, manuals = _joined(to_full[: ends[0]]), _joined(to_full[ends[0] : ends[1]])
    languages = _joined(to_full[ends[1] :])
    parameters = sum(torch.Size(weights.shape(name)).numel() for name in weights)
    return Row(
        step=step,
        recipe=recipe.name if RECIPES.get(recipe.name) == recipe else None,
        seed=0,
        kl_docstrings=english.mean_kl,
        kl_manual_pages=manuals.mean_kl,
        kl_languages=languages.mean_kl,
        top1_languages=languages.top1_agreement,
        perplexity_ratio_docstrings=english.perplexity_ratio,
        noise_floor=_joined(to_itself).mean_kl,
        bits_per_weight=8 * stored_bytes / parameters,
        cpu_s=cpu_s,
        peak_mib=peak_mib,
    )


def _joined(parts: Sequence[Comparison]) -> Divergence:
    return summarize(concatenate(parts))


def calibration_tokens(
    texts: Sequence[Path], seeds: Sequence[int], path: Path, device: Device
) -> float:
    """Write the text that all steps share, as much of it as the model's own; CPU seconds for it."""
    checkpoint = load_checkpoint(MODEL)
    began = time.process_time()
    if texts:
        found = read_calibration(checkpoint, texts).tokens
        spread = max(1, len(found) // SEQUENCES)
        tokens = found[::spread][:SEQUENCES]
    else:
        arithmetic = arithmetic_on(device)
        written = (
            generate_calibration(checkpoint, seed, SilentProgress(), arithmetic) for seed in seeds
        )
        tokens = torch.cat([text.tokens for text in written])
    save_file({"tokens": tokens.contiguous()}, path)
    return time.process_time() - began


def run_steps(steps: Sequence[str], tokens: Path, seed: int, device: Device) -> Iterator[Row]:
    """Each step in a child, so that its peak memory is its own; once if calibration is not used."""
    for step in steps:
        if seed and STEPS[step].rounding is not Rounding.GPTQ:
            continue
        command = [sys.executable, __file__, step, "--tokens", str(tokens), "--seed", str(seed)]
        command += ["--device", device.value]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        yield Row(**json.loads(output.splitlines()[-1]))


def by_step(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows of each step, one a seed."""
    steps = dict.fromkeys(row.step for row in rows)
    return [[row for row in rows if row.step == step] for step in steps]


def mean_and_error(values: Sequence[float]) -> str:
    """The mean, with its standard error where there are several values."""
    mean = f"{statistics.fmean(values):.4g}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(values) / math.sqrt(len(values)):.2g}"


def show(rows: Sequence[Row], calibration_s: float) -> None:
    """One line a step."""
    table = Table(title=f"{MODEL}; calibration text took {calibration_s:.0f} CPU seconds")
    measures = [field.name for field in fields(Row) if field.type is float]
    for heading in ("step", "recipe", "seeds", *measures):
        table.add_column(heading.replace("_", " "), justify="right")
    for same in by_step(rows):
        cells = [mean_and_error([getattr(row, name) for row in same]) for name in measures]
        table.add_row(same[0].step, str(same[0].recipe), str(len(same)), *cells)
    Console(width=180).print(table)


def write_measured(rows: Sequence[Row], calibration_s: float) -> None:
    """What `llama-edge recipes` shows; rows of recipes that were not run now stay."""
    known = json.loads(MEASURED.read_text())["recipes"] if MEASURED.exists() else {}
    for same in by_step(rows):
        recipe = same[0].recipe
        if recipe is not None:
            cpu_s = statistics.fmean(row.cpu_s for row in same)
            seconds = cpu_s + (0 if cpu_s < calibration_s / 4 else calibration_s)
            known[recipe] = {
                "mean_kl": round(statistics.fmean(row.kl_languages for row in same), 4),
                "bits_per_weight": round(same[0].bits_per_weight, 2),
                "cpu_minutes": round(seconds / 60, 1),
            }
    measured = {
        "model": MODEL,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "recipes": {name: known[name] for name in RECIPES if name in known},
    }
    MEASURED.write_text(json.dumps(measured, indent=2) + "\n")


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("steps", nargs="*", metavar="STEP", help=", ".join(STEPS))
    origin = parser.add_mutually_exclusive_group()
    origin.add_argument("--calibration", type=Path, action="append", default=[])
    origin.add_argument("--in-domain", action="store_true", help="other modules' docstrings")
    origin.add_argument("--seeds", type=int, default=1, help="how many calibration texts to write")
    parser.add_argument("--device", type=Device, choices=list(Device), default=Device.CPU)
    parser.add_argument("--json", type=Path, help="also write the rows here")
    parser.add_argument("--write", action="store_true", help="update quantize/measured.json")
    parser.add_argument("--tokens", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if unknown := set(arguments.steps) - set(STEPS):
        parser.error(f"unknown steps: {', '.join(sorted(unknown))}")
    if arguments.seeds < 1:
        parser.error(f"--seeds must be 1 or more; got {arguments.seeds}")
    device = arguments.device
    own_text = not (arguments.calibration or arguments.in_domain)
    if arguments.write and not (own_text and device is Device.CPU):
        parser.error("--write: `llama-edge recipes` shows the model's own text, and a CPU's time")
    if arguments.tokens:
        row = measure_step(arguments.steps[0], arguments.tokens, arguments.seed, device)
        print(json.dumps(asdict(row)))
        return
    steps = arguments.steps or [step for step in STEPS if STEPS[step].distillation is None]
    count = max(STEPS[step].texts for step in steps)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        tokens = Path(folder, "tokens.safetensors")
        texts = arguments.calibration
        if arguments.in_domain:
            texts = [Path(folder, "in-domain.txt")]
            texts[0].write_text(in_domain(), encoding="utf-8")
        calibration_s = 0.0
        for seed in range(arguments.seeds):
            own = range(count * seed, count * (seed + 1))
            calibration_s += calibration_tokens(texts, own, tokens, device) / arguments.seeds
            for row in run_steps(steps, tokens, seed, device):
                rows.append(row)
                print(json.dumps(asdict(row)), file=sys.stderr, flush=True)
                if arguments.json:
                    kept = json.dumps([asdict(r) for r in rows], indent=2)
                    arguments.json.write_text(kept + "\n")
    show(rows, calibration_s)
    if arguments.write:
        write_measured(rows, calibration_s)


if __name__ == "__main__":
    main()
