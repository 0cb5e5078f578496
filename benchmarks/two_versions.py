"""What an export costs in two versions of this program, measured in turns on one machine.

    python benchmarks/two_versions.py OLD_PYTHON NEW_PYTHON [--model MODEL] [--recipe NAME]
        [--targets NAME...] [--times N]

Each argument is the `python` of an environment in which that version is installed. An export goes
the whole way: quantize (nothing is cached), lower, read back, run, judge. CPU seconds are those of
the command and its children, the least of all readings; peak memory is that of the largest process.
"""

import argparse
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

_MAIN: Final = "from llama_edge.cli import main; main()"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of one command, children included."""

    cpu_s: float
    peak_mib: float


def cost_of_export(python: str, model: str, target: str, recipe: str) -> Cost:
    """Export into a folder that is gone afterwards.

    Raises:
        RuntimeError: The export failed.
    """
    with tempfile.TemporaryDirectory() as place:
        command = [python, "-c", _MAIN, "export", model, "--target", target, "--recipe", recipe]
        environment = {**os.environ, "LLAMA_EDGE_CACHE": str(Path(place, "cache"))}
        with subprocess.Popen(
            [*command, "--out", str(Path(place, "bundle"))],
            env=environment,
            cwd=place,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: exit code {process.returncode}")
    return Cost(cpu_s=usage.ru_utime + usage.ru_stime, peak_mib=usage.ru_maxrss / 1024)


def measure(pythons: list[str], model: str, target: str, recipe: str, times: int) -> list[Cost]:
    """The least of `times` readings of each version; the versions take turns."""
    readings: list[list[Cost]] = [[] for _ in pythons]
    for _ in range(times):
        for python, of_version in zip(pythons, readings, strict=True):
            of_version.append(cost_of_export(python, model, target, recipe))
    return [
        Cost(cpu_s=min(cost.cpu_s for cost in costs), peak_mib=min(cost.peak_mib for cost in costs))
        for costs in readings
    ]


def main() -> None:
    """Print one row a target."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pythons", nargs=2, metavar="PYTHON")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--recipe", default="w4a8-rtn")
    parser.add_argument("--targets", nargs="+", default=["android", "onnx", "ios"])
    parser.add_argument("--times", type=int, default=3)
    options = parser.parse_args()
    table = Table(
        *("target", "recipe", "CPU s, old", "new", "ratio", "peak MiB, old", "new", "ratio")
    )
    for target in options.targets:
        old, new = measure(options.pythons, options.model, target, options.recipe, options.times)
        table.add_row(
            *(target, options.recipe),
            *(f"{old.cpu_s:.1f}", f"{new.cpu_s:.1f}", f"{new.cpu_s / old.cpu_s:.2f}"),
            *(f"{old.peak_mib:.0f}", f"{new.peak_mib:.0f}", f"{new.peak_mib / old.peak_mib:.2f}"),
        )
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
