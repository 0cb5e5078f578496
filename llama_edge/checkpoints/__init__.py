"""Checkpoint readers: whatever form a model has, a `Checkpoint` comes out.

A form is one file of this folder, one line in `FORMS`, and one sign in
`recognise`.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from llama_edge.checkpoints.adapter_config import JOINT
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
    "split_adapters",
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

    Args:
        model: Its name; and for each adapter that is merged into it, `+` and the adapter's folder
            or Hugging Face id.

    Raises:
        CheckpointError: Nothing readable is there, or it is damaged, hostile or no plain Llama.
        TokenizerError: The tokenizer is damaged or of another model.
        MissingComponentError: A built-in model's package is not installed.
    """
    from llama_edge.text.text_assets import fit_vocabulary

    base, adapters = split_adapters(model)
    found = recognise(_local_path(base))
    checkpoint = FORMS[found.form]()(found.path, base)
    if adapters:
        from llama_edge.checkpoints.adapters import merge_adapter

        for adapter in adapters:
            checkpoint = merge_adapter(
                checkpoint, _adapter_folder(adapter), adapter, _published_names(base)
            )
    text = fit_vocabulary(model, checkpoint.text, checkpoint.config.vocab_size)
    return replace(checkpoint, text=text)


def split_adapters(model: str) -> tuple[str, list[str]]:
    """The model's own name, and the folders or ids of the adapters that are merged into it."""
    parts, names = model.split(JOINT), []
    while parts:
        # A path may have the sign in it.
        sizes = range(len(parts), 0, -1)
        size = next((n for n in sizes if Path(JOINT.join(parts[:n])).exists()), 1)
        names.append(JOINT.join(parts[:size]))
        parts = parts[size:]
    return names[0], names[1:]


def _adapter_folder(adapter: str) -> Path:
    from llama_edge.checkpoints.hub import download_adapter, is_repository

    return download_adapter(adapter) if is_repository(adapter) else Path(adapter)


def _published_names(model: str) -> list[str]:
    from llama_edge.checkpoints.hub import is_repository, parse_hub_id

    if model in BUILTIN_MODELS:
        return [BUILTIN_MODELS[model].published]
    return [parse_hub_id(model).name] if is_repository(model) else []


def load_config(model: str) -> ModelConfig:
    """The shape of what `load_checkpoint` opens; of a Hugging Face id or folder, no weight is read.

    Raises:
        CheckpointError: As `load_checkpoint`.
        MissingComponentError: A built-in model's package is not installed.
    """
    base, adapters = split_adapters(model)
    if adapters:  # which may bring rows
        return load_checkpoint(model).config
    found = recognise(_local_path(base, config_only=True))
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
