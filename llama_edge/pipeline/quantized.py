"""Quantizing with calibration text, and keeping what took minutes: both targets share one result.

The cache holds calibration text, quantized checkpoints and, while one is being made, what of it is
done (learned rotations, measured sensitivity, rounded layers) under hashes of everything that they
depend on, so a stale entry is never met. It is in `$LLAMA_EDGE_CACHE`, else in
`$XDG_CACHE_HOME/llama-edge`, else in `~/.cache/llama-edge`; deleting it loses only time.
"""

import errno
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path

import platformdirs
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import llama_edge.core
import llama_edge.formats
import llama_edge.models
import llama_edge.quantize
import llama_edge.text
from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.errors import OutputError, UsageError
from llama_edge.core.files import output_folder
from llama_edge.core.json_files import canonical_json
from llama_edge.core.progress import Progress
from llama_edge.core.quantized import QuantizedCheckpoint
from llama_edge.core.recipe import Device, Recipe, Rounding
from llama_edge.core.unfinished import unfinished_folder
from llama_edge.formats.quantized_checkpoint import read_quantized_checkpoint
from llama_edge.pipeline.given_codes import keep_codes
from llama_edge.pipeline.stages import code_sha256
from llama_edge.quantize.calibration import CalibrationSet, generate_calibration, read_calibration
from llama_edge.quantize.resume import WorkPlace
from llama_edge.quantize.stage import HashedWeights, hash_weights, quantize_checkpoint

_TOKENS_FILE = "tokens.safetensors"


def cache_folder() -> Path:
    """Where results that took minutes are kept."""
    chosen = os.environ.get("LLAMA_EDGE_CACHE")
    if chosen:
        return Path(chosen)
    return platformdirs.user_cache_path("llama-edge", appauthor=False)


def quantize_with_cache(
    checkpoint: Checkpoint,
    recipe: Recipe,
    texts: Sequence[Path],
    scratch: Path,
    progress: Progress,
    device: Device = Device.CPU,
) -> QuantizedCheckpoint:
    """Quantize by `recipe`, or keep the codes that the checkpoint came with.

    A recipe with calibration is looked up in the cache first.

    Args:
        checkpoint: Full precision.
        recipe: What to do.
        texts: The user's calibration text; empty lets the model write its own.
        scratch: An empty folder for a result that is not worth keeping.
        progress: Told about every stage that really runs.
        device: Where rotations are learned. A run that was stopped is resumed.

    Raises:
        QuantizeError: A width, a value or the text does not fit the recipe.
        UsageError: The model cannot write its own calibration text.
        OutputError: The cache cannot be written.
    """
    if checkpoint.codes is not None:
        return keep_codes(checkpoint, checkpoint.codes, recipe, scratch, progress)
    if recipe.rounding is Rounding.NEAREST:
        return quantize_checkpoint(checkpoint, recipe, scratch, progress)
    # What can be wrong with the user's text and the cache's place is told before minutes of work.
    own = read_calibration(checkpoint, texts) if texts else None
    if own is None and checkpoint.config.output_rows is not None:
        raise UsageError(
            f"recipe {recipe.name} has the model write its own calibration text, and this model's "
            f"head has {checkpoint.config.head_rows} tokens; give text with --calibration FILE, or "
            "take --recipe w4a8-rtn"
        )
    _make_unfinished()
    checkpoint = replace(checkpoint, weights=HashedWeights.of(checkpoint.weights))
    source = hash_weights(checkpoint.weights)
    calibration = own or _self_generated(checkpoint, source, recipe.seed, progress)
    key = _key(
        {
            "source": source,
            "config": checkpoint.config.to_json(),
            "text": asdict(checkpoint.text),
            "note": checkpoint.note,
            "recipe": recipe.to_json(),
            "calibration": calibration.record().to_json(),
        }
    )
    folder = cache_folder() / "quantized" / key
    with _kept_work(key, progress) as work:
        if not folder.exists():
            place = WorkPlace(device=device, folder=work)
            with output_folder(folder, force=False) as unfinished:
                quantize_checkpoint(checkpoint, recipe, unfinished, progress, calibration, place)
    return read_quantized_checkpoint(folder)


@contextmanager
def _kept_work(key: str, progress: Progress) -> Iterator[Path]:
    """The folder of what is done but not finished; an equal run elsewhere is waited for."""
    parent = _make_unfinished()
    with ExitStack() as stack:
        try:
            work = unfinished_folder(parent / key, keep=True, waiting=progress)
            folder = stack.enter_context(work)
        except OSError as error:
            raise _not_writable(parent, error) from error
        yield folder
    with suppress(OSError):  # another run's work is in it
        parent.rmdir()


def _make_unfinished() -> Path:
    """The cache's folder for work that is not finished."""
    parent = cache_folder() / "unfinished"
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(parent, error) from error
    if not os.access(parent, os.W_OK | os.X_OK):
        raise _not_writable(parent, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))
    return parent


def _not_writable(parent: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{parent}: cannot be written: {error.strerror}; set LLAMA_EDGE_CACHE to a folder that "
        "can be"
    )


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


def _self_generated(
    checkpoint: Checkpoint, source: str, seed: int, progress: Progress
) -> CalibrationSet:
    template = checkpoint.text.chat_template
    config = checkpoint.config.to_json()
    parts = {"source": source, "config": config, "template": template, "seed": seed}
    origin = f"self-generated, seed {seed}"
    key = _key(parts)
    folder = cache_folder() / "calibration" / key
    with _kept_work(key, progress):
        try:
            return CalibrationSet(tokens=load_file(folder / _TOKENS_FILE)["tokens"], origin=origin)
        except (FileNotFoundError, SafetensorError, KeyError):
            generated = generate_calibration(checkpoint, seed, progress)
        with output_folder(folder, force=True) as unfinished:
            save_file({"tokens": generated.tokens}, unfinished / _TOKENS_FILE)
    return generated
