"""Reading and writing `TextAssets` as the files that Hugging Face's tools use."""

from pathlib import Path

from llama_edge.core.types import TextAssets


def write_text_assets(folder: Path, text: TextAssets) -> None:
    """Write tokenizer.json, tokenizer_config.json and generation_config.json."""
    raise NotImplementedError


def read_text_assets(folder: Path) -> TextAssets:
    """Read a folder's tokenizer, chat template, EOS ids and generation defaults."""
    raise NotImplementedError
