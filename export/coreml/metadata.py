"""What a package says about itself next to its program: enough to read it without its manifest."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from llama_edge.core.artifact import PrefillLengths
from llama_edge.core.errors import ArtifactError, ConfigError
from llama_edge.core.json_files import parse_json, parse_json_object
from llama_edge.core.model_config import ModelConfig
from llama_edge.core.quantized import QuantizedCheckpoint
from llama_edge.core.text_assets import TextAssets
from llama_edge.text.contract import build_text_contract

FORMAT_VERSION: Final = 1
_VERSION_KEY: Final = "llama_edge.format_version"
_CONFIG_KEY: Final = "llama_edge.config"
LOWERING_KEY: Final = "llama_edge.lowering"
EOS_KEY: Final = "llama_edge.eos_token_ids"
CONTRACT_KEY: Final = "llama_edge.text_contract_sha256"
_MAX_END_TOKENS: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Lowering:
    """The choices that the program was written with."""

    max_context: int
    max_prefill: int
    prefill: PrefillLengths = PrefillLengths.FLEXIBLE

    def __post_init__(self) -> None:
        # From JSON it is a plain text.
        object.__setattr__(self, "prefill", PrefillLengths(self.prefill))
        for name in ("max_context", "max_prefill"):
            value = getattr(self, name)
            if not isinstance(value, int) or value <= 0:
                raise ConfigError(f"{name} is {value!r}; it must be a positive integer")


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageMetadata:
    """All of it."""

    config: ModelConfig
    lowering: Lowering
    eos_token_ids: tuple[int, ...]
    #: of the manifest's `text`, as canonical JSON: which tokenizer and template belong to it
    text_contract_sha256: str

    @classmethod
    def of(cls, checkpoint: QuantizedCheckpoint, lowering: Lowering) -> "PackageMetadata":
        """What the package of this checkpoint has to say."""
        return cls(
            config=checkpoint.config,
            lowering=lowering,
            eos_token_ids=checkpoint.text.eos_token_ids,
            text_contract_sha256=text_contract_sha256(checkpoint.text),
        )

    def entries(self) -> dict[str, str]:
        """Keys and values; the same model gives the same text."""
        return {
            _VERSION_KEY: str(FORMAT_VERSION),
            _CONFIG_KEY: json.dumps(self.config.to_json(), sort_keys=True),
            LOWERING_KEY: json.dumps(asdict(self.lowering), sort_keys=True),
            EOS_KEY: json.dumps(self.eos_token_ids),
            CONTRACT_KEY: self.text_contract_sha256,
        }


def text_contract_sha256(text: TextAssets) -> str:
    """SHA-256 of the manifest's `text`, as the canonical JSON of this project.

    Raises:
        TokenizerError: The tokenizer or the template fails.
    """
    return build_text_contract(text).sha256()


def read_metadata(path: Path, entries: Mapping[str, str]) -> PackageMetadata:
    """What `PackageMetadata.entries` gave.

    Raises:
        ArtifactError: It is absent, damaged, or of another format version.
    """
    version = entries.get(_VERSION_KEY)
    if version != str(FORMAT_VERSION):
        raise ArtifactError(
            f"{path}: {_VERSION_KEY} is {version!r}; this program reads {FORMAT_VERSION}; "
            "export the model with this version of llama-edge"
        )
    try:
        config = ModelConfig.from_json(parse_json_object(entries[_CONFIG_KEY], _CONFIG_KEY))
        lowering = Lowering(**parse_json_object(entries[LOWERING_KEY], LOWERING_KEY))
        found = parse_json(entries[EOS_KEY], EOS_KEY)
        contract = entries[CONTRACT_KEY]
    except (KeyError, TypeError, ValueError, ConfigError, ArtifactError) as error:
        raise ArtifactError(f"{path}: its metadata is damaged: {error}; export it again") from error
    if not isinstance(found, list) or not 0 < len(found) <= _MAX_END_TOKENS:
        raise ArtifactError(f"{path}: {EOS_KEY} is not a list of end tokens; export it again")
    if not all(isinstance(token, int) and token >= 0 for token in found):
        raise ArtifactError(f"{path}: {EOS_KEY} holds what is no token id; export it again")
    if lowering.max_context > config.max_position_embeddings:
        raise ArtifactError(
            f"{path}: max_context is {lowering.max_context}, the model has "
            f"{config.max_position_embeddings} positions; export it again"
        )
    return PackageMetadata(
        config=config,
        lowering=lowering,
        eos_token_ids=tuple(found),
        text_contract_sha256=contract,
    )
