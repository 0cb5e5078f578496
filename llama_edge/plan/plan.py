"""A plan: every recipe, target and device that is asked for, from a config alone."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from llama_edge.backends import BACKENDS, TARGETS, Format, Target, get_target
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
from llama_edge.plan.host import HostCost, host_cost, is_planned
from llama_edge.plan.published import PUBLISHED_LAYOUTS
from llama_edge.plan.sizes import artifact_size
from llama_edge.plan.workload import bundle_workload, quantized_config
from llama_edge.quantize import RECIPES
from llama_edge.quantize.recipe_file import find_recipe
from llama_edge.quantize.stage import check_groups
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
        QuantizeError: A group of the recipe does not divide a width.
        UsageError: What is asked for does not go together, so that nothing is left to plan.
        ConfigError: More context than the model has positions, a width that no recipe rotates, or a
            file that holds no recipe.
        CheckpointError: No such model, or a damaged config.
    """
    recipes = dict(map(_find_recipe, request.recipes))
    targets = [get_target(name) for name in request.targets] or list(TARGETS.values())
    devices = [get_device(name) for name in request.devices] or list(DEVICES.values())
    config = planned_config(request.model)
    if not recipes:
        recipes = {name: one for name, one in RECIPES.items() if _suits(config, one)}
    context = LowerOptions(max_context=request.context).context_for(config)
    if not 1 <= request.prompt <= context:
        raise UsageError(
            f"--prompt {request.prompt}: the context holds {context} tokens; give 1 to {context}"
        )
    entries: list[PlannedDevice] = []
    for name, recipe in recipes.items():
        for target in targets:
            asked = (
                _published(config, name, target)
                if recipe is None
                else _workloads(config, recipe, target, request.kv_cache)
            )
            for workload, host in asked:
                entries += (
                    _planned(name, target, device, (workload, host), (context, request.prompt))
                    for device in devices
                    if target.name in device.targets
                )
    if not entries:
        raise UsageError(
            f"nothing to plan: {_names([*recipes])} on {_names([t.name for t in targets])} for "
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


def _find_recipe(choice: str) -> tuple[str, Recipe | None]:
    """Its name, and what it is; None: a layout of Meta's own files."""
    if choice in PUBLISHED_LAYOUTS:
        return choice, None
    try:
        recipe = find_recipe(choice)
    except UnknownNameError as error:
        layouts = ", ".join(PUBLISHED_LAYOUTS)
        raise UnknownNameError(f"{error}; or plan a layout of Meta's: {layouts}") from error
    return recipe.name, recipe


def _suits(config: ModelConfig, recipe: Recipe) -> bool:
    """Whether a recipe can be chosen for full-precision weights, and rotates these widths."""
    try:
        quantized_config(config, recipe)
    except ConfigError:
        return False
    return recipe.rounding is not Rounding.GIVEN


def _names(names: list[str]) -> str:
    return "/".join(names) if len(names) < 4 else f"{len(names)} choices"


def _published(
    config: ModelConfig, name: str, target: Target
) -> Iterator[tuple[Callable[[int], Workload], HostCost | None]]:
    """What a layout of Meta's own files asks, where they run."""
    if target.name == _PUBLISHED_TARGET:
        published = PUBLISHED_LAYOUTS[name](config)
        yield lambda _: published, None


def _workloads(
    config: ModelConfig, recipe: Recipe, target: Target, kv_cache: KVCacheDtype | None
) -> Iterator[tuple[Callable[[int], Workload], HostCost | None]]:
    """What a recipe asks on a target, by context; nothing where the target cannot run it."""
    form = target.formats[0]
    if not _runs(recipe, form):
        return
    dtype = kv_cache or form.kv_cache
    if dtype not in target_caches(target):
        raise UsageError(
            f"--kv-cache {dtype.value}: the {target.name} target keeps keys and values in "
            f"{' or '.join(kind.value for kind in target_caches(target))}"
        )

    quantized = quantized_config(config, recipe)
    check_groups(quantized, recipe)

    def workload(context: int) -> Workload:
        return bundle_workload(quantized, recipe, form.backend, dtype, context)

    size = artifact_size(quantized, recipe, form.backend, DEFAULT_CONTEXT)
    # Of a distillation neither time nor memory was measured.
    yield (
        workload,
        host_cost(config, recipe, form.backend, size.file_bytes) if is_planned(recipe) else None,
    )


def _runs(recipe: Recipe, form: Format) -> bool:
    return (
        recipe.weight_bits == 4
        and (recipe.activation_bits is not None or form.float_activations)
        and (recipe.table_bits == 8 or form.int4_tables)
        and BACKENDS[form.backend].takes_groups(recipe)
    )


def target_caches(target: Target) -> tuple[KVCacheDtype, ...]:
    """How a target's first format can keep keys and values."""
    own = target.formats[0].kv_cache
    return (own, KVCacheDtype.INT8) if target.name == "android" else (own,)


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
