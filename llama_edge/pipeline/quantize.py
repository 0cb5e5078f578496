"""A checkpoint in, a `QuantizedCheckpoint` folder out."""

from pathlib import Path

from llama_edge.checkpoints import load_checkpoint
from llama_edge.core.errors import OutputError
from llama_edge.core.files import output_folder, require_free_space
from llama_edge.core.progress import Progress
from llama_edge.core.quantized_checkpoint import read_quantized_checkpoint
from llama_edge.core.types import Checkpoint, QuantizedCheckpoint, Recipe
from llama_edge.pipeline.names import short_name
from llama_edge.quantize import get_recipe
from llama_edge.quantize.stage import quantize_checkpoint

#: Scales, norms, tokenizer and file headers over the codes themselves, with a margin.
_SIZE_FACTOR = 1.4


def quantized_size_bytes(checkpoint: Checkpoint, recipe: Recipe) -> int:
    """About how much a quantized checkpoint takes on disk, a little too high."""
    weights = checkpoint.weights
    bits = 0
    for name in weights:
        rows, *columns = weights.shape(name)
        is_block = name.startswith("model.layers.")
        elements = rows * (columns[0] if columns else 1)
        bits += elements * (recipe.weight_bits if is_block else recipe.table_bits)
    return int(bits / 8 * _SIZE_FACTOR)


def quantize_model(
    model: str, recipe: str, out: Path | None, *, force: bool, progress: Progress
) -> QuantizedCheckpoint:
    """Quantize `model` into the folder `out`, by default `quantized/MODEL-RECIPE`.

    Raises:
        UnknownNameError: No such recipe.
        LlamaEdgeError: What the reader, the quantizer or the disk says.
    """
    chosen = get_recipe(recipe)
    target = out or Path("quantized") / f"{short_name(model).rpartition('/')[2]}-{recipe}"
    require_absent(target, force=force)
    checkpoint = load_checkpoint(model)
    require_free_space(target, quantized_size_bytes(checkpoint, chosen))
    with output_folder(target, force=force) as folder:
        quantize_checkpoint(checkpoint, chosen, folder, progress)
    return read_quantized_checkpoint(target)


def require_absent(target: Path, *, force: bool) -> None:
    """Refuse before any work what `output_folder` would refuse.

    Raises:
        OutputError: `target` exists and `force` is off.
    """
    if target.exists() and not force:
        raise OutputError(f"{target}: exists already; pass --force to replace it, or another --out")
