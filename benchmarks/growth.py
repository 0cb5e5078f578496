"""How time grows with a model's layers, its width, and the context: a plot with exponents.

    python benchmarks/growth.py [--plot docs/growth.svg] [--json FILE]

Random checkpoints are written, and each is quantized, lowered for every target, read back and run
in a process of its own. One of layers, width and context is varied at a time. The exponent is the
slope of a line through the logarithms of CPU time and of what grows: the number of parameters for
layers and width, tokens for the context. 1 is linear. A stage's CPU time leaves out start-up.
GPTQ is calibrated on 4096 random tokens.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

from llama_edge.backends import get_exporter
from llama_edge.backends.base import LowerOptions
from llama_edge.bundle.folder import list_tensors
from llama_edge.checkpoints import load_checkpoint
from llama_edge.checkpoints.synthetic import write_synthetic
from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.model_config import ModelConfig
from llama_edge.core.model_shapes import get_shape
from llama_edge.core.progress import SilentProgress
from llama_edge.core.quantized import QuantizedCheckpoint
from llama_edge.models.weights import weight_shapes
from llama_edge.quantize import W4A8_GPTQ, W4A8_RTN
from llama_edge.quantize.calibration import CalibrationSet
from llama_edge.quantize.stage import quantize_checkpoint
from llama_edge.runtimes import get_runtime

#: Small, so that what is varied is most of it.
BASE: Final = replace(
    get_shape("llama-3.2-1b").config,
    hidden_size=512,
    num_hidden_layers=1,
    num_attention_heads=8,
    num_key_value_heads=2,
    intermediate_size=2048,
    vocab_size=4096,
)
CONTEXT: Final = 2048
LAYERS: Final = (1, 2, 4, 8)
WIDTHS: Final = (256, 512, 1024, 2048)
CONTEXTS: Final = (512, 4096, 32768, 131072)
BACKENDS: Final = ("executorch", "onnx", "coreml")


@dataclass(frozen=True, slots=True)
class Point:
    """One model of one series."""

    series: str
    #: parameters, or tokens of context
    size: int
    config: ModelConfig
    context: int


def with_width(width: int) -> ModelConfig:
    """The base, wider: heads of 64 as Llama 3.2 1B has them, four query heads to a key head."""
    heads = width // 64
    return replace(
        BASE,
        hidden_size=width,
        num_attention_heads=heads,
        num_key_value_heads=heads // 4,
        intermediate_size=4 * width,
    )


def parameters(config: ModelConfig) -> int:
    """Of all matrices and norms."""
    return sum(math.prod(shape) for shape in weight_shapes(config).values())


def points() -> Iterator[Point]:
    """Every model that is measured."""
    for layers in LAYERS:
        config = replace(BASE, num_hidden_layers=layers)
        yield Point("layers", parameters(config), config, CONTEXT)
    for width in WIDTHS:
        config = with_width(width)
        yield Point("width", parameters(config), config, CONTEXT)
    for context in CONTEXTS:
        yield Point("context", context, BASE, context)


def _peak_mib() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def _timed(found: dict[str, dict[str, float]], name: str, work: Callable[[], Any]) -> Any:  # noqa: ANN401
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    began = time.process_time()
    result = work()
    found[name] = {"cpu_s": time.process_time() - began, "peak_mib": _peak_mib()}
    return result


def _quantize(checkpoint: Checkpoint, folder: Path, gptq: bool) -> QuantizedCheckpoint:
    folder.mkdir()
    if not gptq:
        return quantize_checkpoint(checkpoint, W4A8_RTN, folder, SilentProgress())
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(0, checkpoint.config.vocab_size, (16, 256), generator=generator)
    calibration = CalibrationSet(tokens=rows, origin="random")
    return quantize_checkpoint(checkpoint, W4A8_GPTQ, folder, SilentProgress(), calibration)


def measure(model: Path, context: int, scratch: Path, *, gptq: bool) -> dict[str, dict[str, float]]:
    """CPU seconds and peak MiB of each stage, in this process."""
    checkpoint = load_checkpoint(str(model))
    options = LowerOptions(max_context=context)
    found: dict[str, dict[str, float]] = {}
    _quantize(checkpoint, scratch / "warm", gptq=False)  # imports and first uses
    quantized = _timed(
        found, "quantize w4a8-rtn", lambda: _quantize(checkpoint, scratch / "rtn", gptq=False)
    )
    if gptq:
        _timed(
            found, "quantize w4a8-gptq", lambda: _quantize(checkpoint, scratch / "gptq", gptq=True)
        )
    for name in BACKENDS:
        exporter = get_exporter(name)
        for folder in (scratch / f"warm-{name}", scratch / name):
            folder.mkdir()
            lower = partial(exporter.lower, quantized, folder, options, SilentProgress())
            artifact = _timed(found, f"lower {name}", lower)
        if name == "executorch":
            run = partial(_run, artifact)
            read = partial(list_tensors, exporter.open(artifact.path).weights(), SilentProgress())
            _timed(found, "read values back", read)
            _timed(found, "open, 16 tokens and 8 more", run)
    return found


def _run(artifact: Any) -> None:  # noqa: ANN401
    with get_runtime("executorch").open(artifact) as session:
        session.prefill(list(range(16)))
        for token in range(8):
            session.decode(token)


def measure_in_child(point: Point) -> dict[str, dict[str, float]]:
    """`measure` of a model that is written for it, in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch, "model")
        model.mkdir()
        write_synthetic(model, "growth", point.config, 0, SilentProgress())
        command = [sys.executable, __file__, "--child", str(model), str(point.context), scratch]
        if point.series != "context":  # which it knows nothing of
            command.append("--gptq")
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, dict[str, float]] = json.loads(output.splitlines()[-1])
    return found


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Slope of the least-squares line through the logarithms."""
    x, y = [math.log(size) for size in sizes], [math.log(value) for value in values]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    over = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return over / sum((a - mean_x) ** 2 for a in x)


Series = Mapping[str, Sequence[tuple[float, float, float]]]


def by_stage(rows: Sequence[Mapping[str, Any]], series: str) -> Series:
    """(size, CPU seconds, peak MiB) of each stage of one series."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    for row in rows:
        if row["series"] == series:
            for stage, values in row["stages"].items():
                entry = (row["size"], max(values["cpu_s"], 1e-3), values["peak_mib"])
                found.setdefault(stage, []).append(entry)
    return found


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: the exponents of CPU time, and the last step's peak memory."""
    lines = ["| stage | layers | width | context |", "|---|--:|--:|--:|"]
    found = {series: by_stage(rows, series) for series in ("layers", "width", "context")}
    for stage in found["layers"]:
        cells = []
        for series in found.values():
            entries = series.get(stage)
            if entries is None:
                cells.append("")
                continue
            sizes, cpu_s, _ = zip(*entries, strict=True)
            cells.append(f"{exponent(sizes, cpu_s):.2f} ({cpu_s[0]:.2f} to {cpu_s[-1]:.2f} s)")
        lines.append(f"| {stage} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Three panels of CPU seconds, each stage with its exponent."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "growth"  # the same rows give the same bytes
    from matplotlib import pyplot
    from matplotlib.ticker import NullFormatter

    labels = {
        "layers": f"parameters ({LAYERS[0]} to {LAYERS[-1]} layers)",
        "width": f"parameters (width {WIDTHS[0]} to {WIDTHS[-1]})",
        "context": "tokens that the KV cache holds",
    }
    figure, panels = pyplot.subplots(1, 3, figsize=(12, 6), layout="constrained")
    colors: dict[str, str] = {}
    for panel, (series, label) in zip(panels, labels.items(), strict=True):
        for stage, entries in by_stage(rows, series).items():
            sizes, cpu_s, _ = zip(*entries, strict=True)
            color = colors.setdefault(stage, f"C{len(colors)}")
            name = f"{stage}: {exponent(sizes, cpu_s):.2f}"
            panel.loglog(sizes, cpu_s, "o-", color=color, label=name)
        panel.set_xlabel(label)
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.yaxis.set_minor_formatter(NullFormatter())
        panel.grid(visible=True, which="both", alpha=0.2)
        panel.legend(fontsize=8, title="exponent", loc="upper center", bbox_to_anchor=(0.5, -0.15))
    panels[0].set_ylabel("CPU seconds")
    figure.suptitle("CPU time by stage; an exponent of 1 is linear")
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--plot", type=Path, help="where to draw, .svg or .png")
    parser.add_argument("--json", type=Path, help="rows are kept here, and not measured again")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--gptq", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        model, context, scratch = arguments.child
        found = measure(Path(model), int(context), Path(scratch), gptq=arguments.gptq)
        print(json.dumps(found))
        return
    kept = arguments.json
    rows = json.loads(kept.read_text()) if kept is not None and kept.exists() else []
    known = {(row["series"], row["size"]) for row in rows}
    for point in points():
        if (point.series, point.size) in known:
            continue
        stages = measure_in_child(point)
        rows.append({"series": point.series, "size": point.size, "stages": stages})
        if kept is not None:
            kept.write_text(json.dumps(rows, indent=2) + "\n")
    print(table(rows))
    if arguments.plot is not None:
        plot(rows, arguments.plot)


if __name__ == "__main__":
    main()
