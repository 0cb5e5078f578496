"""What an export itself takes on the machine that runs it: memory, and time of its processor.

Fitted on exports that were measured (`plan.host_rows`), each number by a rule that a test repeats;
`docs/plan.md` says how far the rows are off. Time is of one x86-64 core as those rows' machine has
it: another machine is as much off as its cores are faster. A recipe that calibrates adds what its
stages took on two models.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import log
from typing import Final

from llama_edge.core.model_config import ModelConfig
from llama_edge.core.progress import Job
from llama_edge.core.recipe import Recipe, Rounding

#: Tokens that the gate runs, prompts and what is decoded after them, of SmolLM2's tokenizer.
GATE_TOKENS: Final = 1420
#: CPU seconds before any work: imports, of the program and of the process that runs the artifact.
FIXED_CPU_S: Final = 10.0
#: How far the plan is off at most, on the exports that were measured.
CPU_BAND: Final = 0.12
MEMORY_BAND: Final = 0.13

_MIB: Final = 2**20
_QUANTIZE: Final = "quantize"
#: Python, torch and a backend's SDK.
_BASE_MIB: Final = 600.0
#: In float32, and alive together in the gate: copies of the table, and of a layer.
_TABLES: Final = 2
_LAYERS: Final = 2
#: Of weights that our Core ML interpreter keeps in float32 (`runtimes.coreml`).
_KEPT_MIB: Final = 640.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRates:
    """What sets one backend apart."""

    #: CPU seconds for each million weights: quantize, lower, read back, and the gate's first token
    weight_cpu_s: float
    #: for each thousand tokens that the gate runs: for each million weights, and for each layer
    token_cpu_s: float
    layer_cpu_s: float
    #: resident memory next to the program's own: MiB, and in sizes of the file
    runtime_mib: float
    runtime_files: float
    #: for each token that the gate runs, of activations
    token_mib: float = 0.0
    #: whether it keeps weights in float32, as far as `_KEPT_MIB` allow
    keeps_weights: bool = False


RATES: Final[Mapping[str, HostRates]] = {
    "executorch": HostRates(
        weight_cpu_s=0.0469,
        token_cpu_s=0.0971,
        layer_cpu_s=0.805,
        runtime_mib=664.0,
        runtime_files=1.673,
    ),
    "onnx": HostRates(
        weight_cpu_s=0.0422,
        token_cpu_s=0.0841,
        layer_cpu_s=0.697,
        runtime_mib=196.0,
        runtime_files=1.824,
    ),
    "coreml": HostRates(
        weight_cpu_s=0.0701,
        token_cpu_s=0.276,
        layer_cpu_s=2.29,
        runtime_mib=286.0,
        runtime_files=1.720,
        token_mib=0.29,
        keeps_weights=True,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StageShare:
    """One stage's part of what an export costs by rounding to nearest."""

    stage: str
    #: of the part for each weight, and of the part for each weight and token; each adds up to 1
    of_weights: float
    of_tokens: float = 0.0


#: In the order in which they run. Assumed, not measured; `benchmarks/step_times.py` measures them.
SHARES: Final = (
    StageShare(stage=_QUANTIZE, of_weights=0.20),
    StageShare(stage="lower", of_weights=0.04),
    StageShare(stage="write", of_weights=0.04),
    StageShare(stage="read values back", of_weights=0.12),
    StageShare(stage="hash the quantized values", of_weights=0.10),
    StageShare(stage="run, and look into blocks", of_weights=0.1, of_tokens=0.2),
    StageShare(stage="graph parity, block by block", of_weights=0.1, of_tokens=0.2),
    StageShare(stage="parity and fidelity, end to end", of_weights=0.2, of_tokens=0.5),
    StageShare(stage="sample answers", of_weights=0.1, of_tokens=0.1),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationCost:
    """CPU seconds of one stage of `w4a8-mixed`, on the models of `CALIBRATED_LINEARS`.

    Between and beyond them it grows by a power of the linears, which the two decide.
    """

    small: float
    #: None: not measured, and taken to grow as the linears do
    large: float | None
    #: whether it runs the whole text, whose length differs between the two
    of_text: bool = False

    def seconds(self, linears: int, tokens: int) -> float:
        """Of a model with so many weights in linears and so many tokens of text."""
        first, last = CALIBRATED_LINEARS
        if self.large is None:
            return self.small * linears / first
        short, long = CALIBRATED_TOKENS if self.of_text else (tokens, tokens)
        small, large = self.small / short, self.large / long
        power = log(large / small) / log(last / first)
        return float(tokens * small * (linears / first) ** power)


#: Weights in linears: SmolLM2-135M's and Llama 3.2 1B's.
CALIBRATED_LINEARS: Final = (106_168_320, 973_078_528)
#: Of the text that they wrote.
CALIBRATED_TOKENS: Final = (144 * 256, 144 * 144)
#: In their order.
CALIBRATION: Final[Mapping[str, CalibrationCost]] = {
    "write calibration text": CalibrationCost(small=65.0, large=165.0, of_text=True),
    "learn rotations": CalibrationCost(small=678.0, large=None),
    "measure sensitivity, forward": CalibrationCost(small=3.5, large=31.0),
    "measure sensitivity, back": CalibrationCost(small=14.7, large=194.0),
    _QUANTIZE: CalibrationCost(small=121.0, large=683.0, of_text=True),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class HostCost:
    """Of quantizing, lowering and checking once."""

    memory_mib: float
    cpu_minutes: float


def weights_of(config: ModelConfig) -> tuple[int, int]:
    """Numbers in the table, and in all linears."""
    # Here, because it imports torch, and `llama-edge --help` reads this file's constants.
    from llama_edge.models.weights import block_linear_weights

    linears = config.num_hidden_layers * block_linear_weights(config)
    return config.vocab_size * config.hidden_size, linears


def is_planned(recipe: Recipe) -> bool:
    """Whether it is like a recipe that was measured; distillation is not, and it is the GPU's."""
    return recipe.distillation is None


def host_cost(
    config: ModelConfig,
    recipe: Recipe,
    backend: str,
    file_bytes: int,
    *,
    gate_tokens: int = GATE_TOKENS,
) -> HostCost:
    """What an export of this model by this recipe takes.

    Args:
        config: The model.
        recipe: How it is quantized; one of those that are planned (`is_planned`).
        backend: One of the exporters' names.
        file_bytes: What it writes (`plan.sizes`).
        gate_tokens: Less than all of them is for rows that were measured with less.
    """
    rates = RATES[backend]
    table, linears = weights_of(config)
    layer = linears // config.num_hidden_layers
    numbers = _TABLES * table + _LAYERS * layer + gate_tokens * config.vocab_size
    memory = _BASE_MIB + 4 * numbers / _MIB
    memory += rates.runtime_mib + rates.runtime_files * file_bytes / _MIB
    memory += rates.token_mib * gate_tokens
    if rates.keeps_weights:
        memory += min(4 * (table + linears) / _MIB, _KEPT_MIB)
    seconds = FIXED_CPU_S + rates.weight_cpu_s * (table + linears) / 1e6
    seconds += _token_cpu_s(rates, config, table + linears) * gate_tokens / 1000
    if recipe.rounding is Rounding.GPTQ:
        from llama_edge.models.weights import block_linear_shapes

        widest = max(columns for _, columns in block_linear_shapes(config).values())
        memory = max(memory, _calibration_mib(config, layer, widest))
        seconds += sum(_calibration_seconds(recipe, config, linears).values())
    return HostCost(memory_mib=memory, cpu_minutes=seconds / 60)


def stage_seconds(job: Job) -> dict[str, float]:
    """The CPU seconds of `host_cost` by stage, in the order in which stages run.

    Names are those that stages give themselves. What the start takes (`FIXED_CPU_S`) is no stage.
    A recipe that is not planned has none.
    """
    recipe = job.recipe
    if not is_planned(recipe):
        return {}
    backend = job.backend or next(iter(RATES))
    rates = RATES[backend]
    table, linears = weights_of(job.config)
    found = (
        _calibration_seconds(recipe, job.config, linears)
        if recipe.rounding is Rounding.GPTQ
        else {}
    )
    of_weights = rates.weight_cpu_s * (table + linears) / 1e6
    of_tokens = _token_cpu_s(rates, job.config, table + linears) * GATE_TOKENS / 1000
    for share in SHARES:
        if job.backend is not None or share.stage == _QUANTIZE:
            seconds = share.of_weights * of_weights + share.of_tokens * of_tokens
            found[share.stage] = found.get(share.stage, 0.0) + seconds
    named = {_QUANTIZE: recipe.name, "lower": backend, "write": backend}
    return {
        f"{stage} ({named[stage]})" if stage in named else stage: seconds
        for stage, seconds in found.items()
        if seconds
    }


def _token_cpu_s(rates: HostRates, config: ModelConfig, weights: int) -> float:
    """Of a thousand tokens in the gate."""
    return rates.token_cpu_s * weights / 1e6 + rates.layer_cpu_s * config.num_hidden_layers


def _calibration_seconds(recipe: Recipe, config: ModelConfig, linears: int) -> dict[str, float]:
    """By stage, of a recipe that calibrates."""
    tokens = _text_tokens(config)
    return {
        stage: cost.seconds(linears, tokens)
        for stage, cost in CALIBRATION.items()
        if _runs(stage, recipe)
    }


def _text_tokens(config: ModelConfig) -> int:
    from llama_edge.quantize.calibration import SEQUENCES, sequence_length

    return SEQUENCES * sequence_length(config)


def _runs(stage: str, recipe: Recipe) -> bool:
    """Whether a recipe that calibrates has this stage."""
    if stage == "learn rotations":
        return recipe.rotation_learning is not None
    return bool(recipe.extra_bytes) or not stage.startswith("measure sensitivity")


def _calibration_mib(config: ModelConfig, layer: int, widest: int) -> float:
    """GPTQ: the Hessian of the widest input and its factors, and the text in two networks."""
    hessians = 5 * 4 * widest**2
    states = 4 * _text_tokens(config) * (4 * config.hidden_size + 2 * widest)
    return _BASE_MIB + (hessians + states + 4 * _LAYERS * layer) / _MIB
