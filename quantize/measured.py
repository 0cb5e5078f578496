"""What the named recipes measured on the embedded model: `benchmarks/recipes.py --write`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One recipe's figures."""

    #: to full precision, nats, on the gate's prompts in eight languages; the eager reference ran
    mean_kl: float
    #: of the quantized checkpoint on disk, tables and scales included
    bits_per_weight: float
    #: to write calibration text, where the recipe needs one, and to quantize
    cpu_minutes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurements:
    """One run of the benchmark."""

    model: str
    machine: str
    recipes: Mapping[str, Measured]


def read_measurements() -> Measurements:
    """The committed figures."""
    raw = json.loads(files("llama_edge.quantize").joinpath("measured.json").read_text())
    recipes = {name: Measured(**figures) for name, figures in raw["recipes"].items()}
    return Measurements(model=raw["model"], machine=raw["machine"], recipes=recipes)
