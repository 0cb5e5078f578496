"""What `model.onnx` says about itself in `metadata_props`: enough to read its weights back."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import onnx

from llama_edge.core.artifact import ActivationQuantization
from llama_edge.core.errors import ArtifactError, ConfigError
from llama_edge.core.json_files import parse_json_object
from llama_edge.core.model_config import ModelConfig

FORMAT_VERSION: Final = 1
_CONFIG_KEY: Final = "llama_edge.config"
_LOWERING_KEY: Final = "llama_edge.lowering"
_VERSION_KEY: Final = "llama_edge.format_version"

#: MatMulNBits' accuracy_level -> what it does to activations; 2 and 3 have no CPU kernel.
ACTIVATIONS: Final = {
    0: ActivationQuantization.NONE,
    1: ActivationQuantization.NONE,
    4: ActivationQuantization.INT8_PER_BLOCK,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Lowering:
    """The choices that the graph was written with."""

    accuracy_level: int
    group_size: int
    max_context: int

    def __post_init__(self) -> None:
        if self.accuracy_level not in ACTIVATIONS:
            raise ConfigError(f"accuracy_level {self.accuracy_level!r} is not one of 0, 1, 4")
        for name in ("group_size", "max_context"):
            value = getattr(self, name)
            if not isinstance(value, int) or value <= 0:
                raise ConfigError(f"{name} is {value!r}; it must be a positive integer")

    @property
    def activation(self) -> ActivationQuantization:
        """What the linears do to their inputs."""
        return ACTIVATIONS[self.accuracy_level]


def metadata_entries(config: ModelConfig, lowering: Lowering) -> Iterator[tuple[str, str]]:
    """Keys and values of `metadata_props`; the same model gives the same text."""
    yield _VERSION_KEY, str(FORMAT_VERSION)
    yield _CONFIG_KEY, json.dumps(config.to_json(), sort_keys=True)
    yield _LOWERING_KEY, json.dumps(asdict(lowering), sort_keys=True)


def read_metadata(path: Path, model: onnx.ModelProto) -> tuple[ModelConfig, Lowering]:
    """What `metadata_entries` wrote.

    Raises:
        ArtifactError: It is absent, damaged, or of another format version.
    """
    entries = {entry.key: entry.value for entry in model.metadata_props}
    version = entries.get(_VERSION_KEY)
    if version != str(FORMAT_VERSION):
        raise ArtifactError(
            f"{path}: {_VERSION_KEY} is {version!r}; this program reads {FORMAT_VERSION}; "
            "export the model with this version of llama-edge"
        )
    try:
        config = ModelConfig.from_json(parse_json_object(entries[_CONFIG_KEY], _CONFIG_KEY))
        lowering = Lowering(**parse_json_object(entries[_LOWERING_KEY], _LOWERING_KEY))
    except (KeyError, TypeError, ConfigError, ArtifactError) as error:
        raise ArtifactError(f"{path}: its metadata is damaged: {error}; export it again") from error
    if lowering.max_context > config.max_position_embeddings:
        raise ArtifactError(
            f"{path}: max_context is {lowering.max_context}, the model has "
            f"{config.max_position_embeddings} positions; export it again"
        )
    return config, lowering
