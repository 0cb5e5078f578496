"""A plan: every recipe, target and device that is asked for, from a config alone."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Final

from llama_edge.backends import TARGETS, Target, get_target
from llama_edge.backends.base import DEFAULT_CONTEXT, LowerOptions
from llama_edge.bundle.folder import PARITY_FILE, Bundle
from llama_edge.checkpoints import load_config
from llama_edge.core.artifact import KVCacheDtype
from llama_edge.core.errors import ConfigError, UnknownNameError, UsageError
from llama_edge.core.model_config import ModelConfig
from llama_edge.core.model_shapes import SHAPES
from llama_edge.core.recipe import Recipe, Rounding
from llama_edge.plan.devices import DEVICES, Device, get_device
from llama_edge.plan.estimate import DEFAULT_PROMPT, Estimate, Workload, estimate
from llama_edge.plan.host import HostCost, host_cost
from llama_edge.plan.published import PUBLISHED_LAYOUTS
from llama_edge.plan.sizes import artifact_size
from llama_edge.plan.workload import bundle_workload, quantized_config
from llama_edge.quantize import RECIPES
from llama_edge.quantize.measured import read_measurements
from llama_edge.text.special_tokens import TOKENIZER_CONFIG_FILE
from llama_edge.text.text_assets import (
    CHAT_TEMPLATE_FILE,
    GENERATION_CONFIG_FILE,
    TOKENIZER_FILE,
)

#: What Meta's published files run on.
_PUBLISHED_TARGET: Final = "android"
#: Of a bundle's files, those that are no model.
_BESIDE: Final = (
    TOKENIZER_FILE,
    TOKENIZER_CONFIG_FILE,
    GENERATION_CONFIG_FILE,
    CHAT_TEMPLATE_FILE,
    PARITY_FILE,
)
#: Named at the end of an export: the device that the plan is calibrated on, or a common one, and
#: another.
REPORTED: Final[Mapping[str, tuple[str, str]]] = {
    "android": ("oneplus-12", "galaxy-s22"),
    "ios": ("iphone-15-pro", "iphone-16"),
    "onnx": ("oneplus-12", "iphone-15-pro"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """What to plan; empty means all that there is."""

    model: str
    recipes: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    #: tokens that the KV cache holds; None is what `export` takes
    context: int | None = None
    #: tokens before the first that is written
    prompt: int = DEFAULT_PROMPT
    #: None is what the target keeps by itself
    kv_cache: KVCacheDtype | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedDevice:
    """One recipe for one target on one device."""

    recipe: str
    target: str
    device: Device
    estimate: Estimate
    #: the longest that the device's usable memory and the model's positions allow; 0: none fits
    max_context: int
    #: None for Meta's own files, which nobody here exports
    host: HostCost | None

    def to_json(self) -> dict[str, Any]:
        """One flat object."""
        host = self.host
        return {
            "recipe": self.recipe,
            "target": self.target,
            "device": self.device.name,
            **asdict(self.estimate),
            "max_context": self.max_context,
            "host_memory_mib": None if host is None else host.memory_mib,
            "host_cpu_minutes": None if host is None else host.cpu_minutes,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Planned, not measured: what a model takes and gives."""

    model: str
    context: int
    prompt: int
    entries: tuple[PlannedDevice, ...]

    def too_small(self) -> tuple[str, ...]:
        """Devices that hold the asked context with none of the planned recipes."""
        fitting = {entry.device.name for entry in self.entries if entry.estimate.fits}
        names = dict.fromkeys(entry.device.name for entry in self.entries)
        return tuple(name for name in names if name not in fitting)


def plan_model(request: PlanRequest) -> Plan:
    """Plan an export of a model that need not be there.

    Raises:
        UnknownNameError: No such recipe, target or device.
        UsageError: What is asked for does not go together, so that nothing is left to plan.
        ConfigError: More context than the model has positions, or a width that no recipe rotates.
        CheckpointError: No such model, or a damaged config.
    """
    recipes = [_checked_recipe(name) for name in request.recipes]
    targets = [get_target(name) for name in request.targets] or list(TARGETS.values())
    devices = [get_device(name) for name in request.devices] or list(DEVICES.values())
    config = planned_config(request.model)
    recipes = recipes or [name for name, recipe in RECIPES.items() if _suits(config, recipe)]
    context = LowerOptions(max_context=request.context).context_for(config)
    if not 1 <= request.prompt <= context:
        raise UsageError(
            f"--prompt {request.prompt}: the context holds {context} tokens; give 1 to {context}"
        )
    entries: list[PlannedDevice] = []
    for name in recipes:
        for target in targets:
            for workload, host in _workloads(config, name, target, request.kv_cache):
                entries += (
                    _planned(name, target, device, (workload, host), (context, request.prompt))
                    for device in devices
                    if target.name in device.targets
                )
    if not entries:
        raise UsageError(
            f"nothing to plan: {_names(recipes)} on {_names([t.name for t in targets])} for "
            f"{_names([d.name for d in devices])} do not go together; leave one of them out"
        )
    return Plan(model=request.model, context=context, prompt=request.prompt, entries=tuple(entries))


def planned_config(model: str) -> ModelConfig:
    """The shape of a published model by its name, else of what `export` would open.

    Raises:
        CheckpointError: There is neither.
    """
    if model in SHAPES and not Path(model).exists():
        return SHAPES[model].config
    return load_config(model)


def _checked_recipe(name: str) -> str:
    if name not in RECIPES and name not in PUBLISHED_LAYOUTS:
        known = ", ".join([*RECIPES, *PUBLISHED_LAYOUTS])
        raise UnknownNameError(f"recipe {name!r} is unknown; choose from: {known}")
    return name


def _suits(config: ModelConfig, recipe: Recipe) -> bool:
    """Whether a recipe can be chosen for full-precision weights, and rotates these widths."""
    try:
        quantized_config(config, recipe)
    except ConfigError:
        return False
    return recipe.rounding is not Rounding.GIVEN


def _names(names: list[str]) -> str:
    return "/".join(names) if len(names) < 4 else f"{len(names)} choices"


def _workloads(
    config: ModelConfig, name: str, target: Target, kv_cache: KVCacheDtype | None
) -> Iterator[tuple[Callable[[int], Workload], HostCost | None]]:
    """What a recipe asks on a target, by context; nothing where the target cannot run it."""
    if name in PUBLISHED_LAYOUTS:
        if target.name == _PUBLISHED_TARGET:
            published = PUBLISHED_LAYOUTS[name](config)
            yield lambda _: published, None
        return
    recipe, form = RECIPES[name], target.formats[0]
    if recipe.activation_bits is None and not form.float_activations:
        return
    if recipe.table_bits < 8 and not form.int4_tables:
        return
    dtype = kv_cache or form.kv_cache
    if dtype not in target_caches(target):
        raise UsageError(
            f"--kv-cache {dtype.value}: the {target.name} target keeps keys and values in "
            f"{' or '.join(kind.value for kind in target_caches(target))}"
        )

    quantized = quantized_config(config, recipe)

    def workload(context: int) -> Workload:
        return bundle_workload(quantized, recipe, form.backend, dtype, context)

    size = artifact_size(quantized, recipe, form.backend, DEFAULT_CONTEXT)
    minutes = _recipe_minutes(recipe)
    cost = (
        None
        if minutes is None
        else host_cost(config, recipe, form.backend, size.file_bytes, recipe_cpu_minutes=minutes)
    )
    yield workload, cost


def target_caches(target: Target) -> tuple[KVCacheDtype, ...]:
    """How a target's first format can keep keys and values."""
    own = target.formats[0].kv_cache
    return (own, KVCacheDtype.INT8) if target.name == "android" else (own,)


def _recipe_minutes(recipe: Recipe) -> float | None:
    """As measured; a recipe that was not is taken for one among those of its rounding.

    A distillation is like none of them, and its time is the GPU's.
    """
    measured = read_measurements().recipes
    if recipe.name in measured:
        return measured[recipe.name].cpu_minutes
    if recipe.distillation is not None:
        return None
    alike = [name for name in measured if RECIPES[name].rounding is recipe.rounding]
    return median(measured[name].cpu_minutes for name in alike)


def _planned(
    recipe: str,
    target: Target,
    device: Device,
    asked: tuple[Callable[[int], Workload], HostCost | None],
    lengths: tuple[int, int],
) -> PlannedDevice:
    workload, host = asked
    context, prompt = lengths
    return PlannedDevice(
        recipe=recipe,
        target=target.name,
        device=device,
        estimate=estimate(workload(context), device, context, prompt),
        max_context=longest_context(workload, device),
        host=host,
    )


def longest_context(workload: Callable[[int], Workload], device: Device) -> int:
    """The longest cache whose planned memory a device allows; RoPE tables grow with it."""

    def fits(context: int) -> bool:
        return workload(context).rss_mib(context) <= device.usable_mib

    low, high = 0, workload(1).config.max_position_embeddings
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def expected(bundle: Bundle) -> list[tuple[Device, Estimate]]:
    """A written bundle on its target's `REPORTED` devices: the size is real, the rest planned."""
    manifest = bundle.manifest
    artifact, context = manifest.artifact, manifest.artifact.max_context
    workload = bundle_workload(
        manifest.model.config,
        manifest.recipe,
        manifest.backend,
        KVCacheDtype(artifact.kv_cache),
        context,
    )
    written = sum(file.size_bytes for file in manifest.files if file.path not in _BESIDE)
    workload = replace(workload, size=replace(workload.size, file_bytes=written))
    prompt = min(DEFAULT_PROMPT, context)
    devices = [get_device(name) for name in REPORTED[manifest.target]]
    return [(device, estimate(workload, device, context, prompt)) for device in devices]
