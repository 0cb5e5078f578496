"""Quantizing with calibration text, and keeping what took minutes: targets share one result."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file

import llama_edge.core
import llama_edge.formats
import llama_edge.models
import llama_edge.quantize
import llama_edge.text
from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.errors import UsageError
from llama_edge.core.json_files import canonical_json
from llama_edge.core.progress import Progress
from llama_edge.core.quantized import QuantizedCheckpoint
from llama_edge.core.recipe import Device, Recipe, Rounding
from llama_edge.formats.quantized_checkpoint import (
    read_quantized_checkpoint,
    write_safetensors,
)
from llama_edge.pipeline.cache import CALIBRATION, QUANTIZED, cache_entry, require_cache
from llama_edge.pipeline.given_codes import keep_codes
from llama_edge.pipeline.stages import code_sha256
from llama_edge.pipeline.text_cache import TextCache, Texts
from llama_edge.quantize.arithmetic import Arithmetic
from llama_edge.quantize.calibration import CalibrationSet, generate_calibration, read_calibration
from llama_edge.quantize.resume import WorkPlace
from llama_edge.quantize.stage import HashedWeights, hash_weights, quantize_checkpoint

_TOKENS_FILE: Final = "tokens.safetensors"
_TOKENS: Final = "tokens"


def quantize_with_cache(
    checkpoint: Checkpoint,
    recipe: Recipe,
    texts: Texts,
    scratch: Path,
    progress: Progress,
    device: Device = Device.CPU,
) -> QuantizedCheckpoint:
    """Quantize by `recipe`, or keep the codes that the checkpoint came with.

    A recipe with calibration is looked up in the cache first.

    Args:
        checkpoint: Full precision.
        recipe: What to do.
        texts: The user's calibration text, or a file that keeps what the model wrote; empty lets
            the model write its own.
        scratch: An empty folder for a result that is not worth keeping.
        progress: Told about every stage that really runs.
        device: Where it calibrates. A run that was stopped is resumed.

    Raises:
        QuantizeError: A width, a value or the text does not fit the recipe.
        UsageError: The model cannot write its own calibration text.
        OutputError: The cache, or the file of `texts`, cannot be written.
    """
    if checkpoint.codes is not None:
        return keep_codes(checkpoint, checkpoint.codes, recipe, scratch, progress)
    if recipe.rounding is Rounding.NEAREST:
        return quantize_checkpoint(checkpoint, recipe, scratch, progress)
    # What can be wrong with the user's text and the cache's place is told before minutes of work.
    given = _given_text(checkpoint, recipe, texts)
    if given is None and checkpoint.config.output_rows is not None:
        raise UsageError(
            f"recipe {recipe.name} has the model write its own calibration text, and this model's "
            f"head has {checkpoint.config.head_rows} tokens; give text with --calibration FILE, or "
            "take --recipe w4a8-rtn"
        )
    require_cache()
    checkpoint = replace(checkpoint, weights=HashedWeights.of(checkpoint.weights))
    source = hash_weights(checkpoint.weights)
    place = WorkPlace(device=device)
    if not place.arithmetic.is_native:
        progress.remark(
            "this processor multiplies no bfloat16: calibration multiplies float32, which takes "
            "several times as long"
        )
    calibration = given or _self_generated(checkpoint, source, recipe, place.arithmetic, progress)
    if given is None and isinstance(texts, TextCache):
        calibration = texts.keep(checkpoint, calibration, recipe.seed, source)
    key = _key(
        {
            "source": source,
            "config": checkpoint.config.to_json(),
            "text": asdict(checkpoint.text),
            "note": checkpoint.note,
            "recipe": recipe.to_json(),
            "calibration": calibration.record().to_json(),
            "arithmetic": place.arithmetic.label,
        }
    )
    with cache_entry(QUANTIZED, key, progress) as entry:
        if not entry.is_there():
            place = replace(place, folder=entry.work)
            with entry.filled() as unfinished:
                quantize_checkpoint(checkpoint, recipe, unfinished, progress, calibration, place)
    # What is written of the text is what is read back: the checkpoint's own text goes on.
    return replace(read_quantized_checkpoint(entry.folder), text=checkpoint.text)


def _key(parts: Mapping[str, object]) -> str:
    code = code_sha256(
        llama_edge.quantize,
        llama_edge.formats,
        llama_edge.models,
        llama_edge.text,
        llama_edge.core,
    )
    text = canonical_json({**parts, "code": code})
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _given_text(checkpoint: Checkpoint, recipe: Recipe, texts: Texts) -> CalibrationSet | None:
    """What there is already; None: the model has to write its own."""
    if isinstance(texts, TextCache):
        return texts.read(checkpoint, recipe.seed)
    return read_calibration(checkpoint, texts) if texts else None


def _self_generated(
    checkpoint: Checkpoint, source: str, recipe: Recipe, arithmetic: Arithmetic, progress: Progress
) -> CalibrationSet:
    """As many texts as the recipe wants, each of the next seed and cached for itself."""
    seeds = range(recipe.seed, recipe.seed + recipe.texts)
    texts = [_self_generated_text(checkpoint, source, seed, arithmetic, progress) for seed in seeds]
    if len(texts) == 1:
        return texts[0]
    tokens = torch.cat([text.tokens for text in texts])
    return CalibrationSet(tokens=tokens, origin=f"self-generated, seeds {seeds[0]} to {seeds[-1]}")


def _self_generated_text(
    checkpoint: Checkpoint, source: str, seed: int, arithmetic: Arithmetic, progress: Progress
) -> CalibrationSet:
    template = checkpoint.text.chat_template
    config = checkpoint.config.to_json()
    parts = {
        "source": source,
        "config": config,
        "template": template,
        "seed": seed,
        "arithmetic": arithmetic.label,
    }
    origin = f"self-generated, seed {seed}"
    key = _key(parts)
    with cache_entry(CALIBRATION, key, progress) as entry:
        file = entry.folder / _TOKENS_FILE
        if entry.is_there():
            return CalibrationSet(tokens=load_file(file)[_TOKENS], origin=origin)
        generated = generate_calibration(checkpoint, seed, progress, arithmetic)
        with entry.filled() as unfinished:
            layout = {_TOKENS: ("I64", tuple(generated.tokens.shape))}
            tokens = ((_TOKENS, generated.tokens),)
            write_safetensors(unfinished / _TOKENS_FILE, layout, tokens)
    return generated
