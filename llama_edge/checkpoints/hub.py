"""Models by their Hugging Face id, through `huggingface_hub`, its cache and its offline mode."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import huggingface_hub
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from llama_edge.core.errors import CheckpointError

#: Weights and text files of a Hugging Face folder, and nothing of its subfolders (such as Meta's
#: `original/`) nor the weights' twins in other formats.
ALLOWED_FILES: Final = ("*.safetensors", "*.json", "*.jinja")
CONFIG_FILES: Final = ("config.json",)
IGNORED_FILES: Final = ("*/*",)
_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def is_hub_id(model: str) -> bool:
    """Whether a string has the form `owner/name`."""
    return _ID.fullmatch(model) is not None


def download(model: str, files: Sequence[str] = ALLOWED_FILES) -> Path:
    """The folder of a repository's files, from the cache where they are there already.

    Args:
        model: `owner/name`.
        files: Patterns of the files that are wanted.

    Raises:
        CheckpointError: The repository is absent, gated, or not to be reached.
    """
    try:
        folder = huggingface_hub.snapshot_download(
            model, allow_patterns=list(files), ignore_patterns=list(IGNORED_FILES)
        )
    except GatedRepoError as error:
        raise CheckpointError(
            f"{model}: its owner lets in only those who accept the licence; accept it at "
            f"https://huggingface.co/{model}, then run: hf auth login"
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{model}: neither a local path nor a public repository on huggingface.co; check the "
            "spelling, or run hf auth login if it is private"
        ) from error
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{model}: not a local path, not in the cache, and huggingface.co cannot be reached "
            "(or HF_HUB_OFFLINE is set); go online once, or give a local folder"
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{model}: cannot be downloaded: {reason}; try again, or give a local folder"
        ) from error
    return Path(folder)
