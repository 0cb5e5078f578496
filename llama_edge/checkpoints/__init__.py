"""Checkpoint readers: whatever form a model has, a `Checkpoint` comes out.

A form is one file of this folder, one line in `FORMS`, and one sign in
`recognise`.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from llama_edge.checkpoints.builtin import BUILTIN_MODELS, BuiltinModel, builtin_path
from llama_edge.checkpoints.recognise import CONFIG_FILE, recognise
from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.errors import CheckpointError
from llama_edge.core.model_config import ModelConfig

__all__ = [
    "BUILTIN_MODELS",
    "FORMS",
    "BuiltinModel",
    "checkpoint_form",
    "load_checkpoint",
    "load_config",
]

#: Opens a path; the second argument is how the user named the model.
Reader = Callable[[Path, str], Checkpoint]


def _huggingface() -> Reader:
    from llama_edge.checkpoints.huggingface import load_huggingface

    return load_huggingface


def _meta() -> Reader:
    from llama_edge.checkpoints.meta import load_meta

    return load_meta


def _gguf() -> Reader:
    from llama_edge.checkpoints.gguf import load_gguf

    return load_gguf


FORMS: Final[Mapping[str, Callable[[], Reader]]] = {
    "huggingface": _huggingface,
    "meta": _meta,
    "gguf": _gguf,
}


def checkpoint_form(path: Path) -> str:
    """Which of `FORMS` a path is.

    Raises:
        CheckpointError: None of them; the message says what it is.
    """
    return recognise(path).form


def load_checkpoint(model: str) -> Checkpoint:
    """Open a built-in name, a local folder or file, or a Hugging Face id, in this order.

    Raises:
        CheckpointError: Nothing readable is there, or it is damaged, hostile or no plain Llama.
        TokenizerError: The tokenizer is damaged or of another model.
        MissingComponentError: A built-in model's package is not installed.
    """
    from llama_edge.text.text_assets import fit_vocabulary

    found = recognise(_local_path(model))
    checkpoint = FORMS[found.form]()(found.path, model)
    text = fit_vocabulary(model, checkpoint.text, checkpoint.config.vocab_size)
    return replace(checkpoint, text=text)


def load_config(model: str) -> ModelConfig:
    """The shape of what `load_checkpoint` opens; of a Hugging Face id or folder, no weight is read.

    Raises:
        CheckpointError: As `load_checkpoint`.
        MissingComponentError: A built-in model's package is not installed.
    """
    found = recognise(_local_path(model, config_only=True))
    if found.form == "huggingface":
        from llama_edge.checkpoints.huggingface_config import read_config

        return read_config(found.path / CONFIG_FILE)
    return FORMS[found.form]()(found.path, model).config


def _local_path(model: str, *, config_only: bool = False) -> Path:
    from llama_edge.checkpoints.hub import download, is_hub_id

    if model in BUILTIN_MODELS:
        return builtin_path(model)
    if Path(model).exists():
        return Path(model)
    if is_hub_id(model):
        return download(model, config_only=config_only)
    raise CheckpointError(
        f"{model}: neither a built-in model ({', '.join(BUILTIN_MODELS)}), nor a file or folder "
        "here, nor a Hugging Face id of the form owner/name"
    )
