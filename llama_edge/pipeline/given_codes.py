"""A checkpoint that came with codes: which recipe it is, and its codes as they are, on disk."""

from collections.abc import Iterator
from pathlib import Path

import torch

from llama_edge.bundle.folder import compare_tensors, list_tensors
from llama_edge.checkpoints import load_checkpoint
from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.errors import UsageError
from llama_edge.core.packing import MIN_SCALE
from llama_edge.core.progress import Progress, Step, layer_name
from llama_edge.core.quantized import GivenCodes, QuantizedCheckpoint, ScaleRounding
from llama_edge.core.recipe import Recipe, Rounding
from llama_edge.formats.quantized_checkpoint import (
    Layout,
    QuantizedEntry,
    SourceDescription,
    stored_names,
    write_quantized_checkpoint,
)
from llama_edge.gate.metrics import compare, concatenate
from llama_edge.gate.prompts import gate_prompts
from llama_edge.gate.teacher import Variant, final_hidden, with_source
from llama_edge.models.reference import Reference
from llama_edge.models.sources import CachedSource, DequantizedSource, FullPrecisionSource
from llama_edge.models.weights import float_shapes
from llama_edge.quantize import DEFAULT_RECIPE, get_recipe
from llama_edge.quantize.recipe_file import find_recipe
from llama_edge.quantize.stage import hash_weights
from llama_edge.text.tokenizer import Tokenizer


def open_model(model: str, recipe: str | None) -> tuple[Checkpoint, Recipe]:
    """The model, and the recipe that goes with it.

    Args:
        model: As the command line has it.
        recipe: A name or a file (`find_recipe`); None: the default, or what the checkpoint is.

    Raises:
        UnknownNameError: No such recipe; known before anything is downloaded.
        ConfigError: A file that holds no recipe; known as early.
        UsageError: Another recipe than the checkpoint's own codes have.
        CheckpointError: No such model, or a damaged one.
    """
    chosen = None if recipe is None else find_recipe(recipe)
    checkpoint = load_checkpoint(model)
    return checkpoint, choose_recipe(checkpoint, chosen)


def choose_recipe(checkpoint: Checkpoint, chosen: Recipe | None) -> Recipe:
    """The recipe that was asked for, else the default; of a checkpoint with codes, what it is.

    Raises:
        UsageError: The checkpoint has codes of another recipe, or has none and should have.
    """
    if checkpoint.codes is None:
        recipe = get_recipe(DEFAULT_RECIPE) if chosen is None else chosen
        if recipe.rounding is Rounding.GIVEN:
            raise UsageError(
                f"--recipe {recipe.name}: keeps the codes that a checkpoint came with, and "
                f"{checkpoint.source} holds weights; choose another recipe"
            )
        return recipe
    own = checkpoint.codes.recipe
    if chosen is not None and chosen.name != own:
        raise UsageError(
            f"--recipe {chosen.name}: {checkpoint.source} came with codes of its own ({own}), and "
            "they are kept; leave --recipe out, or start from the model's unquantized release"
        )
    return get_recipe(own)


def keep_codes(
    checkpoint: Checkpoint, codes: GivenCodes, recipe: Recipe, folder: Path, progress: Progress
) -> QuantizedCheckpoint:
    """Write a checkpoint's own codes, and its scales rounded to bfloat16, into `folder`.

    Raises:
        CheckpointError: A code or a scale is out of range.
        CheckFailedError: What was written does not hold the same codes.
    """
    given = list_tensors(codes, progress, "hash the quantized values")
    source = hash_weights(checkpoint.weights)
    rounding = measure_scale_rounding(checkpoint, codes, progress)
    floats = float_shapes(checkpoint.config)

    def entries() -> Iterator[QuantizedEntry]:
        for name in stored_names(checkpoint.config):
            is_float = name in floats
            yield QuantizedEntry(
                name, checkpoint.weights.read(name) if is_float else codes.quantized(name)
            )

    written = write_quantized_checkpoint(
        folder,
        Layout(checkpoint.config, recipe),
        checkpoint.text,
        entries(),
        lambda: SourceDescription(source, None, scale_rounding=rounding, note=checkpoint.note),
    )
    compare_tensors(given, list_tensors(written.weights, progress))
    return written


def measure_scale_rounding(
    checkpoint: Checkpoint, codes: GivenCodes, progress: Progress
) -> ScaleRounding:
    """Scale by scale, and as KL over the gate's prompts between the two networks."""
    count = rounded = raised = 0
    squares = largest = 0.0
    for name in codes.quantized_names():
        own, tensor = codes.own_scales(name), codes.quantized(name)
        stored = tensor.scales.float()
        normal = own >= MIN_SCALE
        used = tensor.codes.view(*own.shape, -1).any(-1)
        error = ((stored - own).abs() / own)[normal]
        count += own.numel()
        rounded += int(error.count_nonzero())
        raised += int((used & ~normal).sum())
        squares += float(error.double().square().sum())
        largest = max(largest, float(error.max())) if len(error) else largest
    changed = rounded or raised
    return ScaleRounding(
        scales=count,
        rounded=rounded,
        raised=raised,
        rms_relative_error=(squares / max(count, 1)) ** 0.5,
        max_relative_error=largest,
        mean_kl=_mean_kl(checkpoint, codes, progress) if changed else 0.0,
    )


@torch.no_grad()
def _mean_kl(checkpoint: Checkpoint, codes: GivenCodes, progress: Progress) -> float:
    """Nats per token, from the network with the checkpoint's own scales; activations float32."""
    config = checkpoint.config
    prompts = gate_prompts(Tokenizer(checkpoint.text), config.max_position_embeddings)
    sequences = [prompt.sequence for prompt in prompts]
    own = Reference(config, FullPrecisionSource(config, checkpoint.weights))
    stored = Reference(config, DequantizedSource(codes))
    layers = config.num_hidden_layers
    names = [layer_name(layer, layers) for layer in range(layers)]
    progress.start("cost of bfloat16 scales", [*map(Step, names)])
    hidden = final_hidden([Variant(model=own), Variant(model=stored)], sequences, progress)
    heads = [with_source(model, CachedSource(model.source)) for model in (own, stored)]
    compared = []
    for index, tokens in enumerate(sequences):
        logits = [head.head(states[index]) for head, states in zip(heads, hidden, strict=True)]
        compared.append(compare(logits[0].numpy(), logits[1].numpy(), tokens))
    return float(concatenate(compared).kl.mean())
