"""Checkpoint readers: whatever form a model has, a `Checkpoint` comes out."""

from pathlib import Path

from llama_edge.checkpoints.builtin import BUILTIN_MODELS, BuiltinModel, builtin_path
from llama_edge.checkpoints.gguf import load_gguf
from llama_edge.core.errors import CheckpointError
from llama_edge.core.text_assets import check_vocabulary
from llama_edge.core.types import Checkpoint

__all__ = ["BUILTIN_MODELS", "BuiltinModel", "load_checkpoint"]


def load_checkpoint(model: str) -> Checkpoint:
    """Open a built-in name, or a local file.

    Raises:
        CheckpointError: Nothing readable is there.
        TokenizerError: The tokenizer is damaged or of another model.
        MissingComponentError: A built-in model's package is not installed.
    """
    path = builtin_path(model) if model in BUILTIN_MODELS else Path(model)
    if not path.exists():
        raise CheckpointError(f"{model}: there is no such file or folder")
    checkpoint = load_gguf(path, model)
    check_vocabulary(model, checkpoint.text, checkpoint.config.vocab_size)
    return checkpoint
