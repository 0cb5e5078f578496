"""How a model is called in a bundle that may travel: never by a path of this machine."""

from pathlib import Path

from llama_edge.checkpoints import BUILTIN_MODELS


def source_name(model: str) -> str:
    """A built-in name or a Hugging Face id as it is; the last part of a local path."""
    if model in BUILTIN_MODELS or not Path(model).exists():
        return model
    return Path(model).resolve().name


def short_name(model: str) -> str:
    """`source_name` without an id's owner or a file's ending, for the name of a folder."""
    return source_name(model).rpartition("/")[2].removesuffix(".gguf")
