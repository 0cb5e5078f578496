"""A checkpoint in, a `QuantizedCheckpoint` folder out."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from llama_edge.checkpoints import BUILTIN_MODELS, split_adapters
from llama_edge.checkpoints.adapter_config import JOINT
from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.errors import UsageError
from llama_edge.core.files import copy_files, output_folder, require_free_space, require_place
from llama_edge.core.progress import Job, Progress
from llama_edge.core.quantized import QuantizedCheckpoint
from llama_edge.core.recipe import MAX_SEED, Device, Recipe, Rotation, Rounding
from llama_edge.core.regular import real_path
from llama_edge.core.sealed import sealed_files
from llama_edge.formats.quantized_checkpoint import read_quantized_checkpoint
from llama_edge.pipeline.given_codes import open_model
from llama_edge.pipeline.quantized import quantize_with_cache
from llama_edge.pipeline.text_cache import TextCache, Texts, calibration_texts
from llama_edge.quantize.device import check_device
from llama_edge.quantize.stage import check_widths

#: Scales, norms, tokenizer and file headers over the codes themselves, with a margin.
_SIZE_FACTOR = 1.4


def source_name(model: str) -> str:
    """How a bundle names a model: an id as it is, of a local path the last part alone.

    A bundle travels, so it has no path of this machine.
    """
    base, adapters = split_adapters(model)
    parts = [base, *adapters]
    is_local = [part not in BUILTIN_MODELS and Path(part).exists() for part in parts]
    names = (real_path(p).name if local else p for p, local in zip(parts, is_local, strict=True))
    return JOINT.join(names)


def short_name(model: str) -> str:
    """`source_name` without an id's owner or a file's ending, for the name of a folder."""
    from llama_edge.checkpoints.hub import is_repository, parse_hub_id

    base, adapters = split_adapters(model)
    if adapters:
        return "-".join(map(short_name, (base, *adapters)))
    if model not in BUILTIN_MODELS and is_repository(model):
        found = parse_hub_id(model)
        choice = Path(found.choice or "").name.removesuffix(".gguf")
        parts = (found.name.rpartition("/")[2], choice, found.revision)
        return re.sub(r"[^\w.-]", "-", "-".join(filter(None, parts)))
    return source_name(model).removesuffix(".gguf")


def quantized_size_bytes(checkpoint: Checkpoint, recipe: Recipe) -> int:
    """About how much a quantized checkpoint takes on disk, a little too high."""
    weights = checkpoint.weights
    bits = 0.0
    for name in weights:
        rows, *columns = weights.shape(name)
        is_block = name.startswith("model.layers.")
        elements = rows * (columns[0] if columns else 1)
        block_bits = recipe.weight_bits * (1 + recipe.extra_bytes)
        bits += elements * (block_bits if is_block else recipe.table_bits)
    return int(bits / 8 * _SIZE_FACTOR)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeRequest:
    """What to quantize, how, and where to."""

    model: str
    #: a name or a file; None: the default one, or what a checkpoint that came with codes is
    recipe: str | None = None
    #: None: the recipe's own
    seed: int | None = None
    #: text files; empty lets the model write its own, where the recipe needs any
    calibration: tuple[Path, ...] = ()
    #: keeps the text that the model wrote; instead of `calibration`
    text_cache: Path | None = None
    #: None: `quantized/MODEL-RECIPE` under the current folder
    out: Path | None = None
    force: bool = False
    #: where it calibrates
    device: Device = Device.CPU


def check_request(checkpoint: Checkpoint, recipe: Recipe, texts: Texts, device: Device) -> None:
    """Refuse before any work what could not be quantized.

    Raises:
        UsageError: Text or a device that the recipe would not use.
        MissingComponentError: This machine has no such device.
        QuantizeError: A group of the recipe does not divide a width.
        ConfigError: A width that the recipe rotates has no Hadamard matrix.
    """
    check_calibration(recipe, texts)
    check_calibration_device(recipe, device)
    if recipe.rounding is not Rounding.GIVEN:
        check_widths(checkpoint, recipe)


def check_calibration(recipe: Recipe, texts: Texts) -> None:
    """Refuse text that would not be used, or not be kept.

    Raises:
        UsageError: The recipe needs no calibration, or more texts than a file keeps.
    """
    if texts and recipe.rounding is not Rounding.GPTQ:
        raise UsageError(
            f"{_option(texts)}: recipe {recipe.name} {_kind(recipe)} and reads no text; leave it "
            "out, or choose a recipe with GPTQ"
        )
    if isinstance(texts, TextCache) and recipe.texts > 1:
        raise UsageError(
            f"{_option(texts)}: keeps one text, and for recipe {recipe.name} the model writes "
            f"{recipe.texts}; leave it out, or give text of your own with --calibration"
        )


def _option(texts: Texts) -> str:
    if isinstance(texts, TextCache):
        return f"--text-cache {texts.path}"
    return f"--calibration {texts[0]}"


def _kind(recipe: Recipe) -> str:
    return "rounds to nearest" if recipe.rounding is Rounding.NEAREST else "keeps its codes"


def with_seed(recipe: Recipe, seed: int | None, texts: Texts) -> Recipe:
    """The recipe with another seed; None keeps its own.

    Raises:
        UsageError: The seed is out of range, or nothing would be drawn with it.
    """
    if seed is None:
        return recipe
    if type(seed) is not int or not 0 <= seed <= MAX_SEED:
        raise UsageError(f"--seed {seed!r}: an integer from 0 to {MAX_SEED} is needed")
    draws = (
        not {Rotation.R1, Rotation.R2}.isdisjoint(recipe.rotations)
        or recipe.extra_bytes > 0
        or recipe.distillation is not None
    )
    if recipe.rounding is Rounding.GIVEN or not (draws or recipe.rounding is Rounding.GPTQ):
        raise UsageError(
            f"--seed {seed}: recipe {recipe.name} {_kind(recipe)} and draws nothing at random; "
            "leave it out, or choose a recipe with GPTQ or rotations"
        )
    if not draws and texts and not isinstance(texts, TextCache):
        raise UsageError(
            f"--seed {seed}: recipe {recipe.name} draws nothing but the text that the model writes "
            f"for itself, and --calibration {texts[0]} is used instead; leave one of the two out"
        )
    return replace(recipe, seed=seed)


def check_calibration_device(recipe: Recipe, device: Device) -> None:
    """Refuse a device that would not be used, or that is not here.

    Raises:
        UsageError: The recipe does not calibrate.
        MissingComponentError: This machine has no such device.
    """
    if device is not Device.CPU and recipe.rounding is not Rounding.GPTQ:
        raise UsageError(
            f"--device {device.value}: recipe {recipe.name} does not calibrate, and everything "
            "else runs on the CPU; leave it out, or choose a recipe with GPTQ"
        )
    check_device(device)


def quantize_model(request: QuantizeRequest, progress: Progress) -> QuantizedCheckpoint:
    """Quantize a model into a folder of its own.

    Raises:
        UnknownNameError: No such recipe.
        UsageError: An option would not be used.
        MissingComponentError: `device` is not on this machine.
        LlamaEdgeError: What the reader, the quantizer or the disk says.
    """
    texts = calibration_texts(request.calibration, request.text_cache)
    checkpoint, recipe = open_model(request.model, request.recipe)
    recipe = with_seed(recipe, request.seed, texts)
    check_request(checkpoint, recipe, texts, request.device)
    name = short_name(request.model)
    target = request.out or Path("quantized") / f"{name}-{recipe.name}"
    require_place(target, force=request.force)
    require_free_space(target, quantized_size_bytes(checkpoint, recipe))
    progress.expect(Job(config=checkpoint.config, recipe=recipe))
    with output_folder(target, force=request.force) as folder:
        found = quantize_with_cache(checkpoint, recipe, texts, folder, progress, request.device)
        if found.root != folder:
            copy_files(found.root, folder, sealed_files(found.root))
    return read_quantized_checkpoint(target)
